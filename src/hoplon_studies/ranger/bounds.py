"""Figure 5, Table IV and Figure 10: how quickly bounds are found, and what tighter ones cost and bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hoplon.protections.base import Protection
from hoplon.protections.ranges.profile import QuantileOf
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.framework.figures import Figure, Series, bars, lines
from hoplon_studies.framework.findings import Findings
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.angles import LIMITS, MEASURES, angle_errors
from hoplon_studies.ranger.networks import Absent, Network, each_network, network, training_inputs
from hoplon_studies.ranger.runs import FIXED32, Campaigns, mean_of, row_of

PERCENTILES = (1.0, 0.999, 0.99, 0.98)
_WORDS: Mapping[QuantileOf, str] = {"values": "of all values", "image-maxima": "of the largest value of each image"}


def convergence(context: Context) -> Findings:
    """Figure 5: the share of its final range that each activation has reached, by number of images."""
    rows: list[Row] = []
    figures = []
    for found in each_network(context, classifiers=True):
        if isinstance(found, Absent) or found.listing.key not in context.profile.ranger.converging:
            continue
        inputs = training_inputs(context, found, context.profile.ranger.convergence_inputs)
        history = profile_activations(found.program, inputs, quantiles=False).convergence()
        counts = [count for count, _ in history]
        names = list(history[-1][1])
        series = [Series(name, tuple(shares.get(name) for _, shares in history)) for name in names]
        if len(counts) > 1:
            figures.append(
                lines(
                    found.listing.key,
                    title=f"{found.listing.label}: share of the final range that each activation has reached",
                    alt="Lines that rise to 1, one per activation, over the number of images",
                    x=[float(count) for count in counts],
                    series=series,
                    x_title="images",
                    y_title="share of the final range",
                    log_x=True,
                )
            )
        fifth = max((count for count in counts if 5 * count <= counts[-1]), default=counts[0])
        reached = dict(history)[fifth]
        what = f"range that the slowest activation has reached after {fifth:,} of {counts[-1]:,} training images"
        row = row_of("Fig. 5", found, what, why="the paper shows 13 activations of VGG16 on ImageNet")
        quickest = f"the quickest has reached {100 * max(reached.values()):.4g} %"
        slowest = 100 * min(reached.values())
        rows.append(replace(row, here=slowest, n=fifth, seed=context.seed, why=f"{quickest}; {row.why}"))
    text = "These rows have no limits: they tell of one order of the images, drawn by the seed."
    return Findings(rows=tuple(rows), figures=tuple(figures), text=(text,) if rows else ())


def percentiles(context: Context) -> Findings:
    """Table IV and Figure 10: bounds that a share of what was seen exceeds, on Dave with its output in degrees."""
    found = network(context, "dave-degrees")
    if isinstance(found, Absent) or "dave-degrees" not in context.profile.ranger.models:
        why = found.why if isinstance(found, Absent) else "left out of this profile"
        listing = Absent(found.listing, why)
        return Findings(
            rows=(row_of("Table IV", listing, "RMSE").missing(why), row_of("Fig. 10", listing, "failures").missing(why))
        )
    arms: dict[str, tuple[str, tuple[Protection, ...]]] = {"none": ("without Ranger", ())}
    for kind, words in _WORDS.items():
        for share in PERCENTILES if kind == "values" else PERCENTILES[1:]:
            ranges = found.profile.ranges(quantile=share, quantile_of=kind)
            label = "bounds at the extremes" if share == 1 else f"bounds at {100 * share:g} % {words}"
            arms[f"{100 * share:g}-{kind}"] = (label, (Ranger(ranges),))
    rows: list[Row] = []
    rates: dict[str, list[Row]] = {}
    campaigns = Campaigns(context)
    for key, (label, protections) in arms.items():
        percent, _, of = key.partition("-")
        rows += _errors(context, found, label, protections, percent if of != "image-maxima" else "")
        results = campaigns.run(found, key, protections)
        paper = {
            name: context.published.get(f"fig10/{percent}/{name}") if of != "image-maxima" else None
            for name in results.criteria
        }
        rates[label] = campaigns.rows("Fig. 10", found, results, f"{label}, {FIXED32.words}", paper=paper)
        rows += rates[label]
        mean = mean_of(results.summary(), independent=False)
        given = context.published.get(f"fig10/{percent}/mean") if of != "image-maxima" else None
        row = row_of("Fig. 10", found, f"{label}, {FIXED32.words}: mean over the thresholds", paper=given)
        rows.append(row.found(mean, n=results.summary()[0].n_runs, seed=context.seed))
    text = (
        "The paper does not say what a percentile is taken of. Its published script sorts the largest value of every "
        "image; its text speaks of all sampled values. Both are here.",
        LIMITS,
    )
    return Findings(rows=tuple(rows), figures=(_bars(rates),), text=text, sources=campaigns.sources("Fig. 10"))


def _errors(
    context: Context, found: Network, label: str, protections: tuple[Protection, ...], percent: str
) -> list[Row]:
    """RMSE and mean absolute error of one choice of bounds, fault-free."""
    module = harden(found.program, protections) if protections else found.module
    published = context.published
    key = "original" if percent == "none" else percent
    return [
        angle_errors(
            context, "Table IV", found, f"{measure}, {label}", module, measure, published.get(f"table4/{key}/{name}")
        )
        for measure, name in MEASURES.items()
    ]


def _bars(rates: Mapping[str, list[Row]]) -> Figure:
    thresholds = ("> 15", "> 30", "> 60", "> 120")
    series = [
        Series(
            label,
            tuple(row.here for row in rows),  # type: ignore[misc]
            tuple(row.low for row in rows),
            tuple(row.high for row in rows),
        )
        for label, rows in rates.items()
    ]
    return bars(
        "fig10",
        title="Share of faults that turn the wheel by more than a threshold, by the bounds of Ranger",
        alt="Bars per threshold in degrees, one per choice of bounds",
        groups=[f"{threshold} degrees" for threshold in thresholds],
        series=series,
        y_title="failures, %",
    )
