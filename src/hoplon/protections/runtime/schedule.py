"""Schedules of checks: before each forward pass, a slice before each, or on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from hoplon.errors import Count, checked
from hoplon.registry import register


class When(ABC):
    """A schedule of checks before forward passes. Subclasses are frozen dataclasses."""

    @abstractmethod
    def due(self, forward: int) -> tuple[int, int] | None:
        """Return the check before forward pass ``forward`` from 0: its turn and the number of turns; None: none."""

    @property
    @abstractmethod
    def latency(self) -> int | None:
        """Most forward passes that may run on a fault before a check comes to it; None: no bound."""

    @property
    @abstractmethod
    def text(self) -> str:
        """Sentence: what is checked when, and what follows for a fault."""


@register("schedule", "every")
@final
@checked
@dataclass(frozen=True)
class EveryForward(When):
    """All memory before every ``n``-th forward pass, the first one included.

    A fault that arrives after a check is met by the next one: at most ``n`` forward passes run on it.

    Raises:
        HoplonError: ``n`` below 1.
    Example:
        >>> [EveryForward(3).due(forward) for forward in range(4)]
        [(0, 1), None, None, (0, 1)]
    """

    n: Count = 1

    @override
    def due(self, forward: int) -> tuple[int, int] | None:
        return (0, 1) if forward % self.n == 0 else None

    @property
    @override
    def latency(self) -> int:
        return self.n

    @property
    @override
    def text(self) -> str:
        every = "each forward pass" if self.n == 1 else f"each {self.n}th forward pass, beginning with the first"
        passes = "one forward pass" if self.n == 1 else f"{self.n} forward passes"
        return f"all memory is checked before {every}: a fault reaches at most {passes}"


@register("schedule", "rotating")
@final
@checked
@dataclass(frozen=True)
class Rotating(When):
    """A slice of memory before each forward pass, another one each time; after ``turns`` passes it begins again.

    A fault is met when the turn of its slice comes: at most ``turns`` forward passes run on it. Each check costs about
    ``1 / turns`` of a whole one; how evenly depends on the guard, which cuts memory at places of its own.

    Raises:
        HoplonError: ``turns`` below 1.
    Example:
        >>> [Rotating(2).due(forward) for forward in range(3)]
        [(0, 2), (1, 2), (0, 2)]
    """

    turns: Count = 16

    @override
    def due(self, forward: int) -> tuple[int, int] | None:
        return forward % self.turns, self.turns

    @property
    @override
    def latency(self) -> int:
        return self.turns

    @property
    @override
    def text(self) -> str:
        return (
            f"one slice of {self.turns} is checked before each forward pass, in turn: a fault reaches at most "
            f"{self.turns} forward passes"
        )


@register("schedule", "demand")
@final
@dataclass(frozen=True)
class OnDemand(When):
    """Nothing before forward passes; memory is checked when ``check()`` is called."""

    @override
    def due(self, forward: int) -> tuple[int, int] | None:
        return None

    latency = None

    text = "memory is checked when check() is called: a fault reaches every forward pass until then"
