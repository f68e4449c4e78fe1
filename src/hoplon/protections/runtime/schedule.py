"""When guards check memory: before each forward pass, a slice before each, or when asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from hoplon.errors import HoplonError


class When(ABC):
    """Which check comes before which forward pass. Subclasses are frozen dataclasses."""

    @abstractmethod
    def due(self, forward: int) -> tuple[int, int] | None:
        """The check before forward pass ``forward`` (0 is the first): its turn and the number of turns; None: none."""

    @property
    @abstractmethod
    def latency(self) -> int | None:
        """How many forward passes may run on a fault before a check comes to it; None: no bound."""

    @property
    @abstractmethod
    def text(self) -> str:
        """What is checked when, and what follows for a fault, as a sentence."""


@final
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

    n: int = 1

    def __post_init__(self) -> None:
        _require_positive("n", self.n)

    def due(self, forward: int) -> tuple[int, int] | None:
        """All of it where ``forward`` is a multiple of ``n``."""
        return (0, 1) if forward % self.n == 0 else None

    @property
    def latency(self) -> int:
        """``n`` forward passes."""
        return self.n

    @property
    def text(self) -> str:
        """As a sentence."""
        every = "each forward pass" if self.n == 1 else f"each {self.n}th forward pass, beginning with the first"
        passes = "one forward pass" if self.n == 1 else f"{self.n} forward passes"
        return f"all memory is checked before {every}: a fault reaches at most {passes}"


@final
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

    turns: int = 16

    def __post_init__(self) -> None:
        _require_positive("turns", self.turns)

    def due(self, forward: int) -> tuple[int, int] | None:
        """The slices in order."""
        return forward % self.turns, self.turns

    @property
    def latency(self) -> int:
        """``turns`` forward passes."""
        return self.turns

    @property
    def text(self) -> str:
        """As a sentence."""
        return (
            f"one slice of {self.turns} is checked before each forward pass, in turn: a fault reaches at most "
            f"{self.turns} forward passes"
        )


@final
@dataclass(frozen=True)
class OnDemand(When):
    """Nothing before forward passes; memory is checked when ``check()`` is called."""

    def due(self, forward: int) -> tuple[int, int] | None:
        """Never."""
        return None

    @property
    def latency(self) -> None:
        """No bound."""
        return None

    @property
    def text(self) -> str:
        """As a sentence."""
        return "memory is checked when check() is called: a fault reaches every forward pass until then"


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HoplonError(f"expected {name} to be a whole number of at least 1, got {value!r}")
