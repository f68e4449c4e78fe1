"""Where work units run. A unit is a function of its number alone, so the place cannot change the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, final

Result = TypeVar("Result")


class Executor(ABC):
    """Runs work units and gives their results as they finish."""

    @abstractmethod
    def run(self, work: Callable[[int], Result], units: Iterable[int]) -> Iterator[tuple[int, Result]]:
        """Pairs of unit number and result, in any order."""


@final
class Serial(Executor):
    """One unit after another in this process."""

    def run(self, work: Callable[[int], Result], units: Iterable[int]) -> Iterator[tuple[int, Result]]:
        """In the order of ``units``."""
        for unit in units:
            yield unit, work(unit)
