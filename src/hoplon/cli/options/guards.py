"""Guards of memory and their schedule as short texts on the command line: ``aspis:1%``, ``rotating:16``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from hoplon.errors import HoplonError, no_match
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import Aspis, BlockAspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.baselines.secded import SecDedMemory
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.schedule import EveryForward, OnDemand, Rotating, When
from hoplon.protections.values.ranger import Ranger

_Made = TypeVar("_Made")

GUARDS = "parity, parity:GROUP, known-bits, known-bits:BLOCK, tmr, tmr:tensor, aspis:1%, block-aspis:1%, checksum:zero"
SCHEDULES = "every, every:4, rotating:16, demand"


def guards(texts: Sequence[str], *, scores: Path | None) -> list[Protection]:
    """The guards that ``--guard`` options name, in their order.

    Args:
        scores: a file of scores, for guards of the most important weights.
    Raises:
        HoplonError: an unknown guard, an option that it does not take, or missing scores.
    """
    read = _guards_with(lambda: _scores(scores))
    found = [_read(text, read, what="guard", known=GUARDS, option="--guard") for text in texts]
    if scores is not None and not any(isinstance(guard, Aspis | BlockAspis) for guard in found):
        raise HoplonError(f"expected --scores beside a guard that uses them, got {scores} and none; --guard aspis:1%")
    return found


def arm(text: str) -> Callable[[Ranges, Scores], tuple[Protection, ...]]:
    """The protections that ``--arm`` names, joined by "+", once there are ranges and scores.

    Raises:
        HoplonError: an unknown protection, or an option that it does not take.
    """

    def made(ranges: Ranges, scores: Scores) -> tuple[Protection, ...]:
        read = {"ranger": lambda text: Ranger(ranges), "sec-ded-memory": lambda text: SecDedMemory()}
        read |= _guards_with(lambda: scores)
        return tuple(_read(part, read, what="protection", known=f"ranger, {GUARDS}", option="--arm") for part in parts)

    parts = text.split("+")
    made(Ranges({"any": Bound(0.0, 1.0)}), Scores({"any": torch.ones(1)}))  # what is wrong is said before hours of work
    return made


def schedule(text: str) -> When:
    """The schedule that ``--when`` names.

    Raises:
        HoplonError: an unknown one, or a number that it does not take.
    """
    read: Mapping[str, Callable[[str], When]] = {
        "every": lambda text: EveryForward(_integer(text)) if text else EveryForward(),
        "rotating": lambda text: Rotating(_integer(text)) if text else Rotating(),
        "demand": _nothing,
    }
    return _read(text, read, what="schedule", known=SCHEDULES, option="--when")


def _guards_with(scores: Callable[[], Scores]) -> dict[str, Callable[[str], Protection]]:
    """How each guard is read from what follows its name."""
    return {
        "parity": lambda text: Parity(**({"group": _integer(text)} if text else {})),
        "known-bits": lambda text: KnownBits(_integer(text) if text else None),
        "tmr": lambda text: TMR(text or "element"),
        "aspis": lambda text: Aspis(scores(), _fraction(text)),
        "block-aspis": lambda text: BlockAspis(scores(), _fraction(text)),
        "checksum": lambda text: Checksum(text or "flag"),
    }


def _read(text: str, read: Mapping[str, Callable[[str], _Made]], *, what: str, known: str, option: str) -> _Made:
    name, _, rest = text.partition(":")
    if name not in read:
        raise HoplonError(f"{option} {text}: {no_match(what, name, [*read])}; one of {known}")
    try:
        return read[name](rest)
    except HoplonError as error:
        raise HoplonError(f"{option} {text}: {error}") from error


def _nothing(text: str) -> OnDemand:
    if text:
        raise HoplonError(f"expected demand alone, got {text!r} after it")
    return OnDemand()


def _integer(text: str) -> int:
    if not text.isdecimal():
        raise HoplonError(f"expected a whole number, got {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError as error:
        raise HoplonError(f"expected a share such as 1% or 0.01, got {text!r}") from error


def _scores(path: Path | None) -> Scores:
    if path is None:
        raise HoplonError("expected a file of scores, got none; --scores FILE, from hoplon rank")
    return Scores.load(path.expanduser())
