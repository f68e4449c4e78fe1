"""Claims of a paper and whether they hold here: verdicts by stated rules, from the rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from hoplon.errors import HoplonError
from hoplon_studies.framework.digits import here
from hoplon_studies.framework.rows import Row

CONFIRMED, REFUTED, NOT_COMPARABLE, OPEN = "confirmed", "refuted", "not comparable", "open"
_NAMED = 4  # pairs that a cell of the table of verdicts names
VERDICTS = (  # NAME becomes that of the study
    "*Confirmed*: the limits here hold the published figure, or lie wholly on the claimed side of a bound. *Refuted*: "
    "they exclude it. *Not comparable*: they exclude it, but networks stand in for the paper's, the claim counts "
    "something else, or times are of another machine and implementation: such figures confirm or leave open, and "
    "refute nothing. *Open*: nothing here counts it yet, or limits do not tell. Where the paper prints no figure, a "
    "criterion of this page takes its place, and is named; the *same* means that each figure lies within the other's "
    "limits, which wide limits make easy. *A → B* are the two figures of a pair, in the order that the reason names. "
    "Claims marked *beside* are not the paper's but of the networks here, and are judged like any other. NAME.json "
    "names each verdict's rule and rows."
)
BESIDE = "beside"
"""How the place of a claim begins that the paper does not make: nothing stands in for what it is about."""


@final
@dataclass(frozen=True)
class Claim:
    """What a paper claims and what the rows say to it.

    Attributes:
        name: short and its own, for tests and links.
        text: the claim.
        place: where the paper makes it: "IV-C"; "beside" where it does not.
        paper: its figures, as printed.
        here: the figures here, with limits; empty where there are none.
        verdict: one of confirmed, refuted, not comparable and open.
        because: what decides, in a clause.
        rule: the name of a rule of :data:`RULES`; empty where no rule was needed.
        wanted: the published figures that the rule takes.
        rows: places of the rows that the rule takes, in the study's list of rows.
        comparable: False where a network stands in, the rows count something else, or times are another machine's:
            they cannot refute the claim.
    """

    name: str
    text: str
    place: str
    paper: str
    here: str
    verdict: str
    because: str
    rule: str = ""
    wanted: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    comparable: bool = True


@final
@dataclass(frozen=True)
class Question:
    """A claim before it is judged: its first four fields, the rule and the published figures that the rule takes."""

    name: str
    text: str
    place: str
    paper: str
    rule: str
    wanted: Sequence[float] = ()


@final
@dataclass(frozen=True)
class Evidence:
    """The rows of a study and the published values, as claims are judged by them."""

    rows: Sequence[Row]
    published: Mapping[str, Any]

    def found(self, **wanted: object) -> list[Row]:
        """Rows with a figure here whose fields equal those that are ``wanted``; of a tuple, one of its values."""

        def fits(row: Row, name: str, value: object) -> bool:
            got = getattr(row, name)
            return got in value if isinstance(value, tuple) else got == value

        known = (row for row in self.rows if row.here is not None)
        return [row for row in known if all(fits(row, name, value) for name, value in wanted.items())]

    def arms(self, *arms: str, **wanted: object) -> list[Row]:
        """Rows of these arms, one after the other, of every network and quantity that has them all."""
        by_line: dict[tuple[str, str, str, str], dict[str, Row]] = {}
        for row in self.found(arm=arms, **wanted):
            by_line.setdefault((row.model, row.data, row.what, row.setting), {})[row.arm] = row
        return [line[arm] for line in by_line.values() if len(line) == len(arms) for arm in arms]

    def lacking(self, **wanted: object) -> str:
        """Why a row of these fields has no figure here; empty where there is no such row."""
        gone = (row for row in self.rows if row.here is None)
        return next((row.why for row in gone if all(getattr(row, name) == one for name, one in wanted.items())), "")

    def judge(
        self,
        question: Question,
        rows: Sequence[Row],
        *,
        because: str | Callable[[], str],
        lacks: str,
        shown: Callable[[Sequence[Row]], str] | None = None,
        comparable: bool = True,
    ) -> Claim:
        """A claim with the verdict of a rule over the rows that bear on it.

        Args:
            rows: what was found, in the order that the rule takes.
            because: the reason; called once there are rows.
            lacks: why the claim is open as long as there are none.
            shown: rows as figures; all of them, with limits, by default.
            comparable: False where the rows count something else than the claim, or times of another machine, so that
                they cannot refute it.
        """
        said = (question.name, question.text, question.place, question.paper)
        if not rows:
            return Claim(*said, "", OPEN, lacks, question.rule, tuple(question.wanted))
        stands_in = any(row.stands_for for row in rows) and not question.place.startswith(BESIDE)
        comparable = comparable and not stands_in
        verdict = verdict_of(question.rule, question.wanted, rows, comparable=comparable)
        reason = because if isinstance(because, str) else because()
        places = {id(row): number for number, row in enumerate(self.rows)}
        numbers = tuple(places[id(row)] for row in rows)
        told, basis = (shown or joined)(rows), (question.rule, tuple(question.wanted), numbers, comparable)
        return Claim(*said, told, verdict, reason, *basis)


def verdict_of(rule: str, wanted: Sequence[float], rows: Sequence[Row], *, comparable: bool) -> str:
    """The verdict of a rule; rows that are not comparable refute nothing.

    Raises:
        HoplonError: a rule that there is not, or rows without figures.
    """
    if rule not in RULES or not all(isinstance(row.here, int | float) for row in rows):
        raise HoplonError(f"expected a rule of {', '.join(RULES)} and rows with figures, got {rule!r} and {rows}")
    holds = RULES[rule](wanted, rows)
    if holds is None:
        return OPEN
    if holds:
        return CONFIRMED
    return REFUTED if comparable else NOT_COMPARABLE


def joined(rows: Sequence[Row]) -> str:
    """Figures with their limits, one after the other."""
    return "; ".join(dict.fromkeys(here(row) for row in rows))


def from_to(rows: Sequence[Row]) -> str:
    """Pairs of figures: from the first to the second of each."""
    return "; ".join(f"{here(first)} → {here(second)}" for first, second in _pairs(rows))


def span(rows: Sequence[Row]) -> str:
    """From the least to the largest figure."""
    ordered = sorted(rows, key=_value)
    ends = dict.fromkeys(here(row) for row in (ordered[0], ordered[-1]))
    return " to ".join(ends) + (f" ({len(rows)} figures)" if len(rows) > 2 else "")


def listed(rows: Sequence[Row]) -> str:
    """Figures, each after its network."""
    return "; ".join(f"{row.model} {here(row)}" for row in rows)


def compared(rows: Sequence[Row]) -> str:
    """Pairs of figures, each after its network; of many, from the least to the largest of both."""
    if len(rows) > 2 * _NAMED:
        return spans(rows)
    return "; ".join(f"{pair[0].model} {from_to(pair)}" for pair in _pairs(rows))


def spans(rows: Sequence[Row]) -> str:
    """Pairs of figures, from the least to the largest of the first and of the second of all."""
    return f"{span(rows[::2])} → {span(rows[1::2])}"


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    return list(zip(rows[::2], rows[1::2], strict=True))


def _value(row: Row) -> float:
    return float(row.here)  # type: ignore[arg-type]


def _ends(row: Row) -> tuple[float, float]:
    """Limits, or the value itself where it is exact."""
    value = _value(row)
    return (value if row.low is None else row.low, value if row.high is None else row.high)


def _holds(wanted: Sequence[float], rows: Sequence[Row]) -> bool:
    """The limits of every row hold its published figure: one for all, or one each."""
    targets = wanted if len(wanted) == len(rows) else [wanted[0]] * len(rows)
    return all(_ends(row)[0] <= target <= _ends(row)[1] for row, target in zip(rows, targets, strict=True))


def _at_most(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """The limits of every row lie below the published figure or at it; None where some reach beyond it."""
    if any(_ends(row)[0] > wanted[0] for row in rows):
        return False
    return True if all(_ends(row)[1] <= wanted[0] for row in rows) else None


def _at_least(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """The limits of every row lie above the published figure or at it; None where some reach beyond it."""
    if any(_ends(row)[1] < wanted[0] for row in rows):
        return False
    return True if all(_ends(row)[0] >= wanted[0] for row in rows) else None


def _above(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """The limits of every row lie above the figure; None where some hold it."""
    if any(_ends(row)[1] < wanted[0] for row in rows):
        return False
    return True if all(_ends(row)[0] > wanted[0] for row in rows) else None


def _between(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """The limits of every row lie inside the published span; None where some reach beyond it."""
    if any(_ends(row)[0] > wanted[1] or _ends(row)[1] < wanted[0] for row in rows):
        return False
    return True if all(wanted[0] <= _ends(row)[0] and _ends(row)[1] <= wanted[1] for row in rows) else None


def _equal(wanted: Sequence[float], rows: Sequence[Row]) -> bool:
    """Every row is its published figure, to the digits that are printed."""
    return all(_as_printed(_value(row), target) for row, target in zip(rows, wanted, strict=True))


def _about(wanted: Sequence[float], rows: Sequence[Row]) -> bool:
    """Every row is within a tenth of its published figure: one for all, or one each."""
    targets = wanted if len(wanted) == len(rows) else [wanted[0]] * len(rows)
    return all(abs(_value(row) - target) <= 0.1 * target for row, target in zip(rows, targets, strict=True))


def _lower(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """In every pair the second is lower, its limits below those of the first; None where some cannot be told apart."""
    pairs = _pairs(rows)
    if any(_ends(second)[0] > _ends(first)[1] for first, second in pairs):
        return False
    return True if all(_ends(second)[1] < _ends(first)[0] for first, second in pairs) else None


def _unchanged(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """In every pair each value lies within the limits of the other; None where limits meet and do not hold it."""
    pairs = _pairs(rows)
    if any(_ends(one)[0] > _ends(other)[1] for pair in pairs for one, other in (pair, pair[::-1])):
        return False
    held = (_holds([_value(one)], [other]) for pair in pairs for one, other in (pair, pair[::-1]))
    return True if all(held) else None


def _fewer(wanted: Sequence[float], rows: Sequence[Row]) -> bool | None:
    """In every pair the second is lower by the published factor at least; None where opposite limits do not tell."""
    pairs = [(_ends(first), _ends(second)) for first, second in _pairs(rows)]
    if any(first[1] < wanted[0] * second[0] for first, second in pairs):
        return False
    return True if all(first[0] >= wanted[0] * second[1] for first, second in pairs) else None


def _times(wanted: Sequence[float], rows: Sequence[Row]) -> bool:
    """In every pair opposite limits hold the published factor between the first and the second."""
    pairs = [(_ends(first), _ends(second)) for first, second in _pairs(rows)]
    return all(one[0] <= wanted[0] * two[1] and one[1] >= wanted[0] * two[0] for one, two in pairs)


def _as_printed(value: float, printed: float) -> bool:
    """A value as a printed one of so many digits: by half a unit of the last of them."""
    digits = repr(float(printed)).removesuffix(".0").partition(".")[2]
    return math.isclose(value, printed, abs_tol=0.51 * 10.0 ** -len(digits))


RULES: Mapping[str, Callable[[Sequence[float], Sequence[Row]], bool | None]] = {
    "holds": _holds,
    "at most": _at_most,
    "at least": _at_least,
    "above": _above,
    "between": _between,
    "equal": _equal,
    "about": _about,
    "lower": _lower,
    "unchanged": _unchanged,
    "fewer": _fewer,
    "times": _times,
}
"""Rules by name, each a function of published figures and rows: True, False, or None where it cannot be told."""
