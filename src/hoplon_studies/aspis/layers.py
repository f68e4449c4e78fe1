"""Protection by layer beside protection by score: of the same faults, what as many protected weights leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.importance._random import random as random_scores
from hoplon.importance.scores import Scores
from hoplon.stats.intervals import Interval, clustered
from hoplon_studies.aspis.attacks import ATTACKED, CHANGES, RANDOM_WEIGHTS, WIDER_WEIGHTS, WORST, ordered, struck
from hoplon_studies.aspis.subjects import CONVOLUTIONS, Subject, of_each
from hoplon_studies.framework.figures import Figure, lines, percent_series
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.study import Context

WHERE = "section IV-A"
LAYERED, RANDOMLY = (f"{which}, {WORST}, images misclassified" for which in (WIDER_WEIGHTS, RANDOM_WEIGHTS))
"""Settings of rows."""

UNPROTECTED, LAYERS, ONE, SCORED = "none", "first layers", "one layer", "by score"
_PROTECTED = (0.01, 0.1)
THIRD, BEST = "the first third of the layers protected", "the layer protected that alone leaves least"


@final
@dataclass(frozen=True)
class Layer:
    """What remains with this layer and all before it protected, with it alone, and with as many weights by score."""

    name: str
    weights: int
    first: Interval
    first_scored: Interval
    alone: Interval
    alone_scored: Interval


def protection_by_layer(context: Context) -> Iterator[Finding]:
    """What remains when layers are protected, one after the other or alone, and as many weights by score."""
    yield from of_each(context, _of, lambda subject: [subject.row(WHERE, _percent(_PROTECTED[0]), setting=LAYERED)])
    yield _TEXT


def in_order(scores: Scores) -> Scores:
    """Scores by which the weights of an earlier layer come first."""
    layers = enumerate(scores.values.items())
    return Scores({name: torch.full_like(score, -float(number)) for number, (name, score) in layers})


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    scores, seed, runs = subject.scores(), context.seed, []
    wider = subject.scores_of_half()
    random = random_scores(subject.program, sites=CONVOLUTIONS, seed=seed)
    attacks = {LAYERED: (wider, wider.count(ATTACKED)), RANDOMLY: (random, random.total)}
    for folder, (setting, (ranked, top)) in zip(("wider", "random"), attacks.items(), strict=True):
        places = ordered(ranked, top, seed=seed)[: context.profile.aspis.compared_faults]
        sampling = struck(WORST, places, seed=seed)
        plan = Campaign(subject.program, subject.met, sites=CONVOLUTIONS, fault_model=CHANGES[WORST], sampling=sampling)
        runs.append(f"{subject.name}/{folder}")
        results = context.campaign(runs[-1], plan, count=len(places))
        found = Protected(results, scores)
        layers = found.layers()
        known: dict[str, Any] = {"failure": True, "setting": setting, "detail": folder != "wider"}
        for what, arms in _lines(found, layers):
            for arm, left in arms.items():
                yield subject.row(WHERE, what, arm=arm, **known).found(left, n=len(places), seed=seed)
        yield _table(f"{subject.title}, {setting}: what remains by layer, in %", layers)
        yield _chart(f"{folder}-{subject.name}", f"{subject.title}, {setting}", layers)
    yield context.source(
        subject.title,
        fault_model=f"{WORST} of one float32 convolution weight, one table of {context.profile.aspis.compared_faults} "
        f"faults without protection, which meet all eligible ones of {len(subject.met):,} held-out images; a fault in "
        "a protected weight fails no image",
        runs=runs,
        seed=seed,
    )


@final
class Protected:
    """Of each struck weight its layer, its place among all weights in the order of layers, and its rank by score."""

    def __init__(self, results: Results, scores: Scores) -> None:
        self._per_fault, self._confidence, self.scores = results.per_fault(), results.confidence, scores
        self.sizes = {name: score.numel() for name, score in scores.values.items()}
        starts = dict(zip(self.sizes, accumulate(self.sizes.values(), initial=0), strict=False))
        flat = torch.cat([score.reshape(-1) for score in scores.values.values()])
        sites, elements = self._per_fault["site"].cast(pl.String).to_list(), self._per_fault["element"].to_list()
        places = [starts[site] + element for site, element in zip(sites, elements, strict=True)]
        self.layer = np.array([list(self.sizes).index(site) for site in sites])
        self.place = np.array(places)
        # as Scores.top has it: equal scores go by their places
        self.rank = np.array([int((flat > flat[at]).sum() + (flat[:at] == flat[at]).sum()) for at in places])

    def left(self, exposed: NDArray[np.bool_] | bool = True) -> Interval:
        """The share of images that faults in exposed weights misclassify, mean over all faults."""
        shares, sizes = self._per_fault["failure"].to_numpy(), self._per_fault["n_inputs"].to_numpy()
        return clustered(shares * exposed, sizes, confidence=self._confidence)

    def layers(self) -> list[Layer]:
        """Every layer."""
        found = []
        for number, (name, size) in enumerate(self.sizes.items()):
            up_to = sum(list(self.sizes.values())[: number + 1])
            kept = (self.layer > number, self.rank >= up_to, self.layer != number, self.rank >= size)
            found.append(Layer(name.removesuffix(".weight"), size, *map(self.left, kept)))
        return found


def _lines(struck: Protected, layers: Sequence[Layer]) -> Iterator[tuple[str, Mapping[str, Interval]]]:
    """Lines of the table: what is protected, and by arm what remains."""
    none = {UNPROTECTED: struck.left()}
    for share in _PROTECTED:
        count = struck.scores.count(share)
        ways = {LAYERS: struck.place >= count, SCORED: struck.rank >= count}
        yield _percent(share), none | {arm: struck.left(exposed) for arm, exposed in ways.items()}
    third = layers[-(-len(layers) // 3) - 1]
    yield THIRD, none | {LAYERS: third.first, SCORED: third.first_scored}
    best = min(layers, key=lambda layer: layer.alone.estimate)
    yield BEST, none | {ONE: best.alone, SCORED: best.alone_scored}


def _percent(share: float) -> str:
    return f"{100 * share:g} % of the weights protected"


def _table(title: str, layers: Sequence[Layer]) -> Table:
    ways = ("up to it", "as many weights by score", "it alone", "as many weights as it has by score")
    rows: list[tuple[str | float, ...]] = []
    for one in layers:
        left = (one.first, one.first_scored, one.alone, one.alone_scored)
        ends = (100 * end for way in left for end in (way.estimate, way.low, way.high))
        rows.append((one.name, one.weights, *ends))
    limits = (f"{way}{end}" for way in ways for end in ("", ", low", ", high"))
    return Table(title, ("layer", "weights", *limits), tuple(rows), detail=True)


def _chart(name: str, title: str, layers: Sequence[Layer]) -> Figure:
    series = [
        percent_series("up to this layer", [layer.first for layer in layers]),
        percent_series("as many weights by score", [layer.first_scored for layer in layers]),
        percent_series("this layer alone", [layer.alone for layer in layers]),
        percent_series("as many as it has by score", [layer.alone_scored for layer in layers]),
    ]
    at = -(-len(layers) // 3) - 1
    ends = "; ".join(f"{one.name} {one.values[at]:.3g} %" for one in series)
    return lines(
        name,
        title=f"{title}: what remains when layers are protected, and as many weights by score",
        alt=f"Images misclassified by protected layers; layer {at + 1} of {len(layers)}: {ends}",
        x=range(1, len(layers) + 1),
        series=series,
        x_title="layer, in the order of the network",
        y_title="% of images, mean over faults",
    )


_TEXT = (
    "Of one campaign without protection: a fault in a protected weight fails no image. *First layers*: the weights of "
    "earlier layers first, up to a share of the weights or a third of the layers; *one layer*: the one that leaves "
    "least; *by score*: as many weights, by Taylor scores on all calibration images."
)
