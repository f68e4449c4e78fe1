"""Rows as the tables of a page: one line per network, its arms side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

from hoplon_studies.framework.digits import cell, here, roughly
from hoplon_studies.framework.rows import DIFFERENCE, Row

UNPROTECTED = "none"
STAND_IN = "†"
_SIDE_BY_SIDE = 5  # arms, or networks or quantities in their place
_COMPARED = 3  # arms beside the unprotected one of which a line says how many times fewer fail


@final
@dataclass(frozen=True)
class Grid:
    """One table: its caption, the heads of its columns, its lines, and which networks have nothing here."""

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    absent: str = ""


def tabulated(rows: Sequence[Row], absent: Iterable[Row] = ()) -> Iterator[Grid]:
    """Tables of the rows of one place and setting each, in the order of the rows.

    Args:
        absent: rows about networks that the page has named as absent already.
    """
    told = {_key(row) for row in absent}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.detail and (row.here is not None or row.paper is not None or _key(row) not in told):
            groups.setdefault((row.where, row.setting), []).append(row)
    for group in groups.values():
        shown = [row for row in group if row.here is not None or row.paper is not None]
        known = {_key(row) for row in shown}
        gone = absent_networks([row for row in group if _key(row) not in known])
        yield _grid(group[0], shown, gone)


def absent_networks(rows: Iterable[Row]) -> str:
    """Networks that have nothing here, by reason, as one line; empty where there are none."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        reasons.setdefault(row.why, {})[network(row)] = None
    told = [f"{', '.join(names)}{f' ({why})' if why else ''}" for why, names in reasons.items()]
    return f"Not here: {'; '.join(told)}." if told else ""


def network(row: Row) -> str:
    """A row's network and data; the mark says that it stands in for the paper's."""
    named = ", ".join(part for part in (row.model, row.data) if part != "-") or "-"
    return f"{named} {STAND_IN}" if row.stands_for else named


def times_fewer(before: Row, after: Row) -> str:
    """How many times fewer fail in the second row, by the opposite limits of both; empty where it cannot be said.

    Example:
        >>> none = Row("Fig. 6", "LeNet", "MNIST", "top-1", "%", here=20, low=18, high=22)
        >>> times_fewer(none, Row("Fig. 6", "LeNet", "MNIST", "top-1", "%", here=0, low=0, high=1))
        'at least 18'
    """
    pair = (before, after)
    if not all(isinstance(row.here, int | float) and row.low is not None and row.high is not None for row in pair):
        return ""
    if not before.low or not after.high:
        return ""
    least = before.low / after.high
    if not after.here or not after.low:
        return f"at least {roughly(least)}" if least >= 1 else ""
    times = (before.here / after.here, least, before.high / after.low)  # type: ignore[operator]
    return "{} [{}, {}]".format(*map(roughly, times))


def _key(row: Row) -> tuple[str, str]:
    return row.model, row.data


def _grid(first: Row, rows: Sequence[Row], absent: str) -> Grid:
    units = list(dict.fromkeys(row.unit for row in rows))
    quantities = list(dict.fromkeys(row.what for row in rows))
    parts = list(dict.fromkeys(part for part in (first.setting, *(quantities[:1] * (len(quantities) == 1))) if part))
    if len(units) == 1 and units[0]:
        parts.append(f"in {units[0]}")
    counts = sorted({row.n for row in rows if row.n is not None})
    if counts:
        parts.append(f"n {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else ""))
    caption = f"**{first.where}**" + (f": {'; '.join(parts)}" if parts else "")
    return Grid(caption, *_pivoted(rows), absent) if rows else Grid(caption, (), (), absent)


def _pivoted(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Heads and lines: arms side by side, or networks or quantities where there are too many arms."""
    axes = {
        "arm": {id(row): row.arm for row in rows if row.arm != DIFFERENCE},
        "network": {id(row): network(row) for row in rows},
        "what": {id(row): row.what for row in rows},
    }
    if len({row.unit for row in rows}) > 1:
        arms = {(row.arm, row.unit) for row in rows}
        named = "arm" if 1 < len(arms) == len({arm for arm, _ in arms}) else "what"
        axes[named] = {id(row): f"{axes[named][id(row)]}, {row.unit}" for row in rows}
    values = {name: list(dict.fromkeys(axis.values())) for name, axis in axes.items()}
    across = _across({name: len(known) for name, known in values.items()})
    down = [
        name for name in ("network", "what", "arm") if name != across and (name == "network" or len(values[name]) > 1)
    ]
    by_line: dict[tuple[str, ...], list[Row]] = {}
    for row in rows if across == "arm" else [row for row in rows if row.arm != DIFFERENCE]:
        by_line.setdefault(tuple(axes[name].get(id(row), "") for name in down), []).append(row)
    columns = [_Column(value, across, axes[across], rows) for value in values[across]]
    fewer = _compared(values["arm"], rows) if across == "arm" else []
    last = any(row.why and row.here is not None for row in rows)
    heads = (*down, *(head for one in columns for head in one.heads), *_heads_of(fewer), *(("remark",) if last else ()))
    lines = []
    for places, line in by_line.items():
        cells = [one for column in columns for one in column.cells(line)]
        remarks = "; ".join(dict.fromkeys(row.why for row in line if row.why and row.here is not None))
        lines.append((*map(cell, places), *cells, *_derived(line, fewer), *((cell(remarks),) if last else ())))
    return tuple(map(cell, heads)), tuple(lines)


def _across(counts: dict[str, int]) -> str:
    """What stands side by side: arms where there are some, else networks or quantities, so that few lines are left."""
    if 1 < counts["arm"] <= _SIDE_BY_SIDE or 1 == counts["arm"] == min(counts["network"], counts["what"]):
        return "arm"
    return next((name for name in ("network", "what") if 1 < counts[name] <= _SIDE_BY_SIDE), "arm")


class _Column:
    """One value of what stands side by side: what was found, and what the paper has where it has anything."""

    def __init__(self, value: str, across: str, axis: dict[int, str], rows: Sequence[Row]) -> None:
        self._value, self._axis = value, axis
        self._printed = any(row.paper is not None for row in self._mine(rows))
        name = value or "here"
        both = (f"{name}: paper", f"{name}: here") if value else ("paper", "here")
        self.heads: tuple[str, ...] = both if self._printed else (name,)

    def cells(self, line: Sequence[Row]) -> tuple[str, ...]:
        mine = self._mine(line)
        found = cell("; ".join(dict.fromkeys(here(row, unit=False) for row in mine)))
        paper = cell("; ".join(dict.fromkeys(cell(row.paper) for row in mine if row.paper is not None)))
        return (paper, found) if self._printed else (found,)

    def _mine(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if self._axis.get(id(row)) == self._value and row.arm != DIFFERENCE]


def _compared(arms: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Arms that lines compare with the unprotected one."""
    others = [arm for arm in arms if arm != UNPROTECTED]
    known = UNPROTECTED in arms and any(row.failure for row in rows)
    return others if known and 0 < len(others) <= _COMPARED else []


def _heads_of(fewer: Sequence[str]) -> tuple[str, ...]:
    if len(fewer) == 1:
        return ("times fewer", "difference")
    return tuple(f"times fewer, {arm}" for arm in fewer)


def _derived(line: Sequence[Row], fewer: Sequence[str]) -> tuple[str, ...]:
    """Times fewer by arm, and the difference where there are two arms: paired where a row has it."""
    by_arm = {row.arm: row for row in line if row.failure and row.here is not None}
    before = by_arm.get(UNPROTECTED)
    times = [times_fewer(before, by_arm[arm]) if before and arm in by_arm else "" for arm in fewer]
    if len(fewer) != 1:
        return tuple(times)
    paired = by_arm.get(DIFFERENCE)
    return (*times, here(paired, unit=False) if paired else "")
