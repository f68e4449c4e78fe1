"""Figures of a study's page as files that any viewer shows: charts in SVG, pictures in PNG.

plotly draws in a browser only, and a page of documentation has none; the same input gives the same bytes here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon_studies.framework import svg
from hoplon_studies.framework.svg import Axis, Canvas

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_COLOURS = (
    *("#2a78b5", "#d1603d", "#4c9a57", "#8661a8", "#a98b2d", "#6b7280", "#c2497e", "#3b9aa5"),
    *("#8fc1e8", "#f0b39e", "#a5d6ad", "#c9b3de", "#dcc883", "#c3c8cf", "#e8a8c5", "#9fd3da"),  # the same, lighter
)


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
    content: bytes
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

    def limits(self, at: int) -> tuple[float, float] | None:
        """The interval at one place, where both limits are known."""
        low, high = (side[at] if side else None for side in (self.low, self.high))
        return None if low is None or high is None else (low, high)


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
        HoplonError: no group or series, or a series of another length than the groups.
    """
    _check(groups, series)
    axis = Axis.over(_numbers(series), from_zero=True, log=log_y)
    legend = [one.name for one in series]
    canvas = Canvas(axis, y_title=y_title, x_labels=groups, x_title=x_title, legend=legend, colours=_COLOURS)
    width = canvas.step * 0.8 / len(series)
    for number, one in enumerate(series):
        for at, value in enumerate(one.values):
            if value is not None:
                left = canvas.centre(at) - canvas.step * 0.4 + number * width
                canvas.bar(left, width * 0.92, value, colour=_COLOURS[number % len(_COLOURS)], limits=one.limits(at))
    return _svg(name, title, alt, canvas)


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
    log_y: bool = False,
) -> Figure:
    """Points joined by lines, with their intervals.

    Raises:
        HoplonError: no x or series, or a series of another length than x.
    """
    _check(x, series)
    axis = Axis.over(_numbers(series), from_zero=True, log=log_y)
    across = Axis.over(list(x), from_zero=False, log=log_x)
    legend = [one.name for one in series]
    canvas = Canvas(axis, y_title=y_title, x_axis=across, x_title=x_title, legend=legend, colours=_COLOURS)
    for number, one in enumerate(series):
        points = [(at, value, one.limits(i)) for i, (at, value) in enumerate(zip(x, one.values, strict=True))]
        canvas.line([point for point in points if point[1] is not None], colour=_COLOURS[number % len(_COLOURS)])  # type: ignore[misc]
    return _svg(name, title, alt, canvas)


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
        HoplonError: no column, or as many labels as there are not.
    """
    if not columns or len(columns) != len(x_labels):
        raise HoplonError(f"expected a label for each column, got {len(x_labels)} for {len(columns)}")
    return Figure(name, title, alt, svg.heat(columns, x_labels, y_title, ends).encode())


def picture(name: str, *, title: str, alt: str, pixels: Tensor) -> Figure:
    """A picture as it is.

    Args:
        pixels: shape ``(height, width, 3)``, uint8, RGB.
    Raises:
        HoplonError: another shape or dtype.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise HoplonError(
            f"expected uint8 pixels of shape (height, width, 3), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    height, width, _ = pixels.shape
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels.reshape(height, -1).cpu()], dim=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)) + chunk(b"IEND", b"")
    return Figure(name, title, alt, b"\x89PNG\r\n\x1a\n" + body, "png")


def _check(places: Sequence[object], series: Sequence[Series]) -> None:
    if not places or not series:
        raise HoplonError(f"expected something to draw, got {len(places)} places and {len(series)} series")
    for one in series:
        if len(one.values) != len(places) or not {len(one.low), len(one.high)} <= {0, len(places)}:
            raise HoplonError(f"expected {len(places)} values in the series {one.name!r}, got {len(one.values)}")


def _numbers(series: Sequence[Series]) -> list[float]:
    return [value for one in series for part in (one.values, one.low, one.high) for value in part if value is not None]


def _svg(name: str, title: str, alt: str, canvas: Canvas) -> Figure:
    return Figure(name, title, alt, canvas.text().encode())
