"""Decisions about a limit, looked at again and again while runs come in, with errors that hold over all looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from hoplon.errors import Count, HoplonError, Share, checked
from hoplon.stats.intervals import Floats, Interval, effective
from hoplon.stats.strata_estimates import limits, paired_weighted

Verdict = Literal["pass", "fail", "undecided"]


@final
@checked
@dataclass(frozen=True)
class Looks:
    """Numbers of faults at which a limit is looked at: the first, then twice as many each time, up to the most.

    The last look may spend half of the probability of a wrong decision, the others share the rest evenly (union bound):
    whatever the truth, the probability that a look fails what keeps to the limit is at most ``error``, and so is that
    one passes what does not. (Evenly over all looks left 6 % of equal builds undecided, see `tests/stats`.)

    Args:
        first: faults before the first look.
        most: faults at the last one.
        error: probability of either wrong decision, over all looks.
    Source:
        Jennison and Turnbull, Group Sequential Methods, 1999, for looks; the bound is Bonferroni's.
    Example:
        >>> Looks(first=1000, most=5000, error=0.05).numbers
        (1000, 2000, 4000, 5000)
    """

    first: Count
    most: Count
    error: Share

    def __post_init__(self) -> None:
        if self.first > self.most:
            raise HoplonError(f"expected a first look of at most {self.most} faults, got {self.first}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Faults at each look."""
        doublings = math.ceil(math.log2(self.most / self.first))
        return (*(self.first * 2**look for look in range(doublings)), self.most)

    def confidence(self, look: int) -> float:
        """Of the interval at one look, counted from 0, whose both ends may decide."""
        earlier = len(self.numbers) - 1
        if not earlier:
            return 1 - 2 * self.error
        return 1 - self.error * (1.0 if look == earlier else 1 / earlier)


@checked
def probability_at_look(shares: np.ndarray, *, confidence: Share) -> Interval:
    """Interval of a failure probability at one look.

    Args:
        shares: shape ``(faults,)``, of each fault the share of its runs that fail, in [0, 1].
        confidence: of `Looks.confidence`.
    """
    failed, runs = effective(shares, np.ones(len(shares)))
    tail = (1 - confidence) / 2
    parts = (np.array([part]) for part in (1.0, failed, runs))
    mean, low, high = limits(*parts, candidates=None, low_tail=tail, high_tail=tail)
    return Interval(float(mean), float(low), float(high), confidence, "gamma, sequential")


@checked
def increase_at_look(new: np.ndarray, old: np.ndarray, *, confidence: Share) -> Interval:
    """Interval at one look of how much more often one side fails than the other, from pairs of faults.

    Args:
        new: shape ``(faults,)``, of each fault the share of its runs that fail on the first side, in [0, 1].
        old: likewise on the second, of the same fault or of another one drawn in its place.
        confidence: of `Looks.confidence`.
    """
    only_new, only_old = np.maximum(new - old, 0), np.maximum(old - new, 0)
    weights: Floats = np.full(len(new), 1 / max(len(new), 1))
    return paired_weighted(only_new, only_old, weights, confidence=confidence)


def decided(low: float, high: float, limit: float) -> Verdict:
    """Tell whether an interval, never its estimate, keeps to a limit.

    Example:
        >>> decided(1.0, 2.0, limit=2.0), decided(1.0, 2.0, limit=1.5), decided(1.0, 2.0, limit=0.5)
        ('pass', 'undecided', 'fail')
    """
    return "pass" if high <= limit else "fail" if low > limit else "undecided"


@checked
def faults_to_decide(found: Interval, limit: float, faults: Count) -> int | None:
    """About how many more faults would decide, were their outcomes like those so far; None: at the limit itself.

    Limits come as near to the estimate as the root of the number of faults says.

    Example:
        >>> faults_to_decide(Interval(0.001, 0.0, 0.003, 0.99, ""), 0.002, 1000)
        3000
    """
    if decided(found.low, found.high, limit) != "undecided":
        return 0
    away = limit - found.estimate
    reach = found.high - found.estimate if away > 0 else found.estimate - found.low
    return None if away == 0 else math.ceil(faults * ((reach / away) ** 2 - 1))
