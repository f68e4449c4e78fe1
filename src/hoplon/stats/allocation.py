"""How many runs each stratum gets, so that the estimate is as precise as asked for at the least cost."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hoplon.errors import BelowOne, Count, Natural, NonNegative, Share, checked
from hoplon.stats.intervals import Floats, Ints, check_shapes
from hoplon.stats.strata_estimates import CERTAIN, limits

_FLOORS = np.geomspace(0.5, 24.0, 14)
_STEPS = 13  # to a quarter of a percent


@checked
def allocate(
    shares: Floats,
    guesses: Floats,
    *,
    half_width: Share,
    candidates: ArrayLike | None,
    low_tail: BelowOne,
    high_tail: BelowOne,
    known: NDArray[np.bool_] | None = None,
    effects: Floats | None = None,
    unseen: NonNegative = 0.5,
    least: Natural = 8,
    most: Count = 10**9,
    members: Floats | None = None,
) -> Ints | None:
    """The cheapest runs per stratum whose interval is expected to have this half-width; None: no runs give it.

    Two needs are weighed against each other. Strata with failures get runs by Neyman's rule, in proportion to
    ``share x sqrt(p (1 - p))``. Every stratum gets at least a number in proportion to its share, since the upper limit
    pays for the run that counts most (see ``strata_estimates.limits``): a heavy stratum without failures has to
    be ruled out by runs. Both constants are found by search, with the interval itself as the measure.

    Args:
        shares: shape ``(strata,)``, sum 1.
        guesses: shape ``(strata,)``, the failure probability to expect; 0 where none was seen.
        effects: shape ``(strata,)``, of faults that meet several inputs: the variance of the share that fails over
            ``p (1 - p)``, in (0, 1]; 1 by default.
        known: strata whose probability is `guesses` for certain; they get no runs.
        candidates: as in ``strata_estimates.limits``.
        unseen: failures to expect in all strata of guess 0 together, so that one of them does not upset the plan.
        least: runs in every stratum with a share.
        most: runs in all, beyond which the precision is not reached.
        members: shape ``(strata,)``, how many runs there can be in each stratum; any number by default.
    Returns:
        int64, shape ``(strata,)``; None where even `most` or `members` runs leave the interval wider, as few
        candidates do.
    Source:
        Neyman, Journal of the Royal Statistical Society 97 (1934) 558-625; Cochran 1977, section 5.5.
    """
    check_shapes("shares, guesses, known, effects and members", shares, guesses, known, effects, members)
    sure = np.zeros(len(shares), dtype=bool) if known is None else known.astype(bool)
    spread = np.where(sure, 0.0, np.sqrt(guesses * (1 - guesses)))
    neyman = shares * spread if effects is None else shares * spread * np.sqrt(effects)
    neyman = neyman / neyman.sum() if neyman.any() else shares
    room = np.inf if members is None else np.maximum(members, 1.0)

    silent = (guesses == 0) & (shares > 0) & ~sure

    def runs(total: Floats, floor: Floats) -> Floats:
        found = np.maximum(np.maximum(neyman * total[:, None], shares * floor[:, None]), least)
        return np.where((shares > 0) & ~sure, np.minimum(np.ceil(found), room), 0.0)

    def reached(planned: Floats) -> NDArray[np.bool_]:
        if effects is not None:  # independent runs of this variance, see `hoplon.stats.intervals.effective`
            whole = planned * spread**2
            planned = planned * (whole + 1) / (whole * effects + 1)
        planned = np.where(sure, CERTAIN, planned)
        met = planned * guesses
        idle = np.where(silent, planned, 0.0)
        met = met + unseen * idle / np.maximum(idle.sum(-1, keepdims=True), 1.0)
        _, low, high = limits(shares, met, planned, candidates=candidates, low_tail=low_tail, high_tail=high_tail)
        found: NDArray[np.bool_] = (high - low) / 2 <= half_width
        return found

    floors = _FLOORS / half_width
    low, high = np.zeros(len(floors)), np.full(len(floors), math.log(most))
    for _ in range(_STEPS):  # bisection of log(total), for all floors at once
        middle = (low + high) / 2
        good = reached(runs(np.exp(middle), floors))
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    plans = runs(np.exp(high), floors)
    costs = np.where(reached(plans), plans.sum(1), np.inf)
    best = int(costs.argmin())
    return plans[best].astype(np.int64) if np.isfinite(costs[best]) else None
