"""Figures 6 and 13: which choice of weights finds critical ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform, TopScore
from hoplon.faults.sampling.plans import Explicit
from hoplon.faults.single_word import BitFlip
from hoplon.importance._magnitude import magnitude
from hoplon.importance.scores import Scores
from hoplon.stats.intervals import Interval
from hoplon_studies.aspis.subjects import CONVOLUTIONS, LABELS, NO_WEIGHTS, Absent, Subject, of_each
from hoplon_studies.framework.figures import Figure, Series, bars
from hoplon_studies.framework.findings import Findings, Source, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

BITS = (2, 3)
THRESHOLDS = (0.0, 0.01, 0.05, 0.5, 0.9)
CRITICAL = 0.5
WORST_BIT = 30
_MAGNITUDE_TOP = 100
_RANDOM, _LARGEST, _SMALLEST, _IMPORTANT = "random", "largest", "smallest", "important"
_NAMES = {
    _RANDOM: "random weights",
    _LARGEST: "weights of the 100 largest magnitudes",
    _SMALLEST: "weights of the 100 smallest magnitudes",
    _IMPORTANT: "most important weights (Taylor)",
}
_PUBLISHED = {_RANDOM: "random", _LARGEST: "magnitude", _IMPORTANT: "importance"}
_FIGURES = {"Fig. 6": (_LARGEST, _SMALLEST, _RANDOM), "Fig. 13": (_RANDOM, _LARGEST, _IMPORTANT)}


@final
@dataclass(frozen=True)
class Attack:
    """Weights and bits that are struck: ``which`` weights, how many faults, which change."""

    which: str
    fault_model: BitFlip
    sampling: Sampling = field(repr=False)
    count: int

    @property
    def bits(self) -> str:
        """The change in words."""
        chosen = self.fault_model.bits
        return f"{self.fault_model.count} bits of 32" if chosen is None else f"bit {chosen[0]}"

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        change = f"{self.fault_model.count}-bits" if self.fault_model.bits is None else "bit-30"
        return f"{change}/{self.which}"


def critical_weights(context: Context) -> Findings:
    """Share of faults that are critical, by how the struck weights are chosen."""
    return of_each(context, Findings(rows=tuple(_absent(context)), text=_TEXT), _of, _without)


def ordered(scores: Scores, count: int, *, seed: int) -> list[tuple[str, int]]:
    """The weights with the ``count`` highest scores, in an order drawn by the seed."""
    top = TopScore(scores.values, count=min(count, scores.total)).chosen
    places = [(site, element) for site, elements in top.items() for element in elements.tolist()]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    return [places[number] for number in order.tolist()]


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
    for bits in BITS:
        yield Attack(_RANDOM, BitFlip(bits), ElementUniform(), counts.faults)
        for which, places in listed.items():
            yield Attack(which, BitFlip(bits), Explicit(places), len(places))
    few = listed[_IMPORTANT][: counts.magnitude_faults]
    yield Attack(_RANDOM, BitFlip(bits=(WORST_BIT,)), ElementUniform(), counts.magnitude_faults)
    yield Attack(_IMPORTANT, BitFlip(bits=(WORST_BIT,)), Explicit(few), len(few))


def _of(subject: Subject, context: Context) -> Findings:
    rows: list[Row] = []
    points: list[tuple[str | float, ...]] = []
    histograms: dict[str, Results] = {}
    runs: list[str] = []
    for attack in attacks(subject, context):
        campaign = Campaign(
            subject.program,
            subject.met,
            sites=CONVOLUTIONS,
            fault_model=attack.fault_model,
            sampling=attack.sampling,
        )
        runs.append(f"{subject.name}/{attack.folder}")
        results = context.campaign(runs[-1], campaign, count=attack.count)
        rows += _rows(subject, attack, results, context)
        shares = results.critical_share(THRESHOLDS)
        points.append((_NAMES[attack.which], attack.bits, attack.count, *(100 * share for share in shares["share"])))
        if attack.fault_model.bits is None and attack.fault_model.count == BITS[0]:
            histograms[_NAMES[attack.which]] = results
    table = Table(
        f"{subject.label} on {subject.data}: share of faults in % that misclassify more than ... of the images",
        ("weights", "flipped", "faults", *(f"> {100 * threshold:g} %" for threshold in THRESHOLDS)),
        tuple(points),
    )
    return Findings(
        rows=tuple(rows),
        tables=(table,),
        figures=(_histogram(subject, histograms),),
        sources=(_source(subject, runs, context),),
    )


def critical_share(results: Results, threshold: float) -> tuple[Interval, int]:
    """The share of faults that misclassify more than a share of the images, and how many faults there are."""
    share = results.critical_share((threshold,)).row(0, named=True)
    return Interval(share["share"], share["share_low"], share["share_high"], 0.95, "wilson"), share["n_faults"]


def _rows(subject: Subject, attack: Attack, results: Results, context: Context) -> Iterator[Row]:
    interval, count = critical_share(results, CRITICAL)
    what = f"{_NAMES[attack.which]}, {attack.bits}: faults that misclassify > {100 * CRITICAL:g} % of images"
    for where, chosen in _FIGURES.items():
        if attack.which not in chosen:
            continue
        paper = None
        if attack.fault_model.bits is None and attack.fault_model.count == BITS[0]:
            paper = context.published.get(_key(where, subject.stands_for, attack.which))
        yield subject.row(where, what, paper=paper).found(interval, n=count, seed=context.seed)


def _key(where: str, model: str, which: str) -> str:
    if where == "Fig. 6":
        return f"fig6/{model}/{_PUBLISHED.get(which, which)}/critical"
    return f"fig13/{model}/{_PUBLISHED.get(which, which)}"


def _absent(context: Context) -> Iterator[Row]:
    """The paper's own networks."""
    for name, label in LABELS.items():
        for which in (_RANDOM, _LARGEST, _IMPORTANT):
            paper = context.published.get(f"fig13/{name}/{_PUBLISHED[which]}")
            what = f"{_NAMES[which]}, 2 bits of 32: critical faults"
            if paper is not None:
                yield Row("Fig. 13", label, "ImageNet", what, "%", paper=paper, why=NO_WEIGHTS)


def _without(subject: Absent) -> Iterator[Row]:
    for which in (_RANDOM, _LARGEST, _IMPORTANT):
        what = f"{_NAMES[which]}, 2 bits of 32: faults that misclassify > {100 * CRITICAL:g} % of images"
        yield subject.row("Fig. 13", what)


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
        title=f"{subject.label} on {subject.data}, two bits of 32: share of faults by the share of images they "
        "misclassify (Fig. 13)",
        alt=f"Histogram of misclassification; above 90 %: {last}",
        groups=groups,
        series=series,
        y_title="% of faults",
        x_title="images that a fault misclassifies",
        log_y=True,
    )


def _source(subject: Subject, runs: Sequence[str], context: Context) -> Source:
    counts = context.profile.aspis
    return context.source(
        f"{subject.label} on {subject.data}",
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


_TEXT = (
    "A fault is *critical* above a threshold of misclassified images that the paper leaves open ('near 100 percent'); "
    "rows take 50 %, the tables give five thresholds. Two bits chosen uniformly of 32 hold bit 30, the top bit of the "
    "exponent, with probability 2/32 = 6.25 %, three with 9.4 %: where only this bit does harm, no choice of weights "
    "makes more faults critical than that. Rows of bit 30 alone show what the choice of weights adds.",
)
