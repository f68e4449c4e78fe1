"""The page's figures as plotly specifications: plain values, drawn by the copy of plotly.js inside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hoplon.formats.fixed import FixedPoint
from hoplon.report.document import Document
from hoplon.report.text import at_most, interval
from hoplon.report.verdicts import baseline, rows_of

Row = Mapping[str, Any]
Spec = dict[str, Any]

_DECADES_FOR_LOG = 20.0  # ratio of the largest to the smallest share from which an axis is logarithmic
# Upper bits of exponent and mantissa, by format.
_FIELDS = {"float64": (62, 51), "float32": (30, 22), "float16": (14, 9), "bfloat16": (14, 6)}


_BARS: Spec = {"type": "data", "symmetric": False}


@dataclass(frozen=True)
class Figure:
    """One plot: ``spec`` for plotly.js, ``title`` over it, ``alt`` for readers who cannot see it, ``height`` in px.

    ``values``: what it shows, as names and texts, for readers without a mouse.
    """

    title: str
    alt: str
    spec: Spec
    height: int
    values: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class _Axis:
    """An axis of failure in percent. On a logarithmic one, 0 has no place: it is drawn from the floor to its limit."""

    log: bool
    floor: float
    ceiling: float

    @classmethod
    def over(cls, rows: Sequence[Row]) -> _Axis:
        seen = [100 * row["failure"] for row in rows if row["failure"]]
        top = max((100 * row["failure_high"] for row in rows), default=1.0)
        lowest = min(seen, default=top)
        if not seen or top / lowest < _DECADES_FOR_LOG:
            return cls(False, 0.0, min(104.0, 1.08 * top))
        floor = 10.0 ** math.floor(math.log10(lowest / 1.5))
        return cls(True, floor, min(150.0, 1.5 * top))

    def layout(self, title: str) -> Spec:
        common = {"title": {"text": title, "standoff": 8}, "fixedrange": True, "zeroline": not self.log}
        if not self.log:
            return {**common, "range": [self.floor, self.ceiling], "nticks": 6, "rangemode": "tozero"}
        decades = range(round(math.log10(self.floor)), 3)
        ticks = [10.0**decade for decade in decades]
        return {
            **common,
            "type": "log",
            "range": [math.log10(self.floor), math.log10(self.ceiling)],
            "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks],
        }


def by_arm(document: Document, faults: str) -> Figure:
    """Failure of every arm with its interval."""
    rows = rows_of(document, faults)
    axis = _Axis.over(rows)
    base = baseline(rows)
    traces = []
    for role, chosen in (
        ("base", [row for row in rows if row is base]),
        ("arm", [row for row in rows if row is not base and row["acts_on_target"]]),
        ("idle", [row for row in rows if row is not base and not row["acts_on_target"]]),
    ):
        traces += _dots(chosen, "name", axis, role, across=True, labels=True)
    layout = {
        "xaxis": axis.layout(
            "failures, % " + ("of faults" if rows[0]["target"] == "values" else "of inputs, mean over faults")
        ),
        "yaxis": _names([row["name"] for row in rows]),
        "margin": {"l": 120, "r": 20, "t": 8, "b": 48},
    }
    alt = "; ".join(f"{row['name']} {interval(row)}" for row in rows)
    spec, height = {"data": traces, "layout": layout}, 60 + 44 * len(rows)
    return Figure("By arm", f"Failure by arm: {alt}", spec, height, _values(rows, "name"))


def by_bit(document: Document, faults: str) -> tuple[Figure, ...]:
    """Failure by flipped bit, one panel per arm that differs, the unprotected arm in each."""
    formats = document["population"][faults]["formats"]
    bits = [row["bit"] for rows in document["by_bit"][faults].values() for row in rows]
    last = max((bit for bit in bits if bit is not None), default=0)
    layout = {
        "xaxis": {
            "title": {"text": "flipped bit", "standoff": 6},
            "range": [last + 0.7, -0.7],
            "tickvals": [bit for bit in range(last, -1, -1) if bit % 8 == 0 or bit == last],
            "fixedrange": True,
            "zeroline": False,
        },
        "margin": {"l": 52, "r": 8, "t": 20, "b": 44},
        **_word(formats, last),
    }
    return _panels(document, faults, "bit", layout, 240, across=False)


def by_layer(document: Document, faults: str) -> tuple[Figure, ...]:
    """Failure by struck layer in execution order, one panel per arm that differs."""
    layers = document["population"][faults]["layers"]
    width = 16 + 6.6 * max(map(len, layers))
    layout = {"yaxis": _names(layers), "margin": {"l": min(width, 190), "r": 8, "t": 8, "b": 44}}
    return _panels(document, faults, "layer", layout, 64 + 20 * max(len(layers), 5), across=True)


def _panels(
    document: Document, faults: str, key: str, layout: Spec, height: int, *, across: bool
) -> tuple[Figure, ...]:
    """Draw a panel for each arm that differs, all on one axis of failure; ``layout``: the rest of the panel."""
    groups = _grouped(document[f"by_{key}"][faults], document, faults, key)
    axis = _Axis.over([row for _, rows, _ in groups for row in rows])
    of_failure = {"xaxis" if across else "yaxis": axis.layout("failures, %")}
    figures = []
    for name, rows, base in groups:
        traces = _dots(base, key, axis, "faint", across=across)
        traces += _dots(rows, key, axis, "arm" if base else "base", across=across)
        spec = {"data": traces, "layout": {**layout, **of_failure}}
        figures.append(Figure(name, _alt(name, rows, key), spec, height, _values(rows, key)))
    return tuple(figures)


def _grouped(
    groups: Mapping[str, Sequence[Row]], document: Document, faults: str, key: str
) -> list[tuple[str, list[Row], list[Row]]]:
    """Name, rows and rows of the unprotected arm; arms with the very same figures share a panel."""
    first = baseline(rows_of(document, faults))
    base = [] if first is None else [row for row in groups[first["name"]] if row[key] is not None]
    together: list[tuple[list[str], list[Row]]] = []
    for name, found in groups.items():
        rows = [row for row in found if row[key] is not None]
        same = next((names for names, other in together if other == rows), None)
        if same is not None:
            same.append(name)
        elif rows:
            together.append(([name], rows))
    return [(", ".join(names), rows, [] if rows == base else base) for names, rows in together]


def _dots(rows: Sequence[Row], key: str, axis: _Axis, role: str, *, across: bool, labels: bool = False) -> list[Spec]:
    """Points with intervals; where no failure was seen, an open mark at the upper limit."""
    value, group, bar = ("x", "y", "error_x") if across else ("y", "x", "error_y")
    seen = [row for row in rows if row["failure"]]
    unseen = [row for row in rows if not row["failure"]]
    shares, highs = [100 * row["failure"] for row in seen], [100 * row["failure_high"] for row in unseen]

    def marks(at: list[float], part: list[Row], texts: list[str], symbol: str, size: int) -> Spec:
        return {
            value: at,
            group: [row[key] for row in part],
            "customdata": texts,
            "hovertemplate": "%{" + group + "}: %{customdata}<extra></extra>",
            "marker": {"size": 9 if labels else size, "symbol": symbol},
            **({"text": texts} if labels else {}),
        }

    traces: list[Spec] = []
    if seen:
        trace = marks(shares, seen, [interval(row) for row in seen], "circle", 6)
        if role != "faint":
            above = [100 * row["failure_high"] - share for row, share in zip(seen, shares, strict=True)]
            lows = [max(100 * row["failure_low"], axis.floor) for row in seen]
            below = [share - low for share, low in zip(shares, lows, strict=True)]
            trace[bar] = {**_BARS, "array": above, "arrayminus": below, "thickness": 1.6 if labels else 1.2}
            trace[bar]["width"] = 4 if labels else 0
        traces.append(_typed(trace, role, labels=labels, left=_room_is_left(shares, axis)))
    if unseen and role != "faint":
        symbol = "triangle-left-open" if across else "triangle-down-open"
        trace = marks(highs, unseen, [_none_seen(row) for row in unseen], symbol, 5)
        if labels:
            below = [high - axis.floor for high in highs]
            trace[bar] = {**_BARS, "array": [0] * len(highs), "arrayminus": below, "thickness": 1.6, "width": 0}
        traces.append(_typed(trace, role if labels else "unseen", labels=labels, left=_room_is_left(highs, axis)))
    return traces


def _room_is_left(shares: Sequence[float], axis: _Axis) -> list[bool]:
    """For each point, whether its label fits better on its left half of the axis than on its right."""
    if axis.log:
        return [math.log(share / axis.floor) > 0.5 * math.log(axis.ceiling / axis.floor) for share in shares]
    return [share > 0.5 * axis.ceiling for share in shares]


def _typed(trace: Spec, role: str, *, labels: bool, left: Sequence[bool]) -> Spec:
    mode = {"mode": "markers+text", "textposition": ["top left" if is_left else "top right" for is_left in left]}
    return {
        "type": "scatter",
        **(mode if labels else {"mode": "markers"}),
        "cliponaxis": False,
        "showlegend": False,
        "meta": {"role": role},
        **trace,
    }


def _values(rows: Sequence[Row], key: str) -> list[tuple[str, str]]:
    return [(str(row[key]), interval(row) if row["failure"] else _none_seen(row)) for row in rows]


def _none_seen(row: Row) -> str:
    return f"none in {row['n_faults']:,} faults, at most {at_most(row['failure_high'])}"


def _names(names: Sequence[str]) -> Spec:
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(reversed(names)),
        "range": [-0.6, len(names) - 0.4],
        "tickvals": list(names),
        "fixedrange": True,
        "zeroline": False,
    }


def _word(formats: Sequence[str], last: int) -> Spec:
    """Names and borders of the fields of a word, of sign, exponent and mantissa or of both sides of the point."""
    only = formats[0] if len(formats) == 1 else ""
    if (fixed := FixedPoint.parse(only)) is not None:
        parts = [("integer", last, fixed.fraction), ("fraction", fixed.fraction - 1, 0)]
    elif only in _FIELDS:
        exponent, mantissa = _FIELDS[only]
        parts = [("±", last, last), ("exponent", exponent, mantissa + 1), ("mantissa", mantissa, 0)]
    else:
        return {}
    lines = [
        {"type": "line", "xref": "x", "yref": "paper", "x0": high + 0.5, "x1": high + 0.5, "y0": 0, "y1": 1}
        for _, high, _ in parts[1:]
    ]
    notes = [
        {"text": text, "x": (high + low) / 2, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        for text, high, low in parts
        if high >= low
    ]
    return {"shapes": lines, "annotations": notes}


def _alt(name: str, rows: Sequence[Row], key: str) -> str:
    worst = sorted(rows, key=lambda row: -row["failure"])[:3]
    return f"Failure by {key}, {name}. Highest: " + "; ".join(f"{row[key]} {interval(row)}" for row in worst)
