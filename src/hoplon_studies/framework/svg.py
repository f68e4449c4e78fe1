"""Charts as SVG text: an axis, bars and lines with intervals, maps of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Self, final

_WIDTH, _LEFT, _RIGHT, _TOP, _PLOT = 760, 76, 16, 16, 260
_MANY_LABELS, _LONG_LABEL = 40, 9  # labels turned by 40 degrees do not touch up to so many
_INK, _GRID = "#374151", "#e5e7eb"
_TICKS = 5


@final
@dataclass(frozen=True)
class Axis:
    """From a value to a share of an axis; ``log``: by decades, where all that is not above ``low`` stands at 0."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], *, from_zero: bool, log: bool = False) -> Self:
        """An axis that holds all values.

        Example:
            >>> Axis.over([3.0, 17.0], from_zero=True).ticks
            (0.0, 5.0, 10.0, 15.0, 20.0)
        """
        if log:
            return cls._decades([value for value in values if value > 0])
        low, high = min(values, default=0.0), max(values, default=1.0)
        if from_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high <= low:
            low, high = low - (0.0 if from_zero else 0.5), low + 1.0
        step = _round_step((high - low) / _TICKS)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(step * number, 12) for number in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    @classmethod
    def _decades(cls, positive: Sequence[float]) -> Self:
        first = math.floor(math.log10(min(positive, default=0.1)))
        last = max(math.ceil(math.log10(max(positive, default=1.0))), first + 1)
        return cls(10.0**first, 10.0**last, tuple(10.0**decade for decade in range(first, last + 1)), log=True)

    def share(self, value: float) -> float:
        """Where a value stands, 0 at the lower end and 1 at the upper."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 2.5, 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= step * (1 - 1e-9))


@final
class Canvas:
    """One chart: a frame with axes and a legend, filled mark by mark."""

    def __init__(
        self,
        axis: Axis,
        *,
        y_title: str,
        x_labels: Sequence[str] = (),
        x_axis: Axis | None = None,
        x_title: str = "",
        legend: Sequence[str] = (),
        colours: Sequence[str] = (),
    ) -> None:
        self._axis, self._across = axis, x_axis
        self.step = (_WIDTH - _LEFT - _RIGHT) / max(len(x_labels), 1)
        self._parts: list[str] = []
        self._y_ticks(y_title)
        below = self._labels(x_labels) if x_axis is None else self._x_ticks(x_axis, x_title)
        if x_labels and x_title:
            self._add(_words(x_title, (_LEFT + _WIDTH - _RIGHT) / 2, _TOP + _PLOT + below + 6, anchor="middle"))
            below += 16
        self._height = self._legend(legend, colours, _TOP + _PLOT + below)

    def centre(self, number: int) -> float:
        """Where a group stands."""
        return _LEFT + (number + 0.5) * self.step

    def bar(
        self, left: float, width: float, value: float, *, colour: str, limits: tuple[float, float] | None = None
    ) -> None:
        """A bar from zero, or from the lower end of a logarithmic axis."""
        zero = self._y(self._axis.low if self._axis.log else 0.0)
        top, bottom = sorted((self._y(value), zero))
        self._add(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" fill="{colour}"/>'
        )
        if limits is not None:
            self._interval(left + width / 2, limits, _INK)

    def line(self, points: Sequence[tuple[float, float, tuple[float, float] | None]], *, colour: str) -> None:
        """Points from left to right, joined."""
        places = [(self._x(at), self._y(value)) for at, value, _ in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self._add(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for (x, y), (_, _, limits) in zip(places, points, strict=True):
            self._add(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            if limits is not None:
                self._interval(x, limits, colour)

    def text(self) -> str:
        """The chart."""
        return _document(self._height, self._parts)

    def _add(self, mark: str) -> None:
        self._parts.append(mark)

    def _x(self, value: float) -> float:
        assert self._across is not None
        return _LEFT + 8 + (_WIDTH - _LEFT - _RIGHT - 16) * self._across.share(value)

    def _y(self, value: float) -> float:
        return _TOP + _PLOT * (1 - self._axis.share(value))

    def _interval(self, x: float, limits: tuple[float, float], colour: str) -> None:
        low, high = map(self._y, limits)
        for x1, y1, x2, y2 in ((x, low, x, high), (x - 3, low, x + 3, low), (x - 3, high, x + 3, high)):
            self._add(_stroke(x1, y1, x2, y2, colour, 1.2))

    def _y_ticks(self, title: str) -> None:
        for tick in self._axis.ticks:
            y = self._y(tick)
            self._add(_stroke(_LEFT, y, _WIDTH - _RIGHT, y, _GRID, 1))
            self._add(_words(f"{tick:g}", _LEFT - 6, y + 4, anchor="end"))
        self._add(_turned(title, 16, _TOP + _PLOT / 2))

    def _x_ticks(self, axis: Axis, title: str) -> float:
        for tick in axis.ticks:
            x = self._x(tick)
            self._add(_stroke(x, _TOP + _PLOT, x, _TOP + _PLOT + 4, _INK, 1))
            self._add(_words(f"{tick:g}", x, _TOP + _PLOT + 18, anchor="middle"))
        self._add(_words(title, (_LEFT + _WIDTH - _RIGHT) / 2, _TOP + _PLOT + 36, anchor="middle"))
        return 46

    def _labels(self, labels: Sequence[str]) -> float:
        return _group_labels(self._parts, labels, self.centre, _TOP + _PLOT)

    def _legend(self, names: Sequence[str], colours: Sequence[str], y: float) -> float:
        if len(names) < 2:
            return y + 8
        x = float(_LEFT)
        for number, name in enumerate(names):
            width = 24 + 6.6 * len(name)
            if x + width > _WIDTH and x > _LEFT:
                x, y = float(_LEFT), y + 18
            colour = colours[number % len(colours)]
            self._add(f'<rect x="{x:.1f}" y="{y:.1f}" width="10" height="10" fill="{colour}"/>')
            self._add(_words(name, x + 14, y + 9, anchor="start"))
            x += width
        return y + 22


def heat(
    columns: Sequence[Sequence[float | None]], labels: Sequence[str], y_title: str, ends: tuple[str, str] | None = None
) -> str:
    """A map of cells: one column per label, values in [0, 1] from light to dark; ``ends`` says what 0 and 1 are."""
    parts: list[str] = []
    step = (_WIDTH - _LEFT - _RIGHT) / len(columns)
    for number, column in enumerate(columns):
        size = _PLOT / max(len(column), 1)
        for at, value in enumerate(column):
            if value is not None:
                x, y = _LEFT + number * step, _TOP + at * size
                box = f'x="{x:.1f}" y="{y:.2f}" width="{step:.2f}" height="{size + 0.2:.2f}"'
                parts.append(f'<rect {box} fill="{_shade(value)}"/>')
    parts.append(_turned(y_title, 16, _TOP + _PLOT / 2))
    below = _group_labels(parts, labels, lambda number: _LEFT + (number + 0.5) * step, _TOP + _PLOT)
    if ends is None:
        return _document(_TOP + _PLOT + below + 8, parts)
    _scale(parts, ends, _TOP + _PLOT + below + 4)
    return _document(_TOP + _PLOT + below + 26, parts)


def _scale(parts: list[str], ends: tuple[str, str], y: float) -> None:
    """A strip of colours from 0 to 1 between what they stand for."""
    x, steps = _LEFT + 6.6 * len(ends[0]) + 8, 24
    parts.append(_words(ends[0], x - 8, y + 10, anchor="end"))
    for number in range(steps):
        colour = _shade(number / (steps - 1))
        parts.append(f'<rect x="{x + 6 * number:.1f}" y="{y:.1f}" width="6.3" height="12" fill="{colour}"/>')
    parts.append(_words(ends[1], x + 6 * steps + 8, y + 10, anchor="start"))


def _group_labels(parts: list[str], labels: Sequence[str], centre: Callable[[int], float], y: float) -> float:
    """Names under groups, upright where they are short and few; of very many, a part. The height they take."""
    every = -(-len(labels) // _MANY_LABELS)
    shown = [(number, label) for number, label in enumerate(labels) if number % every == 0]
    longest = max((len(label) for _, label in shown), default=0)
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(labels), 1)
    if longest * 6.6 <= room or (longest <= _LONG_LABEL and len(shown) <= 8):
        parts.extend(_words(label, centre(number), y + 18, anchor="middle") for number, label in shown)
        return 30
    for number, label in shown:
        x = centre(number)
        parts.append(
            f'<text x="{x:.1f}" y="{y + 12:.1f}" text-anchor="end" '
            f'transform="rotate(-40 {x:.1f} {y + 12:.1f})">{escape(label)}</text>'
        )
    return 24 + 4.4 * longest


def _shade(value: float) -> str:
    """From pale blue over white-yellow to red."""
    stops = ((219, 234, 254), (253, 230, 138), (220, 38, 38))
    place = 2 * min(max(value, 0.0), 1.0)
    low = stops[min(int(place), 1)]
    high = stops[min(int(place), 1) + 1]
    part = place - min(int(place), 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def _words(text: str, x: float, y: float, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _turned(text: str, x: float, y: float) -> str:
    place = f"{x:.1f} {y:.1f}"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" transform="rotate(-90 {place})">{escape(text)}</text>'


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'


def _document(height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}" font-family="sans-serif" font-size="12" fill="{_INK}">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>", ""])
