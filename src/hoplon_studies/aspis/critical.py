"""Figures 6 and 13: which choice of weights finds critical ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import final

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.importance._magnitude import magnitude
from hoplon.importance._random import random as random_scores
from hoplon.importance.scores import Scores
from hoplon.stats.intervals import Interval, wilson
from hoplon_studies.aspis.attacks import CHANGES, MILD, THREE_BITS, TWO_BITS, WORST, folder_of, ordered, struck
from hoplon_studies.aspis.subjects import CONVOLUTIONS, LABELS, NO_WEIGHTS, Subject, of_each, stood_for
from hoplon_studies.framework.figures import Figure, Series, bars
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

THRESHOLDS = (0.0, 0.01, 0.05, 0.5, 0.9)
CRITICAL = 0.5
_MAGNITUDE_TOP = 100
_RANDOM, _LARGEST, _SMALLEST, _IMPORTANT, _DAMAGE = "random", "largest", "smallest", "important", "damage"
_NAMES = {
    _RANDOM: "random weights",
    _LARGEST: "weights of the largest magnitudes",
    _SMALLEST: "weights of the smallest magnitudes",
    _IMPORTANT: "most important weights (Taylor)",
    _DAMAGE: "weights of the largest expected damage",
}
_SCORES = {_IMPORTANT: "Taylor", _DAMAGE: "expected damage"}
_PUBLISHED = {_RANDOM: "random", _LARGEST: "magnitude", _IMPORTANT: "importance"}
_FIGURES = {
    "Fig. 6": ("fig6/{}/{}/critical", (_LARGEST, _SMALLEST, _RANDOM), (TWO_BITS,)),
    "Fig. 13": ("fig13/{}/{}", (*_PUBLISHED, _DAMAGE), (TWO_BITS, WORST)),
}
"""Keys of published values, by network and choice of weights; the choices that a figure has; changes on the page."""

_EDGES = (0.0, 0.02, 0.1, 0.5, 0.9, 1.0)
_COUNTED = "faults that misclassify > {:g} % of images"
MODERATE, _MODERATELY = "faults that misclassify 5 to 28 % of images", (0.05, 0.28)
COUNTED, NEAR_ALL = _COUNTED.format(100 * CRITICAL), _COUNTED.format(100 * THRESHOLDS[-1])
"""Settings of rows: moderately critical, critical as on the page, and nearer to the paper's "near 100 percent"."""


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
        return f"{folder_of(self.change)}/{self.which}"


def critical_weights(context: Context) -> Iterator[Finding]:
    """Share of faults that are critical, by how the struck weights are chosen."""
    yield from _of_the_paper(context)
    known = [{"arm": which, "setting": COUNTED} for which in _PUBLISHED]
    yield from of_each(context, _of, lambda subject: [subject.row("Fig. 13", TWO_BITS, **one) for one in known])
    yield _TEXT


def planned(subject: Subject, context: Context) -> Iterator[Attack]:
    """Every change in every choice of weights."""
    counts, seed = context.profile.aspis, context.seed
    sizes = magnitude(subject.program, sites=CONVOLUTIONS)
    scores = {
        _LARGEST: sizes,
        _SMALLEST: Scores({name: -size for name, size in sizes.values.items()}),
        _IMPORTANT: subject.scores(),
        _DAMAGE: subject.damage(),
    }
    numbers = random_scores(subject.program, sites=CONVOLUTIONS, seed=seed)
    for change in (TWO_BITS, THREE_BITS):
        yield Attack(change, _RANDOM, ElementUniform(), counts.faults)
        for which, ranked in scores.items():
            if which != _DAMAGE or change == TWO_BITS:
                few = which in (_LARGEST, _SMALLEST)
                top, count = (
                    (_MAGNITUDE_TOP, counts.magnitude_faults) if few else (counts.important, counts.important_faults)
                )
                places = ordered(ranked, top, seed=seed)[:count]
                yield Attack(change, which, struck(change, places, seed=seed), len(places))
    for change in (WORST, MILD):
        for which, ranked in {_RANDOM: numbers, **scores}.items():
            places = ordered(ranked, numbers.total if which == _RANDOM else counts.important, seed=seed)
            chosen = places[: counts.bit_faults]
            yield Attack(change, which, struck(change, chosen, seed=seed), len(chosen))


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    points: list[tuple[str | float, ...]] = []
    histograms: dict[str, dict[str, Results]] = {TWO_BITS: {}, WORST: {}}
    runs: list[str] = []
    for attack in planned(subject, context):
        campaign = Campaign(
            subject.program,
            subject.met,
            sites=CONVOLUTIONS,
            fault_model=CHANGES[attack.change],
            sampling=attack.sampling,
        )
        runs.append(f"{subject.name}/{attack.folder}")
        results = context.campaign(runs[-1], campaign, count=attack.count)
        yield from _rows(subject, attack, results, context)
        shares = results.critical_share(THRESHOLDS)["share"]
        points.append((_NAMES[attack.which], attack.change, attack.count, *(100 * share for share in shares)))
        if attack.change in histograms:
            histograms[attack.change][_SCORES.get(attack.which, attack.which)] = results
    yield Table(
        f"{subject.title}: share of faults in % that misclassify more than ... of the images",
        ("weights", "flipped", "faults", *(f"> {100 * threshold:g} %" for threshold in THRESHOLDS)),
        tuple(points),
        detail=True,
    )
    yield from (_histogram(subject, change, found) for change, found in histograms.items())
    counts = context.profile.aspis
    yield context.source(
        subject.title,
        fault_model=(
            "bits of one float32 convolution weight are flipped, as the run's folder says, and all eligible ones of "
            f"{len(subject.met):,} held-out images meet the fault; random weights element-uniform, different ones "
            f"where bit 30 is chosen or spared; of the {counts.important} highest scores {counts.important_faults} "
            f"(Taylor and expected damage on {len(subject.known):,} calibration images); of magnitudes "
            f"{counts.magnitude_faults} of {_MAGNITUDE_TOP}; where bit 30 is chosen or spared {counts.bit_faults} of "
            f"{counts.important} each; limits Wilson"
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
    for where, (key, chosen, shown) in _FIGURES.items():
        if attack.which in chosen:
            published = key.format(subject.stands_for, _PUBLISHED.get(attack.which, attack.which))
            paper = context.published.get(published) if attack.change == TWO_BITS else None
            row = subject.row(where, attack.change, paper=paper, arm=attack.which, setting=COUNTED)
            row = replace(row, detail=attack.change not in shown)
            yield row.found(interval, n=count, seed=context.seed)
    if attack.which in _FIGURES["Fig. 13"][1]:
        interval, count = critical_share(results, THRESHOLDS[-1])
        row = subject.row("Fig. 13", attack.change, arm=attack.which, setting=NEAR_ALL, detail=True)
        yield row.found(interval, n=count, seed=context.seed)
    paper = context.published.get(f"fig13/{subject.stands_for}/importance/moderate")
    if paper is not None and attack.which == _IMPORTANT:
        shares = results.per_fault()["failure"]
        row = subject.row("Fig. 13", attack.change, paper=paper, arm=attack.which, setting=MODERATE, detail=True)
        inside = wilson(int(shares.is_between(*_MODERATELY).sum()), len(shares))
        yield row.found(inside, n=len(shares), seed=context.seed)


def _of_the_paper(context: Context) -> Iterator[Row]:
    """The paper's network for which nothing stands in, where that is so."""
    name = "inception_v3"
    for which, key in _PUBLISHED.items() if name not in stood_for(context) else ():
        if (paper := context.published.get(f"fig13/{name}/{key}")) is not None:
            row = Row("Fig. 13", LABELS[name], "ImageNet", TWO_BITS, "%", paper, arm=which, setting=COUNTED)
            yield row.missing(NO_WEIGHTS)


def _histogram(subject: Subject, change: str, found: dict[str, Results]) -> Figure:
    groups = ["none", *(f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise(_EDGES))]
    series = [Series(name, _binned(results)) for name, results in found.items()]
    last = "; ".join(f"{one.name} {one.values[0]:.1f} %" for one in series)
    return bars(
        f"histogram-{folder_of(change)}-{subject.name}",
        title=(
            f"{subject.title}, {change}: share of faults by the share of images they misclassify, by choice of "
            "weights (Fig. 13)"
        ),
        alt=f"Histogram of misclassification; no image: {last}",
        groups=groups,
        series=series,
        y_title="% of faults",
        x_title="images that a fault misclassifies",
    )


def _binned(results: Results) -> tuple[float, ...]:
    """Per cent of the faults that misclassify no image, and a share between two edges each."""
    shares = results.per_fault()["failure"]
    inside = [int(((shares > low) & (shares <= high)).sum()) for low, high in pairwise(_EDGES)]
    return tuple(100 * count / len(shares) for count in (int((shares <= 0).sum()), *inside))


_TEXT = (
    "A fault is *critical* above a threshold of misclassified images that the paper leaves open ('near 100 percent'); "
    "rows take 50 %, tables in the JSON give five thresholds. Columns are choices of weights: random, of the largest "
    "or smallest magnitudes, most important by Taylor score, of the largest expected damage under two bits. Two bits "
    "chosen uniformly of 32 hold bit 30, the top bit of the exponent, with probability 2/32 = 6.25 %, three with "
    "9.4 %. Where only this bit does harm, no choice of weights makes more faults critical than that, and the paper's "
    "65 to 98 % cannot be met. They can where each fault holds it: rows of bit 30 and one more show what the choice "
    "of weights adds; rows without bit 30 are in the JSON."
)
