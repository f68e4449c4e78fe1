"""The course of a campaign in two phases: a pilot, a main stage planned from it, a look, and more where it fell short.

Nothing here runs a fault: numbers of runs come out, numbers of failures go in. So a campaign and a simulation of one
take the same course.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from hoplon.campaign.stratified.first_phase import FirstPhase
from hoplon.stats.allocation import allocate
from hoplon.stats.intervals import Floats, Ints
from hoplon.stats.strata_estimates import ABOVE, CERTAIN, limits

# Spent at the first look, which is planned to be the last one; what is left is halved at every later look.
_FIRST_LOOK = 0.8
_PILOT_RUNS = (64, 4096)
_LEAST = 4  # runs of each half of a stratum
_FEWEST_CANDIDATES = 2**16
_CANDIDATES_PER_RUN = 300  # what a run costs, in candidates
_FIRST = 400.0  # over the half-width: candidates before the pilot, where there is one band
_FIRST_IN_BANDS = 200.0  # the same where there are several, of which the upper ones are drawn from most
_ORDER = (
    2.0,
    3.0,
    10.0,
    1.0,
)  # candidates of bands, by their part of the word, see `bit_bands`

_MARGIN = 0.98  # plan for a little less, so that small campaigns need no second look
_UNSEEN = 0.6
_COARSER = 1.2


@final
@dataclass(frozen=True)
class SequentialSchedule:
    """Numbers of runs for each half of each stratum, stage by stage.

    The runs of a stratum come in two halves. How long one half becomes is planned, once, from the pilot of the other.
    So the pilot's runs count like all others, and no half's number of runs depends on its own outcomes: the estimate at
    the first look is unbiased. A campaign that a look found too wide goes on for reasons that its outcomes gave: those
    that stop have met fewer failures. So it is the first look that makes the estimate, however many there are; what is
    run after it narrows the limits.

    Args:
        half_width: to reach.
        confidence: of the interval, whenever the campaign stops.
        again: what it costs to look at more candidates after the pilot, in runs, besides what each costs.
        most_candidates: drawn and looked at in all.
    """

    half_width: float
    confidence: float = 0.95
    again: float = 0.0
    most_candidates: int = 2**24

    def tails(self, look: int) -> tuple[float, float]:
        """Probabilities to miss below and above that one look may spend; those of all looks sum to 1 - confidence."""
        alpha = 1 - self.confidence
        spent = _FIRST_LOOK * alpha if look == 0 else (1 - _FIRST_LOOK) * alpha * 0.5**look
        return (1 - ABOVE) * spent, ABOVE * spent

    def candidates(self, parts: Sequence[int]) -> Ints:
        """Candidates to draw of each band and look at before the pilot; by the part of the word that it is of."""
        wanted = 2 ** math.ceil(math.log2((_FIRST if len(parts) == 1 else _FIRST_IN_BANDS) / self.half_width))
        total = int(min(max(wanted, _FEWEST_CANDIDATES), self.most_candidates // 8))
        order = np.array([_ORDER[part] for part in parts])
        found: Ints = np.ceil(total * order / order.sum()).astype(np.int64)
        return found

    @property
    def pilot_runs(self) -> int:
        """About so many runs the pilot has."""
        return round(min(max(1.0 / self.half_width, _PILOT_RUNS[0]), _PILOT_RUNS[1]))

    def pilot(self, first: FirstPhase) -> Ints:
        """Runs of each half, shape ``(strata, 2)``: half of them by share, half evenly."""
        shares = first.shares
        open_ = (shares > 0) & ~first.sure
        if not open_.any():
            return np.zeros((len(shares), 2), dtype=np.int64)
        parts = np.where(open_, 0.5 * shares / shares[open_].sum() + 0.5 / open_.sum(), 0.0)
        half = np.where(open_, np.maximum(np.ceil(self.pilot_runs * parts / 2), _LEAST), 0)
        return np.repeat(half.astype(np.int64)[:, None], 2, axis=1)

    def main_stage(
        self, first: FirstPhase, failures: Ints, runs: Ints, *, effects: Floats | None = None
    ) -> tuple[Ints, Ints]:
        """Runs that each half is to have in all, and how many candidates of each band to draw.

        Args:
            failures, runs: so far, shape ``(strata, 2)``.
            effects: of faults that meet several inputs, seen in each half, shape ``(strata, 2)``; see `allocate`.
        """
        planned = []
        for other in (1, 0):  # candidates as well, so that what a half shows reaches none of its own numbers
            seen = None if effects is None else effects[:, other]
            planned.append(self._plan(first, failures[:, other], runs[:, other], look=0, effects=seen))
        halves = np.stack([np.ceil(plan / 2).astype(np.int64) for plan, _ in planned], axis=1)
        return np.maximum(halves, runs), np.maximum(*(drawn for _, drawn in planned))

    def next_allocation(
        self, first: FirstPhase, failures: Ints, runs: Ints, *, look: int, effects: Floats | None = None
    ) -> tuple[Ints, Ints]:
        """As `main_stage`, after a look that was not precise enough; ``look`` is the one to come."""
        joint = None if effects is None else effects.mean(1)
        plan, drawn = self._plan(first, failures.sum(1), runs.sum(1), look=look, effects=joint)
        # at least a tenth more, so that the looks come to an end
        wanted = np.maximum(-(-plan[:, None] // 2), np.ceil(1.1 * runs).astype(np.int64))
        wanted = np.where(runs > 0, wanted, wanted * (plan[:, None] > 0))
        return wanted, first.enough(wanted, drawn)

    def with_new_strata(self, first: FirstPhase, planned: Ints) -> Ints:
        """The plan, with a few runs for strata that candidates have shown since it was made."""
        new = (first.counts > 0) & ~first.sure & (planned.sum(1) == 0)
        return np.where(new[:, None], _LEAST, planned)

    def look(
        self, first: FirstPhase, failures: Ints, runs: Ints, *, look: int, planned: tuple[Ints, Ints] | None = None
    ) -> tuple[float, float, float]:
        """Estimate and limits at one look; ``planned``: failures and runs at the first one, where this is another."""
        halves, draws = np.repeat(first.shares / 2, 2), np.repeat(first.draws, 2)
        sure = np.repeat(first.sure, 2)
        run = np.where(sure, CERTAIN, runs.reshape(-1))
        failed = np.where(sure, np.repeat(np.nan_to_num(first.known), 2) * CERTAIN, failures.reshape(-1))
        low_tail, high_tail = self.tails(look)
        found = limits(halves, failed, run, candidates=draws, low_tail=low_tail, high_tail=high_tail)
        mean, low, high = map(float, found)
        if planned is not None:
            failed, run = np.where(planned[1] > 0, planned, (failures, runs)).reshape(2, -1)
            seen = np.where(sure, np.repeat(np.nan_to_num(first.known), 2), failed / np.maximum(run, 1))
            mean = min(max(float(halves @ seen), low), high)
        return mean, low, high

    def _plan(
        self,
        first: FirstPhase,
        failures: Ints,
        runs: Ints,
        *,
        look: int,
        effects: Floats | None = None,
    ) -> tuple[Ints, Ints]:
        """The cheapest plan over numbers of candidates, from those there are on."""
        sure = first.sure
        guesses = np.where(sure, np.nan_to_num(first.known), failures / np.maximum(runs, 1))
        all_fail = ~sure & (failures == runs) & (runs > 0)
        guesses = np.where(all_fail, (runs + 0.5) / (runs + 1), guesses)
        low_tail, high_tail = self.tails(look)
        allocated = partial(
            allocate,
            first.shares,
            guesses,
            low_tail=low_tail,
            high_tail=high_tail,
            known=sure,
            effects=effects,
            unseen=_UNSEEN,
            least=2 * _LEAST,
        )
        wanted = self.half_width * _MARGIN
        best: tuple[float, Ints, Ints] | None = None
        while best is None:
            for drawn in self._growing(first, guesses):
                room = first.members_of(drawn) - 1
                plan = allocated(half_width=wanted, candidates=first.draws_of(drawn), members=room)
                cost = math.inf if plan is None else float(plan.sum()) + self._cost(first, drawn)
                if best is not None and cost >= best[0]:
                    break
                best = best if plan is None else (cost, plan, drawn)
            wanted *= _COARSER  # not to be had with these candidates: as near as it gets, and a look will tell
        return best[1], best[2]

    def _cost(self, first: FirstPhase, drawn: Ints) -> float:
        """Of candidates, in runs."""
        return float(drawn.sum()) / _CANDIDATES_PER_RUN + (self.again if (drawn > first.drawn).any() else 0.0)

    def _growing(self, first: FirstPhase, guesses: Floats) -> Iterator[Ints]:
        """Numbers of candidates to choose from: as many as there are, and more, by Neyman's rule for the bands."""
        yield first.drawn
        spread, total = first.spread(guesses), float(first.drawn.sum())
        parts = spread / spread.sum() if spread.any() else first.weights
        while 2 * total <= self.most_candidates:
            total *= 2
            yield np.maximum(first.drawn, np.ceil(total * parts).astype(np.int64))
