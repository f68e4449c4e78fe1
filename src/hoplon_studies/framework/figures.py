"""Figures of a study's page as files that any viewer shows: charts in SVG, pictures in PNG, by matplotlib.

The same input gives the same bytes under the same version of matplotlib, which the extra ``studies`` installs.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Floats = NDArray[np.float64]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "hoplon",  # names inside of the file, otherwise random
    "svg.fonttype": "none",  # text as text
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.edgecolor": "#374151",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#e5e7eb",
}
_SIZE = (7.9, 3.7)  # inches, of a chart without what stands below it
_COLOURS = (
    *("#2a78b5", "#d1603d", "#4c9a57", "#8661a8", "#a98b2d", "#6b7280", "#c2497e", "#3b9aa5"),
    *("#8fc1e8", "#f0b39e", "#a5d6ad", "#c9b3de", "#dcc883", "#c3c8cf", "#e8a8c5", "#9fd3da"),  # the same, lighter
)
_SHADES = ("#dbeafe", "#fde68a", "#dc2626")
MANY_LABELS, _ALL_LABELS = (
    24,
    90,
)  # so many long names, and so many characters side by side


def _from_base64(content: Any) -> Any:
    return base64.b64decode(content, validate=True) if isinstance(content, str) else content


@final
@dataclass(frozen=True)
class Figure:
    """One figure as a file: ``name`` (its file's, lower case), ``title`` under it, ``alt`` in words, and its content.

    Raises:
        HoplonError: a name that is no file name.
    """

    name: str
    title: str
    alt: str
    content: Annotated[bytes, BeforeValidator(_from_base64)]
    suffix: Literal["svg", "png"] = "svg"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise HoplonError(f"expected a figure name of a-z, 0-9 and '-', got {self.name!r}")


@final
@dataclass(frozen=True)
class Series:
    """Values under one name, in the order of the groups or of x; None where there is none. Limits draw an interval."""

    name: str
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def points(self, places: Sequence[float]) -> tuple[Floats, Floats, tuple[Floats, Floats] | None]:
        """Places and values where there are values, and how far their limits are below and above, NaN if unknown."""
        values, low, high = (np.array(part or self.values, np.float64) for part in (self.values, self.low, self.high))
        known = np.isfinite(values)
        limits = (np.maximum(values - low, 0)[known], np.maximum(high - values, 0)[known]) if self.low else None
        return np.array(places)[known], values[known], limits


def percent_series(name: str, rates: Sequence[Interval], *, at_least: float = -math.inf) -> Series:
    """Rates and their limits in per cent; what is below ``at_least`` is drawn there."""
    ends = ((one.estimate, one.low, one.high) for one in rates)
    return Series(name, *zip(*(tuple(max(100 * end, at_least) for end in one) for one in ends), strict=True))


@contextmanager
def drawing(content: io.BytesIO, *, width: float, height: float) -> Iterator[Drawing]:
    """An empty drawing of a size in inches, which becomes an SVG file in ``content``.

    Raises:
        HoplonError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise HoplonError(f"expected matplotlib to draw figures, got {error}; pip install 'hoplon[studies]'") from error
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own settings change no figure
        mpl.rcParams.update(_STYLE)
        figure = Drawing(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})


def bars(
    name: str,
    *,
    title: str,
    alt: str,
    groups: Sequence[str],
    series: Sequence[Series],
    y_title: str,
    x_title: str = "",
    log_y: bool = False,
) -> Figure:
    """Bars side by side in every group, with their intervals.

    Args:
        log_y: a logarithmic axis, on which values of 0 stand at the lower end.
    Raises:
        HoplonError: no group or series, or a series of another length than the groups; matplotlib is not installed.
    """
    _check(groups, series)
    width = 0.8 / len(series)
    with _chart(series, x_title, y_title, log_y=log_y) as (axes, content):
        base = axes.get_ylim()[0] if log_y else 0.0
        for number, one in enumerate(series):
            centres = [at + (number + 0.5) * width - 0.4 for at in range(len(groups))]
            places, values, limits = one.points(centres)
            heights = np.maximum(values - base, 0.0)
            axes.bar(places, heights, width * 0.92, base, color=_COLOURS[number % len(_COLOURS)], label=one.name)
            if limits is not None:
                axes.errorbar(places, values, limits, fmt="none", ecolor="#374151", elinewidth=1.2, capsize=3)
        axes.margins(x=0.01)
        _label_groups(axes, groups)
    return Figure(name, title, alt, content.getvalue())


def lines(
    name: str,
    *,
    title: str,
    alt: str,
    x: Sequence[float],
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    log_x: bool = False,
) -> Figure:
    """Points joined by lines, with their intervals.

    Raises:
        HoplonError: no x or series, or a series of another length than x; matplotlib is not installed.
    """
    _check(x, series)
    with _chart(series, x_title, y_title) as (axes, content):
        for number, one in enumerate(series):
            places, values, limits = one.points(x)
            colour = _COLOURS[number % len(_COLOURS)]
            axes.errorbar(places, values, limits, fmt="o-", ms=4, color=colour, capsize=3, label=one.name)
        if log_x:
            axes.set_xscale("log")
    return Figure(name, title, alt, content.getvalue())


def against(
    name: str, *, title: str, alt: str, points: Mapping[str, Sequence[tuple[float, float, float, float, bool]]]
) -> Figure:
    """Published figures and those found here on logarithmic axes; on the diagonal the two are equal.

    Args:
        points: by unit, each as published, found, lower and upper limit, and whether a network stands in, which makes
            the mark hollow. What is found to be 0 stands at the lower end.
    Raises:
        HoplonError: no point; matplotlib is not installed.
    """
    every = [point for group in points.values() for point in group]
    if not every:
        raise HoplonError("expected something to draw, got no point")
    found = [value for point in every for value in point[:2] if value > 0]
    low, high = 10 ** math.floor(math.log10(min(found)) - 0.3), 10 ** math.ceil(math.log10(max(found)) + 0.1)
    content = io.BytesIO()
    with drawing(content, width=_SIZE[0], height=_SIZE[1] + 1) as figure:
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color="#9ca3af", linewidth=1)
        for number, (unit, group) in enumerate(points.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            for place, (paper, here, lower, upper, hollow) in enumerate(group):
                value, down = max(here, low), max(lower, low)
                axes.errorbar(
                    [paper],
                    [value],
                    [[max(value - down, 0)], [max(upper - value, 0)]],
                    fmt="o",
                    ms=5,
                    color=colour,
                    markerfacecolor="white" if hollow else colour,
                    elinewidth=1,
                    label=unit if not place else None,
                )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="paper", ylabel="here")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return Figure(name, title, alt, content.getvalue())


def heatmap(
    name: str,
    *,
    title: str,
    alt: str,
    columns: Sequence[Sequence[float | None]],
    x_labels: Sequence[str],
    y_title: str,
    ends: tuple[str, str] | None = None,
) -> Figure:
    """Columns of cells from light (0) to dark (1), the first cell on top; a column of fewer cells has taller ones.

    Args:
        columns: values in [0, 1], one column per label.
        ends: what the lightest and the darkest cells are, for a scale below; without it there is none.
    Raises:
        HoplonError: no column, or as many labels as there are not; matplotlib is not installed.
    """
    if not columns or len(columns) != len(x_labels):
        raise HoplonError(f"expected a label for each column, got {len(x_labels)} for {len(columns)}")
    content = io.BytesIO()
    with drawing(content, width=_SIZE[0], height=_SIZE[1]) as figure:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("shares", _SHADES)
        axes = figure.subplots()
        for number, column in enumerate(columns):
            cells = np.array(column, np.float64)[:, None]
            box = (number - 0.5, number + 0.5, 1, 0)
            image = axes.imshow(cells, colours, vmin=0, vmax=1, extent=box, aspect="auto", interpolation="none")
        axes.set(ylabel=y_title, yticks=[], xlim=(-0.5, len(columns) - 0.5))
        _label_groups(axes, x_labels)
        if ends is not None:
            scale = figure.colorbar(image, ax=axes, location="bottom", shrink=0.3, aspect=25, ticks=[0, 1])
            scale.set_ticklabels([ends[0], ends[1]])
    return Figure(name, title, alt, content.getvalue())


def picture(name: str, *, title: str, alt: str, pixels: Tensor) -> Figure:
    """A picture as it is.

    Args:
        pixels: shape ``(height, width, 3)``, uint8, RGB.
    Raises:
        HoplonError: another shape or dtype, or Pillow is not installed.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise HoplonError(
            f"expected uint8 pixels of shape (height, width, 3), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise HoplonError(f"expected Pillow to write pictures, got {error}; pip install 'hoplon[studies]'") from error
    content = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(content, "PNG", optimize=True)
    return Figure(name, title, alt, content.getvalue(), "png")


@contextmanager
def _chart(
    series: Sequence[Series], x_title: str, y_title: str, *, log_y: bool = False
) -> Iterator[tuple[Axes, io.BytesIO]]:
    """Axes to draw series on, and the file that they are in afterwards; a legend below where there are several."""
    content = io.BytesIO()
    rows = -(-len(series) // 4) if len(series) > 1 else 0
    with drawing(content, width=_SIZE[0], height=_SIZE[1] + 0.2 * rows) as figure:
        axes = figure.subplots()
        axes.set(xlabel=x_title, ylabel=y_title)
        axes.grid(axis="y")
        if log_y:
            axes.set(yscale="log", ylim=_decades(series))
        yield axes, content
        if not log_y:
            axes.set_ylim(bottom=min([0.0, *_values(series)]))
        if rows:
            figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _values(series: Sequence[Series]) -> list[float]:
    return [value for one in series for part in (one.values, one.low, one.high) for value in part if value is not None]


def _decades(series: Sequence[Series]) -> tuple[float, float]:
    """Whole decades that hold all positive values."""
    positive = [value for value in _values(series) if value > 0]
    first = math.floor(math.log10(min(positive, default=0.1)))
    last = max(math.ceil(math.log10(max(positive, default=1.0))), first + 1)
    return 10.0**first, 10.0**last


def _label_groups(axes: Axes, labels: Sequence[str]) -> None:
    """Names under groups, upright where they fit side by side; of very many, a part."""
    fit = len(labels) * max(map(len, labels)) <= _ALL_LABELS
    every = 1 if fit else -(-len(labels) // MANY_LABELS)
    shown = labels[::every]
    if len(shown) * max(map(len, shown)) <= _ALL_LABELS:
        axes.set_xticks(range(0, len(labels), every), shown)
    else:
        axes.set_xticks(range(0, len(labels), every), shown, rotation=40, ha="right", rotation_mode="anchor")


def _check(places: Sequence[object], series: Sequence[Series]) -> None:
    if not places or not series:
        raise HoplonError(f"expected something to draw, got {len(places)} places and {len(series)} series")
    for one in series:
        if len(one.values) != len(places) or not {len(one.low), len(one.high)} <= {0, len(places)}:
            raise HoplonError(f"expected {len(places)} values in the series {one.name!r}, got {len(one.values)}")
