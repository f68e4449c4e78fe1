"""RQ1 and RQ4: how often faults lead to failures without and with Ranger (figures 6, 7 and 9), and in float32."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hoplon.campaign.results import Results
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.framework.digits import here
from hoplon_studies.framework.figures import Figure, bars, percent_series
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.bits import by_bit
from hoplon_studies.ranger.networks import Absent, Network, chosen, each_network, own
from hoplon_studies.ranger.runs import FIXED16, FIXED32, FLOAT32, Campaigns, FaultModel, mean_of_networks, row_of

ARMS = {"none": "without Ranger", "ranger": "with Ranger"}
_CLASSIFIERS = ("lenet", "alexnet", "vgg11", "vgg16", "resnet18", "squeezenet")
OVER_ALL = "mean over all criteria"
_IN_FULL = ("Fig. 6", "Fig. 7")
Pair = tuple[Network, dict[str, Results]]


def classifiers(context: Context) -> Iterator[Finding]:
    """Figure 6: the share of faults that change the class."""
    pairs = yield from _struck(Campaigns(context), "Fig. 6", "Share of faults that change the class", classifiers=True)
    yield from _means(context, "Fig. 6", FIXED32, pairs, _CLASSIFIERS)
    yield from by_bit(context, "fig6", pairs)


def steering(context: Context) -> Iterator[Finding]:
    """Figure 7: the share of faults that turn the wheel by more than 15, 30, 60 and 120 degrees."""
    title = "Share of faults that turn the wheel by more than a threshold"
    pairs = yield from _struck(Campaigns(context), "Fig. 7", title, classifiers=False)
    for row in _means(context, "Fig. 7", FIXED32, pairs, ("comma", "dave-degrees")):
        yield replace(row, where="section V-C", detail=True)  # Dave in degrees; shown by the verdicts
    yield from by_bit(context, "fig7", pairs)


def sixteen_bits(context: Context) -> Iterator[Finding]:
    """Figure 9: the same with 16 bits."""
    title = "Share of faults that lead to a failure, 16-bit fixed point"
    pairs = yield from _struck(Campaigns(context, FIXED16), "Fig. 9", title)
    yield from _means(context, "Fig. 9", FIXED16, pairs, (*_CLASSIFIERS, "dave-radians", "comma"))


def floating_point(context: Context) -> Iterator[Finding]:
    """Failure rates in float32, which the paper leaves out: a flipped exponent bit gives infinities and NaN."""
    title = "Share of faults that lead to a failure, float32"
    yield from _struck(Campaigns(context, FLOAT32), "not in the paper", title)
    yield (
        "The paper evaluates fixed point, where every faulty value is finite. Networks in PyTorch hold float32: here "
        "one of its 32 bits is flipped, in an element drawn uniformly out of all operator outputs, the last layer's "
        "included. A failure is a changed class (or angle) or an output that is not finite. Rates are in the JSON."
    )


def two_bits(context: Context) -> Iterator[Finding]:
    """Section II-B: two flipped bits of a value in place of one, on three small networks."""
    campaigns, told = Campaigns(context), []
    setting = f"2 bits, {FIXED32.setting}"
    for network in chosen(context, ("lenet", "lenet-quick", "resnet20", "comma")):
        for arm, protections in {"none": (), "ranger": (Ranger(network.ranges),)}.items():
            results = campaigns.run(network, arm, protections, flips=2)
            rows = list(campaigns.rows("section II-B", network, results, arm, setting=setting))
            yield from (replace(row, detail=True) for row in rows)
            told.append(f"{network.listing.label}, {arm}: {here(rows[-1])}")
    if told:
        yield (
            f"The paper strikes single bits and holds that several bits of a value show similar patterns (section "
            f"II-B). Failures with two flipped bits: {'; '.join(told)}."
        )
    yield from campaigns.sources("two bits", fault_model="two bits of 21.10 fixed point, operator first")


def users_own(context: Context) -> Iterator[Finding]:
    """The user's model under both fault models, without and with Ranger."""
    network = own(context)
    if network is None:
        return
    for model in (FIXED32, FLOAT32):
        campaigns = Campaigns(context, model)
        for arm, results in _arms(campaigns, network).items():
            yield from campaigns.rows("not in the paper", network, results, arm, thresholds=True)
        yield from campaigns.sources("your model")


def _struck(
    campaigns: Campaigns, where: str, title: str, *, classifiers: bool | None = None
) -> Generator[Finding, None, list[Pair]]:
    """Rows of every network of the profile, their figure and their source; returns the campaigns they come from."""
    pairs: list[Pair] = []
    context, place = campaigns.context, _place(where)
    for network in each_network(context, classifiers=classifiers):
        key = network.listing.key.removesuffix("-quick")
        if isinstance(network, Absent):
            for arm in ARMS:
                paper = context.published.get(f"{place}/{key}/{arm}/top-1")
                setting = campaigns.model.setting
                yield row_of(where, network, "top-1", paper=paper, arm=arm, setting=setting, failure=True)
            continue
        arms = _arms(campaigns, network)
        for arm, results in arms.items():
            known: dict[str, Any] = {
                name: context.published.get(f"{place}/{key}/{arm}/{name}") for name in results.criteria
            }
            known["mean"] = context.published.get(f"{place}/{key}/mean/{arm}")
            yield from campaigns.rows(where, network, results, arm, paper=known, thresholds=where in _IN_FULL)
        yield from campaigns.difference(where, network, *arms.values(), thresholds=where in _IN_FULL)
        pairs.append((network, arms))
    yield from _figures(_place(where) or campaigns.model.key, pairs, campaigns.model, title)
    yield from campaigns.sources("failures")
    return pairs


def _place(where: str) -> str:
    """The place in the paper as files and published values are named after it; empty for what it does not have."""
    return where.lower().replace(". ", "") if where.startswith("Fig. ") else ""


def _arms(campaigns: Campaigns, network: Network) -> dict[str, Results]:
    return {
        "none": campaigns.run(network, "none"),
        "ranger": campaigns.run(network, "ranger", (Ranger(network.ranges),)),
    }


def _means(context: Context, where: str, model: FaultModel, pairs: list[Pair], keys: Sequence[str]) -> Iterator[Row]:
    """The mean over the networks that the paper takes, and all their criteria; none unless all are there."""
    own = [(network, arms) for network, arms in pairs if network.listing.key in keys]
    for arm in ARMS if len(own) == len(keys) else ():
        mean, n = mean_of_networks([arms[arm].summary() for _, arms in own])
        stands_for = "the paper's networks" if any(network.listing.stands_for for network, _ in own) else ""
        paper = context.published.get(f"{_place(where)}/mean/{arm}")
        row = Row(where, f"mean of {len(own)} networks", "-", OVER_ALL, "%", paper, arm=arm)
        row = replace(row, setting=model.setting, stands_for=stands_for, failure=True)
        yield row.found(mean, n=n, seed=context.seed)


def _figures(name: str, pairs: Iterable[Pair], model: FaultModel, title: str) -> Iterator[Figure]:
    """Bars without and with Ranger; none where no network was struck."""
    rates = [
        (f"{network.listing.label} {rate.criterion.removeprefix('deviation')}", arms, column)
        for network, arms in pairs
        for column, rate in enumerate(arms["none"].summary())
        if network.is_classifier or model.format or not column  # in float32 thresholds hardly differ
    ]
    if rates:
        series = [
            percent_series(words, [arms[arm].summary()[column].failure for _, arms, column in rates])
            for arm, words in ARMS.items()
        ]
        yield bars(
            name,
            title=f"{title}: {model.setting}",
            alt=f"Bars: {title.lower()}, without and with Ranger, per network",
            groups=[label for label, _, _ in rates],
            series=series,
            y_title="failures, %",
            log_y=True,
        )
