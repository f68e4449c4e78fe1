"""Figures 6 and 13: which choice of weights finds critical ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import final

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.sampling.plans import EachTopScore, Explicit
from hoplon.faults.single_word import BitFlip
from hoplon.importance._magnitude import magnitude
from hoplon.importance.scores import Scores
from hoplon.stats.intervals import Interval
from hoplon_studies.aspis.subjects import CONVOLUTIONS, LABELS, NO_WEIGHTS, Subject, of_each
from hoplon_studies.framework.figures import Figure, Series, bars
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

BITS = (2, 3)
THRESHOLDS = (0.0, 0.01, 0.05, 0.5, 0.9)
CRITICAL = 0.5
WORST_BIT = 30
WORST = f"bit {WORST_BIT}"
_MAGNITUDE_TOP = 100
_RANDOM, _LARGEST, _SMALLEST, _IMPORTANT = "random", "largest", "smallest", "important"
_NAMES = {
    _RANDOM: "random weights",
    _LARGEST: "weights of the 100 largest magnitudes",
    _SMALLEST: "weights of the 100 smallest magnitudes",
    _IMPORTANT: "most important weights (Taylor)",
}
_PUBLISHED = {_RANDOM: "random", _LARGEST: "magnitude", _IMPORTANT: "importance"}
_FIGURES = {
    "Fig. 6": ("fig6/{}/{}/critical", (_LARGEST, _SMALLEST, _RANDOM)),
    "Fig. 13": ("fig13/{}/{}", tuple(_PUBLISHED)),
}
"""Keys of published values, by network and choice of weights, and the choices that a figure has."""

_CHANGES = {f"{bits} bits of 32": BitFlip(bits) for bits in BITS} | {WORST: BitFlip(bits=(WORST_BIT,))}
TWO_BITS = next(iter(_CHANGES))
COUNTED = f"faults that misclassify > {100 * CRITICAL:g} % of images"


@final
@dataclass(frozen=True)
class Attack:
    """Weights and bits that are struck: which change, ``which`` weights, how many faults."""

    change: str
    which: str
    sampling: Sampling = field(repr=False)
    count: int

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return f"{self.change.removesuffix(' of 32').replace(' ', '-')}/{self.which}"


def critical_weights(context: Context) -> Iterator[Finding]:
    """Share of faults that are critical, by how the struck weights are chosen."""
    yield from _of_the_paper(context)
    known = [{"arm": which, "setting": COUNTED} for which in _PUBLISHED]
    yield from of_each(context, _of, lambda subject: [subject.row("Fig. 13", TWO_BITS, **one) for one in known])
    yield _TEXT


def ordered(scores: Scores, count: int, *, seed: int) -> list[tuple[str, int]]:
    """The weights with the ``count`` highest scores, in an order drawn by the seed."""
    listed = EachTopScore(scores.values, min(count, scores.total), seed).listed
    return [(site, element) for site, element, *_ in listed.faults]


def attacks(subject: Subject, context: Context) -> Iterator[Attack]:
    """Two and three random bits in every choice of weights, then bit 30 alone in random and in important ones."""
    counts, seed = context.profile.aspis, context.seed
    sizes = magnitude(subject.program, sites=CONVOLUTIONS)
    small = Scores({name: -size for name, size in sizes.values.items()})
    listed = {
        _LARGEST: ordered(sizes, _MAGNITUDE_TOP, seed=seed)[: counts.magnitude_faults],
        _SMALLEST: ordered(small, _MAGNITUDE_TOP, seed=seed)[: counts.magnitude_faults],
        _IMPORTANT: ordered(subject.scores(), counts.important, seed=seed)[: counts.important_faults],
    }
    *changes, worst = _CHANGES
    for change in changes:
        yield Attack(change, _RANDOM, ElementUniform(), counts.faults)
        for which, places in listed.items():
            yield Attack(change, which, Explicit(places), len(places))
    few = listed[_IMPORTANT][: counts.magnitude_faults]
    yield Attack(worst, _RANDOM, ElementUniform(), counts.magnitude_faults)
    yield Attack(worst, _IMPORTANT, Explicit(few), len(few))


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    points: list[tuple[str | float, ...]] = []
    histograms: dict[str, Results] = {}
    runs: list[str] = []
    for attack in attacks(subject, context):
        campaign = Campaign(
            subject.program,
            subject.met,
            sites=CONVOLUTIONS,
            fault_model=_CHANGES[attack.change],
            sampling=attack.sampling,
        )
        runs.append(f"{subject.name}/{attack.folder}")
        results = context.campaign(runs[-1], campaign, count=attack.count)
        yield from _rows(subject, attack, results, context)
        shares = results.critical_share(THRESHOLDS)["share"]
        points.append((_NAMES[attack.which], attack.change, attack.count, *(100 * share for share in shares)))
        if attack.change == TWO_BITS:
            histograms[_NAMES[attack.which]] = results
    yield Table(
        f"{subject.title}: share of faults in % that misclassify more than ... of the images",
        ("weights", "flipped", "faults", *(f"> {100 * threshold:g} %" for threshold in THRESHOLDS)),
        tuple(points),
        detail=True,
    )
    yield _histogram(subject, histograms)
    counts = context.profile.aspis
    yield context.source(
        subject.title,
        fault_model=(
            f"different random bits of one float32 convolution weight are flipped, as the run's folder says, and all "
            f"eligible ones of {len(subject.met):,} held-out images meet the fault; random weights element-uniform, of "
            f"the {_MAGNITUDE_TOP} largest and smallest magnitudes {counts.magnitude_faults} each, of the "
            f"{counts.important} most important {counts.important_faults} (Taylor on {len(subject.known):,} "
            "calibration images); limits Wilson"
        ),
        runs=runs,
        seed=context.seed,
    )


def critical_share(results: Results, threshold: float) -> tuple[Interval, int]:
    """The share of faults that misclassify more than a share of the images, and how many faults there are."""
    share = results.critical_share((threshold,)).row(0, named=True)
    return Interval(share["share"], share["share_low"], share["share_high"], 0.95, "wilson"), share["n_faults"]


def _rows(subject: Subject, attack: Attack, results: Results, context: Context) -> Iterator[Row]:
    interval, count = critical_share(results, CRITICAL)
    for where, (key, chosen) in _FIGURES.items():
        if attack.which in chosen:
            published = key.format(subject.stands_for, _PUBLISHED.get(attack.which, attack.which))
            paper = context.published.get(published) if attack.change == TWO_BITS else None
            row = subject.row(where, attack.change, paper=paper, arm=attack.which, setting=COUNTED)
            row = replace(row, detail=where == "Fig. 6" and attack.change != TWO_BITS)
            yield row.found(interval, n=count, seed=context.seed)


def _of_the_paper(context: Context) -> Iterator[Row]:
    """The paper's own networks."""
    name = "inception_v3"  # nothing stands in for it
    for which, key in _PUBLISHED.items():
        if (paper := context.published.get(f"fig13/{name}/{key}")) is not None:
            row = Row("Fig. 13", LABELS[name], "ImageNet", TWO_BITS, "%", paper, arm=which, setting=COUNTED)
            yield row.missing(NO_WEIGHTS)


def _histogram(subject: Subject, found: dict[str, Results]) -> Figure:
    bins = {name: results.distribution(10) for name, results in found.items()}
    first = next(iter(bins.values()))
    groups = [f"{100 * low:.0f}–{100 * high:.0f} %" for low, high in zip(first["above"], first["up_to"], strict=True)]
    columns = ("share", "share_low", "share_high")
    series = [
        Series(name, *(tuple(100 * share for share in table[column]) for column in columns))
        for name, table in bins.items()
    ]
    last = "; ".join(f"{name} {100 * table['share'][-1]:.1f} %" for name, table in bins.items())
    return bars(
        f"histogram-{subject.name}",
        title=f"{subject.title}, two bits of 32: share of faults by the share of images they misclassify (Fig. 13)",
        alt=f"Histogram of misclassification; above 90 %: {last}",
        groups=groups,
        series=series,
        y_title="% of faults",
        x_title="images that a fault misclassifies",
        log_y=True,
    )


_TEXT = (
    "A fault is *critical* above a threshold of misclassified images that the paper leaves open ('near 100 percent'); "
    "rows take 50 %, tables in the JSON give five thresholds. Columns are choices of weights: random, of the 100 "
    "largest or smallest magnitudes, most important by Taylor score. Two bits chosen uniformly of 32 hold bit 30, the "
    "top bit of the exponent, with probability 2/32 = 6.25 %, three with 9.4 %: where only this bit does harm, no "
    "choice of weights makes more faults critical than that. Rows of bit 30 alone show what the choice of weights "
    "adds."
)
