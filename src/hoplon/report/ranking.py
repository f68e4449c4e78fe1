"""``hoplon rank``'s figures: important weights by layer, and a map of layer x weight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from hoplon.errors import Fraction, checked
from hoplon.files import write_atomically
from hoplon.report.figures import Figure, Spec
from hoplon.report.page import from_template, script_safe


@checked
def by_layer_figure(frame: pl.DataFrame, *, fraction: Fraction) -> Figure:
    """Bars by layer of the most and of the least important weights.

    Args:
        frame: from :func:`hoplon.importance.by_layer`.
        fraction: for the legend.
    Source:
        Aspis, figures 8, 10 and 12.
    """
    layers = frame["layer"].to_list()
    traces: list[Spec] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": layers,
            "x": [100 * share for share in frame[f"{end}_share"]],
            "customdata": [100 * (share or 0) for share in frame[f"{end}_of_layer"]],
            "hovertemplate": "%{y}: %{x:.2f} % of them, %{customdata:.2f} % of the layer<extra></extra>",
            "name": f"{end} {100 * fraction:g} %",
        }
        for end in ("top", "bottom")
    ]
    layout = {"barmode": "group", **_layers_by("share of these weights, %")}
    worst = frame.sort("top_share", descending=True).head(3)
    alt = "Important weights by layer. Most: " + "; ".join(
        f"{layer} {100 * share:.1f} %" for layer, share in zip(worst["layer"], worst["top_share"], strict=True)
    )
    height = 80 + 26 * max(frame.height, 5)
    shares = zip(layers, frame["top_share"], frame["bottom_share"], strict=True)
    values = [(layer, f"top {100 * top:.2f} %, bottom {100 * bottom:.2f} %") for layer, top, bottom in shares]
    title = f"Top and bottom {100 * fraction:g} % by layer"
    return Figure(title, alt, {"data": traces, "layout": layout}, height, values)


@checked
def heat_map_figure(frame: pl.DataFrame) -> Figure:
    """The map of layer x weight, coloured by the rank of the highest score in a cell.

    Args:
        frame: from :func:`hoplon.importance.heat_map`.
    Source:
        Aspis, figures 7, 9 and 11, which colour by the score; ranks show more than the few highest.
    """
    layers = frame["layer"].unique(maintain_order=True).to_list()
    rows = [frame.filter(pl.col("layer") == layer) for layer in layers]
    width = max(part.height for part in rows)
    ranks = [[100 * rank for rank in part["rank"]] + [None] * (width - part.height) for part in rows]
    trace: Spec = {
        "type": "heatmap",
        "z": ranks,
        "y": layers,
        "zmin": 0,
        "zmax": 100,
        "colorscale": "Blues",
        "colorbar": {"title": {"text": "rank, %"}},
        "hovertemplate": "%{y}, stretch %{x}: no weight ranks above %{z:.1f} %<extra></extra>",
    }
    layout = _layers_by("stretch of weights of the layer")
    alt = f"Map of the highest rank in each stretch of weights, {len(layers)} layers"
    values = [
        (
            layer,
            f"highest rank {max(100 * rank for rank in part['rank']):.1f} %, lowest of a stretch "
            f"{min(100 * rank for rank in part['rank']):.1f} %",
        )
        for layer, part in zip(layers, rows, strict=True)
    ]
    height = 80 + 20 * max(len(layers), 5)
    return Figure("Scores by layer and weight", alt, {"data": [trace], "layout": layout}, height, values)


@checked
def write_ranking(path: str | os.PathLike[str], title: str, figures: Sequence[Figure]) -> Path:
    """One page with these figures that opens offline, written whole or not at all.

    Raises:
        StoreError: the folder is not writable.
    """
    target = Path(path)
    specs = script_safe([figure.spec for figure in figures])
    write_atomically(target, from_template("ranking.html.j2", title=title, plots=list(map(vars, figures)), specs=specs))
    return target


def _layers_by(quantity: str) -> Spec:
    """The layout of layers, the first on top, against a quantity."""
    return {
        "xaxis": {"title": {"text": quantity}},
        "yaxis": {"type": "category", "autorange": "reversed"},
        "margin": {"l": 150, "r": 20, "t": 10, "b": 48},
    }
