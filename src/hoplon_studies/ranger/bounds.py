"""Figure 5, Table IV and Figure 10: how quickly bounds are found, and what tighter ones cost and bring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from torch import nn

from hoplon.campaign.results import Results
from hoplon.protections.base import Protection
from hoplon.protections.ranges.profile import QuantileOf
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.framework.figures import Figure, Series, bars, lines
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import DIFFERENCE, Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.angles import MEASURES, angle_errors, error_more
from hoplon_studies.ranger.networks import Absent, Network, each_network, in_profile, training_inputs
from hoplon_studies.ranger.runs import MEAN, Campaigns, row_of

SLOWEST = "slowest activation"
PERCENTILES = (1.0, 0.999, 0.99, 0.98)
_WORDS: Mapping[QuantileOf, str] = {"values": " of values", "image-maxima": " of images"}


def convergence(context: Context) -> Iterator[Finding]:
    """Figure 5: the share of its final range that each activation has reached, by number of images."""
    for found in each_network(context, classifiers=True):
        if isinstance(found, Absent) or found.listing.key not in context.profile.ranger.converging:
            continue
        inputs = training_inputs(context, found, context.profile.ranger.convergence_inputs)
        history = profile_activations(found.program, inputs, quantiles=False).convergence()
        counts = [count for count, _ in history]
        names = list(history[-1][1])
        series = [Series(name, tuple(shares.get(name) for _, shares in history)) for name in names]
        if len(counts) > 1:
            yield lines(
                found.listing.key,
                title=f"{found.listing.label}: share of the final range that each activation has reached",
                alt="Lines that rise to 1, one per activation, over the number of images",
                x=[float(count) for count in counts],
                series=series,
                x_title="images",
                y_title="share of the final range",
                log_x=True,
            )
        fifth = max((count for count in counts if 5 * count <= counts[-1]), default=counts[0])
        reached = dict(history)[fifth]
        setting = f"share of the final range after {fifth:,} of {counts[-1]:,} training images, in one order"
        for what, share in {SLOWEST: min(reached.values()), "quickest": max(reached.values())}.items():
            row = row_of("Fig. 5", found, what, setting=setting)
            yield replace(row, here=100 * share, n=fifth, seed=context.seed, detail=what != SLOWEST)


def percentiles(context: Context) -> Iterator[Finding]:
    """Table IV and Figure 10: bounds that a share of what was seen exceeds, on Dave with its output in degrees."""
    found = in_profile(context, "dave-degrees")
    if isinstance(found, Absent):
        yield from (row_of("Table IV", found, "RMSE"), row_of("Fig. 10", found, MEAN))
        return
    arms: dict[str, tuple[str, tuple[Protection, ...]]] = {"none": ("none", ())}
    for kind, words in _WORDS.items():
        for share in PERCENTILES if kind == "values" else PERCENTILES[1:]:
            ranges = found.profile.ranges(quantile=share, quantile_of=kind)
            label = f"{100 * share:g} %{'' if share == 1 else words}"
            arms[f"{100 * share:g}-{kind}"] = (label, (Ranger(ranges),))
    rates: dict[str, list[Row]] = {}
    met: dict[str, tuple[nn.Module, Results]] = {}
    campaigns = Campaigns(context)
    for key, (label, protections) in arms.items():
        published = key.removesuffix("-values")  # nothing is published of image maxima
        beside = key.endswith("-image-maxima")
        module = harden(found.program, protections) if protections else found.module
        yield from (replace(row, detail=beside) for row in _errors(context, found, label, module, published))
        results = campaigns.run(found, key, protections)
        met[label] = module, results
        paper = {name: context.published.get(f"fig10/{published}/{name}") for name in (*results.criteria, "mean")}
        rows = list(campaigns.rows("Fig. 10", found, results, label, paper=paper, thresholds=True))
        rates[label] = rows[:-1]
        yield from (replace(row, detail=beside) for row in rows)
    yield (
        "The paper's text takes percentiles of all sampled values, its published script of the largest value of every "
        "image. Both are here: bounds within which so many per cent of all values stay, or (in the JSON and the chart) "
        "of the largest values of each image. Failures are counted against the angle without bounds, so that bounds "
        "which turn the wheel by themselves count too."
    )
    yield from _steps(campaigns, found, {label: met[label] for label in met if label.endswith((" %", " of values"))})
    yield _bars(rates)
    yield from campaigns.sources("Fig. 10")


def _steps(campaigns: Campaigns, found: Network, met: Mapping[str, tuple[nn.Module, Results]]) -> Iterator[Row]:
    """Each choice of bounds less the wider one before it: errors on the same frames, failures of the same faults."""
    for (wider, (before, more)), (tighter, (after, fewer)) in pairwise(met.items()):
        setting = f"{wider} and {tighter}"
        yield error_more(campaigns.context, "Table IV", found, before, after, arm=DIFFERENCE, setting=setting)
        for row in campaigns.difference("Fig. 10", found, more, fewer):
            yield replace(row, setting=setting, detail=True)


def _errors(context: Context, found: Network, label: str, module: nn.Module, percent: str) -> Iterator[Row]:
    """RMSE and mean absolute error of one choice of bounds, fault-free."""
    key = "original" if percent == "none" else percent
    for measure, name in MEASURES.items():
        paper = context.published.get(f"table4/{key}/{name}")
        yield angle_errors(context, "Table IV", found, measure, module, measure, paper, arm=label)


def _bars(rates: Mapping[str, list[Row]]) -> Figure:
    series = [
        Series(label, *zip(*((row.here, row.low, row.high) for row in rows), strict=True))
        for label, rows in rates.items()
    ]
    return bars(
        "fig10",
        title="Share of faults that turn the wheel by more than a threshold, by the bounds of Ranger",
        alt="Bars per threshold in degrees, one per choice of bounds",
        groups=[f"> {threshold} degrees" for threshold in (15, 30, 60, 120)],
        series=series,
        y_title="failures, %",
        log_y=True,
    )
