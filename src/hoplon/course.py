"""The course of a campaign in two phases: a pilot, a main stage planned from it, a look, and more where it fell short.

Nothing here runs a fault: numbers of runs come out, numbers of failures go in. So a campaign and a simulation of one
take the same course.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hoplon.allocation import Ints, allocate
from hoplon.estimation import ABOVE, CERTAIN, Floats, limits

# Spent at the first look, which is planned to be the last one; what is left is halved at every later look.
_FIRST_LOOK = 0.8
_PILOT_RUNS = (64, 4096)
_LEAST = 4  # runs of each half of a stratum
_CANDIDATES = (2**16, 2**24)
_CANDIDATES_PER_RUN = 400  # what a run costs, in candidates


@final
@dataclass(frozen=True)
class Course:
    """How many runs each half of each stratum gets, stage by stage.

    The runs of a stratum come in two halves. How long one half becomes is planned, once, from the pilot of the other.
    So the pilot's runs count like all others, and no half's number of runs depends on its own outcomes: the estimate at
    the first look is unbiased. Only a campaign that a look found too wide goes on for reasons that its outcomes gave.

    Args:
        half_width: to reach.
        confidence: of the interval, whenever the campaign stops.
    """

    half_width: float
    confidence: float = 0.95

    def tails(self, look: int) -> tuple[float, float]:
        """Probabilities to miss below and above that one look may spend; those of all looks sum to 1 - confidence."""
        alpha = 1 - self.confidence
        spent = _FIRST_LOOK * alpha if look == 0 else (1 - _FIRST_LOOK) * alpha * 0.5**look
        return (1 - ABOVE) * spent, ABOVE * spent

    @property
    def candidates(self) -> int:
        """How many to draw and look at before the pilot."""
        wanted = 2 ** math.ceil(math.log2(_CANDIDATES_PER_RUN / self.half_width))
        return int(min(max(wanted, _CANDIDATES[0]), _CANDIDATES[1] // 8))

    def pilot(self, shares: Floats, known: NDArray[np.bool_]) -> Ints:
        """Runs of each half, shape ``(strata, 2)``: half of them by share, half evenly."""
        runs = min(max(1.0 / self.half_width, _PILOT_RUNS[0]), _PILOT_RUNS[1])
        open_ = (shares > 0) & ~known
        if not open_.any():
            return np.zeros((len(shares), 2), dtype=np.int64)
        parts = np.where(open_, 0.5 * shares / shares[open_].sum() + 0.5 / open_.sum(), 0.0)
        half = np.where(open_, np.maximum(np.ceil(runs * parts / 2), _LEAST), 0)
        return np.repeat(half.astype(np.int64)[:, None], 2, axis=1)

    def main(
        self,
        shares: Floats,
        known: Floats,
        failures: Ints,
        runs: Ints,
        *,
        candidates: int,
        effects: Floats | None = None,
    ) -> tuple[Ints, int]:
        """Runs that each half is to have in all, and how many candidates to draw.

        Args:
            known: failure probability of strata that need no run; NaN for the others.
            failures, runs: so far, shape ``(strata, 2)``.
            effects: of faults that meet several inputs, seen in each half, shape ``(strata, 2)``; see `allocate`.
        """
        joint = None if effects is None else effects.mean(1)
        _, drawn = self._plan(shares, known, failures.sum(1), runs.sum(1), candidates, look=0, effects=joint)
        planned = [
            self._plan(
                shares,
                known,
                failures[:, other],
                runs[:, other],
                drawn,
                look=0,
                fixed=True,
                effects=None if effects is None else effects[:, other],
            )[0]
            for other in (1, 0)
        ]
        halves = np.stack([np.ceil(plan / 2).astype(np.int64) for plan in planned], axis=1)
        return np.maximum(halves, runs), drawn

    def more(
        self,
        shares: Floats,
        known: Floats,
        failures: Ints,
        runs: Ints,
        *,
        candidates: int,
        look: int,
        effects: Floats | None = None,
    ) -> tuple[Ints, int]:
        """As `main`, after a look that was not precise enough; ``look`` is the one to come."""
        joint = None if effects is None else effects.mean(1)
        plan, drawn = self._plan(shares, known, failures.sum(1), runs.sum(1), candidates, look=look, effects=joint)
        # at least a tenth more, so that the looks come to an end
        wanted = np.maximum(-(-plan[:, None] // 2), np.ceil(1.1 * runs).astype(np.int64))
        return np.where(runs > 0, wanted, wanted * (plan[:, None] > 0)), drawn

    def look(
        self, shares: Floats, known: Floats, failures: Ints, runs: Ints, *, candidates: int, look: int
    ) -> tuple[float, float, float]:
        """Estimate and limits at one look."""
        halves = np.repeat(shares / 2, 2)
        sure = np.repeat(~np.isnan(known), 2)
        run = np.where(sure, CERTAIN, runs.reshape(-1))
        failed = np.where(sure, np.repeat(np.nan_to_num(known), 2) * CERTAIN, failures.reshape(-1))
        low_tail, high_tail = self.tails(look)
        found = limits(halves, failed, run, candidates=candidates, low_tail=low_tail, high_tail=high_tail)
        return float(found[0]), float(found[1]), float(found[2])

    def _plan(
        self,
        shares: Floats,
        known: Floats,
        failures: Ints,
        runs: Ints,
        candidates: int,
        *,
        look: int,
        fixed: bool = False,
        effects: Floats | None = None,
    ) -> tuple[Ints, int]:
        """The cheapest plan over numbers of candidates from `candidates` on."""
        sure = ~np.isnan(known)
        guesses = np.where(sure, np.nan_to_num(known), failures / np.maximum(runs, 1))
        all_fail = ~sure & (failures == runs) & (runs > 0)
        guesses = np.where(all_fail, (runs + 0.5) / (runs + 1), guesses)
        low_tail, high_tail = self.tails(look)
        best: tuple[float, Ints, int] | None = None
        drawn = candidates
        while True:
            plan = allocate(
                shares,
                guesses,
                half_width=self.half_width * _MARGIN,
                candidates=drawn,
                low_tail=low_tail,
                high_tail=high_tail,
                known=sure,
                effects=effects,
                unseen=_UNSEEN,
                least=2 * _LEAST,
            )
            cost = float(plan.sum()) + drawn / _CANDIDATES_PER_RUN
            if best is None or cost < best[0]:
                best = (cost, plan, drawn)
            elif not fixed:
                break
            if fixed or 2 * drawn > _CANDIDATES[1]:
                break
            drawn *= 2
        return best[1], best[2]


_MARGIN = 0.95  # plan for a little less, so that the first look is nearly always the last one
_UNSEEN = 0.3
