"""Figures 7 to 12: where the important weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl
import torch
import torch.nn.functional as F

from hoplon.importance._taylor import taylor
from hoplon.importance.analysis import by_layer, heat_map, overlap
from hoplon.importance.scores import Scores
from hoplon_studies.aspis.subjects import CONVOLUTIONS, LABELS, NO_WEIGHTS, Absent, Subject, of_each
from hoplon_studies.framework.figures import Figure, Series, bars, heatmap
from hoplon_studies.framework.findings import Findings, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

_FRACTION = 0.01
_CELLS = 48
_MAPS = {"vgg19": ("Fig. 7", "Fig. 8"), "inception_v3": ("Fig. 9", "Fig. 10"), "resnet50": ("Fig. 11", "Fig. 12")}


def important_weights(context: Context) -> Findings:
    """The share of important weights by layer, as rows, tables, bars and heat maps."""
    return of_each(context, Findings(rows=tuple(_of_the_paper(context))), _of, _absent)


def _absent(subject: Absent) -> list[Row]:
    return [subject.row(_MAPS[subject.stands_for][1], _FIRST)]


_FIRST = "weights of the first convolution that are among the top 1 % (Taylor)"


def _of(subject: Subject, context: Context) -> Findings:
    scores = subject.scores()
    layers = by_layer(scores, _FRACTION)
    map_, where = _MAPS.get(subject.stands_for, ("Fig. 7", "Fig. 8"))
    paper = context.published.get(f"fig8/{subject.stands_for}/cifar10/first-layer")
    why = f"stands in for {LABELS[subject.stands_for]} on CIFAR-10" if subject.stands_for else ""
    third = -(-layers.height // 3)
    first = subject.row(where, _FIRST, paper=paper, why=why)
    what = "weights of the top 1 % that lie in the first third of the convolutions"
    early = subject.row(where, what, paper=context.published.get(f"fig12/{subject.stands_for}"), why=why)
    what = "sum of all scores that the top 1 % of the weights hold"
    held = subject.row(map_, what, paper=context.published["fig7/importance"] if subject.stands_for else None, why=why)
    rows = (
        replace(first, here=100 * layers["top_of_layer"][0]),
        replace(early, here=100 * float(layers["top_share"][:third].sum()), n=scores.count(_FRACTION)),
        _agreement(subject, why),
        replace(held, here=100 * _held(scores), n=scores.total),
    )
    source = context.source(
        f"{subject.label} on {subject.data}",
        fault_model=f"none; Taylor scores, (gradient x weight)^2 summed over batches of 64 of {scores.n_samples:,} "
        "calibration images",
        seed=context.seed,
    )
    return Findings(
        rows=rows,
        tables=(_table(subject, layers),),
        figures=(_bars(subject, layers, where), _map(subject, scores, map_)),
        sources=(source,),
    )


def _held(scores: Scores) -> float:
    """The share of the sum of all scores that the most important weights hold."""
    top = scores.top(_FRACTION)
    held = sum(float(scores[name].reshape(-1)[chosen].double().sum()) for name, chosen in top.items())
    return held / sum(float(score.double().sum()) for score in scores.values.values())


def _agreement(subject: Subject, why: str) -> Row:
    """Row about the agreement of the top 1 % between two halves of the calibration data."""
    half = len(subject.known) // 2
    parts = {
        name: taylor(
            subject.program, subject.known.take(torch.arange(*limits)), loss=F.cross_entropy, sites=CONVOLUTIONS
        )
        for name, limits in (("first", (0, half)), ("second", (half, 2 * half)))
    }
    share = float(overlap(parts, _FRACTION)["share"][0])
    what = "weights of the top 1 % that another sample of the same data also puts there"
    return replace(subject.row("section IV-A", what, why=why), here=100 * share, n=half)


def _table(subject: Subject, layers: pl.DataFrame) -> Table:
    shown = layers.with_columns(pl.col("top_of_layer", "bottom_of_layer") * 100)
    rows = tuple(shown.select("layer", "weights", "top", "top_of_layer", "bottom", "bottom_of_layer").iter_rows())
    columns = ("layer", "weights", "in the top 1 %", "% of the layer", "in the bottom 1 %", "% of the layer")
    return Table(f"{subject.label} on {subject.data}: important weights by layer", columns, rows)


def _bars(subject: Subject, layers: pl.DataFrame, where: str) -> Figure:
    series = [
        Series(f"{name} 1 %", tuple(float(count) for count in layers[name].to_list())) for name in ("top", "bottom")
    ]
    most = layers.sort("top", descending=True).row(0, named=True)
    return bars(
        f"layers-{subject.name}",
        title=f"{subject.label} on {subject.data}: most and least important weights by layer ({where})",
        alt=f"Most of the top 1 % in one layer: {most['layer']}, {most['top']} weights",
        groups=[name.removesuffix(".weight") for name in layers["layer"].to_list()],
        series=series,
        y_title="weights",
    )


def _map(subject: Subject, scores: Scores, where: str) -> Figure:
    cells = heat_map(scores, cells=_CELLS)
    columns = [part["rank"].to_list() for part in cells.partition_by("layer", maintain_order=True)]
    shares = [[max(0.0, (rank - 0.9) * 10) for rank in column] for column in columns]
    names = [name.removesuffix(".weight") for name in scores.values]
    return heatmap(
        f"map-{subject.name}",
        title=f"{subject.label} on {subject.data}: highest score in each stretch of a layer's weights ({where})",
        alt="Heat map of importance, layers from left to right, weights from top to bottom",
        columns=shares,
        x_labels=names,
        y_title="weights, in their order",
        ends=("within the lower 90 % of all scores", "the highest of all"),
    )


def _of_the_paper(context: Context) -> Iterator[Row]:
    key = "fig8/vgg19/imagenet/first-layer"
    yield Row("Fig. 8", "VGG19", "ImageNet", _FIRST, "%", paper=context.published[key], why=NO_WEIGHTS)
    for where in ("Fig. 9", "Fig. 10"):
        paper = context.published["fig10/inception_v3"]
        yield Row(where, "Inception v3", "ImageNet", "where the top 1 % lies", paper=paper, why=NO_WEIGHTS)
