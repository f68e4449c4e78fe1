"""Figures 7 to 12: where the important weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl
import torch

from hoplon.importance.analysis import by_layer
from hoplon.importance.scores import Scores
from hoplon_studies.aspis.subjects import LABELS, NO_WEIGHTS, Absent, Subject, of_each
from hoplon_studies.framework.figures import MANY_LABELS, Figure, Series, bars, heatmap
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

TOP = 0.01
"""The share of the weights that counts as important."""

_CELLS = 48
_MAPS = {"vgg19": ("Fig. 7", "Fig. 8"), "inception_v3": ("Fig. 9", "Fig. 10"), "resnet50": ("Fig. 11", "Fig. 12")}

FIRST = "weights of the first convolution that are among the top 1 % (Taylor)"
EARLY = "weights of the top 1 % that lie in the first third of the convolutions"
HELD = "sum of all scores that the top 1 % of the weights hold"


def important_weights(context: Context) -> Iterator[Finding]:
    """The share of important weights by layer, as rows, tables, bars and heat maps."""
    yield from _of_the_paper(context)
    yield from of_each(context, _of, lambda subject: [subject.row(_maps(subject)[1], FIRST)])


def _maps(subject: Subject | Absent) -> tuple[str, str]:
    """The figures of the paper beside which a network stands."""
    return _MAPS.get(subject.stands_for, _MAPS["vgg19"])


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    scores = subject.scores()
    layers = by_layer(scores, TOP)
    map_, where = _maps(subject)
    paper = context.published.get(f"fig8/{subject.stands_for}/cifar10/first-layer")
    yield subject.row(where, FIRST, paper=paper, here=100 * layers["top_of_layer"][0])
    early = 100 * float(layers["top_share"][: -(-layers.height // 3)].sum())
    yield subject.row(where, EARLY, here=early, n=scores.count(TOP))
    yield subject.row(where, HELD, here=100 * _held(scores), n=scores.total)
    yield _table(subject, layers)
    yield from (_bars(subject, layers, where), _map(subject, scores, map_))
    yield context.source(
        subject.title,
        fault_model=f"none; Taylor scores, (gradient x weight)^2 summed over batches of 64 of {scores.n_samples:,} "
        "calibration images",
        seed=context.seed,
    )


def _held(scores: Scores) -> float:
    """The share of the sum of all scores that the most important weights hold."""
    top = scores.top(TOP)
    held = sum(float(scores[name].reshape(-1)[chosen].double().sum()) for name, chosen in top.items())
    return held / sum(float(score.double().sum()) for score in scores.values.values())


def _table(subject: Subject, layers: pl.DataFrame) -> Table:
    shown = layers.with_columns(pl.col("top_of_layer", "bottom_of_layer") * 100)
    rows = tuple(shown.select("layer", "weights", "top", "top_of_layer", "bottom", "bottom_of_layer").iter_rows())
    columns = ("layer", "weights", "in the top 1 %", "% of the layer", "in the bottom 1 %", "% of the layer")
    return Table(f"{subject.title}: important weights by layer", columns, rows, detail=True)


def _bars(subject: Subject, layers: pl.DataFrame, where: str) -> Figure:
    series = [Series(f"{name} 1 %", tuple(map(float, layers[name]))) for name in ("top", "bottom")]
    most = layers.sort("top", descending=True).row(0, named=True)
    return bars(
        f"layers-{subject.name}",
        title=f"{subject.title}: most and least important weights by layer ({where})",
        alt=f"Most of the top 1 % in one layer: {most['layer']}, {most['top']} weights",
        groups=[name.removesuffix(".weight") for name in layers["layer"].to_list()],
        series=series,
        y_title="weights",
        log_y=True,
    )


def _map(subject: Subject, scores: Scores, where: str) -> Figure:
    every = -(-len(scores.values) // MANY_LABELS)
    names = [f"{number}: {name.removesuffix('.weight')}" for number, name in enumerate(scores.values, 1)]
    told = "" if every == 1 else f"; one of {every} layers named"
    return heatmap(
        f"map-{subject.name}",
        title=f"{subject.title}: share of each stretch of a layer's weights that is in the top 1 % ({where}){told}",
        alt="Heat map of important weights, layers from left to right, weights from top to bottom",
        columns=_shares(scores),
        x_labels=names,
        y_title="weights, in their order",
        ends=("none in the top 1 %", "all"),
    )


def _shares(scores: Scores) -> list[list[float]]:
    """By layer, of each of some equal stretches of its weights the share in the top 1 %; a small layer has fewer."""
    columns = []
    for name, chosen in scores.top(TOP).items():
        important = torch.zeros(scores[name].numel())
        important[chosen.cpu()] = 1
        stretches = important.tensor_split(min(_CELLS, len(important)))
        columns.append([float(stretch.mean()) for stretch in stretches])
    return columns


def _of_the_paper(context: Context) -> Iterator[Row]:
    key = "fig8/vgg19/imagenet/first-layer"
    yield Row("Fig. 8", "VGG19", "ImageNet", FIRST, "%", paper=context.published[key], why=NO_WEIGHTS)
    paper = context.published["fig10/inception_v3"]
    row = Row("Fig. 10", LABELS["inception_v3"], "ImageNet", "where the top 1 % lies", paper=paper, why=NO_WEIGHTS)
    yield replace(row, detail=True)
