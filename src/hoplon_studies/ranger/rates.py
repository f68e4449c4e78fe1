"""RQ1 and RQ4: how often faults lead to failures without and with Ranger (figures 6, 7 and 9), and in float32."""

from __future__ import annotations

from collections.abc import Iterable

from hoplon.campaign.results import Results
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.framework.figures import Figure, bars, percent_series
from hoplon_studies.framework.findings import Findings, Source
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Absent, Network, each_network, own
from hoplon_studies.ranger.runs import FIXED16, FIXED32, FLOAT32, Campaigns, FaultModel, mean_of, papers_own, row_of

ARMS = {"none": "without Ranger", "ranger": "with Ranger"}
Pair = tuple[Network, dict[str, Results]]


def classifiers(context: Context) -> Findings:
    """Figure 6: the share of faults that change the class."""
    campaigns = Campaigns(context)
    rows, pairs = _struck(context, "Fig. 6", campaigns, classifiers=True)
    means = _mean_of_networks(context, "Fig. 6", FIXED32, pairs, "the classifiers above")
    figure = _figure("fig6", pairs, FIXED32, "Share of faults that change the class")
    return _findings(campaigns, [*rows, *means], figure)


def steering(context: Context) -> Findings:
    """Figure 7: the share of faults that turn the wheel by more than 15, 30, 60 and 120 degrees."""
    campaigns = Campaigns(context)
    rows, pairs = _struck(context, "Fig. 7", campaigns, classifiers=False)
    for pair in pairs:
        rows += _mean_of_thresholds(context, "Fig. 7", FIXED32, pair)
    figure = _figure("fig7", pairs, FIXED32, "Share of faults that turn the wheel by more than a threshold")
    return _findings(campaigns, rows, figure)


def sixteen_bits(context: Context) -> Findings:
    """Figure 9: the same with 16 bits."""
    campaigns = Campaigns(context, FIXED16)
    rows, pairs = _struck(context, "Fig. 9", campaigns, classifiers=None)
    means = _mean_of_networks(context, "Fig. 9", FIXED16, pairs, "all networks above and all thresholds")
    figure = _figure("fig9", pairs, FIXED16, "Share of faults that lead to a failure, 16-bit fixed point")
    return _findings(campaigns, [*rows, *means], figure)


def floating_point(context: Context) -> Findings:
    """Failure rates in float32, which the paper leaves out: a flipped exponent bit gives infinities and NaN."""
    campaigns = Campaigns(context, FLOAT32)
    rows, pairs = _struck(context, "not in the paper", campaigns, classifiers=None)
    figure = _figure("float32", pairs, FLOAT32, "Share of faults that lead to a failure, float32")
    text = (
        "The paper evaluates fixed point, where every faulty value is finite. Networks in PyTorch hold float32: here "
        "one of its 32 bits is flipped, in an element drawn uniformly out of all operator outputs, the last layer's "
        "included. A failure is a changed class (or angle) or an output that is not finite.",
    )
    return _findings(campaigns, rows, figure, text=text)


def users_own(context: Context) -> Findings:
    """The user's model under both fault models, without and with Ranger."""
    network = own(context)
    if network is None:
        return Findings(text=("None was given: `hoplon study ranger --model MODEL DATA` runs it here.",))
    rows: list[Row] = []
    sources: tuple[Source, ...] = ()
    for model in (FIXED32, FLOAT32):
        campaigns = Campaigns(context, model)
        for arm, results in _arms(campaigns, network).items():
            rows += campaigns.rows("not in the paper", network, results, f"{ARMS[arm]}, {model.words}")
        sources += campaigns.sources("your model")
    return Findings(rows=tuple(rows), sources=sources)


def _struck(
    context: Context, where: str, campaigns: Campaigns, *, classifiers: bool | None
) -> tuple[list[Row], list[Pair]]:
    """Rows of every network of the profile, and the campaigns they come from."""
    rows: list[Row] = []
    pairs: list[Pair] = []
    place = "fig6" if where == "Fig. 6" else "fig7" if where == "Fig. 7" else ""
    for network in each_network(context, classifiers=classifiers):
        key = network.listing.key.removesuffix("-quick")
        for arm, words in ARMS.items():
            paper = context.published.get(f"{place}/{key}/{arm}/top-1")
            rows += papers_own(where, network, f"{words}, {campaigns.model.words}", paper=paper)
            if isinstance(network, Absent):
                rows.append(row_of(where, network, f"{words}, {campaigns.model.words}").missing(network.why))
        if isinstance(network, Absent):
            continue
        arms = _arms(campaigns, network)
        for arm, results in arms.items():
            names = () if network.listing.stands_in else results.criteria
            known = {name: context.published.get(f"{place}/{key}/{arm}/{name}") for name in names}
            rows += campaigns.rows(where, network, results, f"{ARMS[arm]}, {campaigns.model.words}", paper=known)
        pairs.append((network, arms))
    return rows, pairs


def _arms(campaigns: Campaigns, network: Network) -> dict[str, Results]:
    return {
        "none": campaigns.run(network, "none"),
        "ranger": campaigns.run(network, "ranger", (Ranger(network.ranges),)),
    }


def _mean_of_networks(context: Context, where: str, model: FaultModel, pairs: list[Pair], over: str) -> list[Row]:
    """The mean over networks, as the paper gives it."""
    why = "other weights, and other data where something stands in"
    rows = []
    for arm, words in ARMS.items() if pairs else ():
        rates = [rate for _, arms in pairs for rate in arms[arm].summary()]
        paper = context.published.get(f"{where.lower().replace('. ', '')}/mean/{arm}")
        row = Row(where, "mean", "-", f"mean over {over}, {words}, {model.words}", "%", paper=paper, why=why)
        n = sum(rate.n_runs for rate in rates)
        rows.append(row.found(mean_of(rates, independent=True), n=n, seed=context.seed))
    return rows


def _mean_of_thresholds(context: Context, where: str, model: FaultModel, pair: Pair) -> list[Row]:
    """The mean over the four thresholds of one steering network, as the paper gives it."""
    network, arms = pair
    rows = []
    for arm, words in ARMS.items():
        rates = arms[arm].summary()
        paper = context.published.get(f"fig7/{network.listing.key}/mean/{arm}")
        row = row_of(where, network, f"mean over the thresholds, {words}, {model.words}", paper=paper)
        rows.append(row.found(mean_of(rates, independent=False), n=rates[0].n_runs, seed=context.seed))
    return rows


def _figure(name: str, pairs: Iterable[Pair], model: FaultModel, title: str) -> Figure | None:
    """Bars without and with Ranger."""
    rates = [
        (f"{network.listing.label} {rate.criterion.removeprefix('deviation')}", arms, column)
        for network, arms in pairs
        for column, rate in enumerate(arms["none"].summary())
    ]
    if not rates:
        return None
    series = []
    for arm, words in ARMS.items():
        series.append(percent_series(words, [arms[arm].summary()[column].failure for _, arms, column in rates]))
    return bars(
        name,
        title=f"{title}: {model.words}",
        alt=f"Bars: {title.lower()}, without and with Ranger, per network",
        groups=[label for label, _, _ in rates],
        series=series,
        y_title="failures, %",
    )


def _findings(campaigns: Campaigns, rows: list[Row], figure: Figure | None, *, text: tuple[str, ...] = ()) -> Findings:
    figures = (figure,) if figure is not None else ()
    return Findings(rows=tuple(rows), figures=figures, text=text, sources=campaigns.sources("failures"))
