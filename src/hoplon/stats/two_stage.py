"""Two-stage sampling: memory faults, and of each the batches of inputs that it meets (Cochran 1977, chapter 10).

Two-*phase* sampling is something else: candidates are looked at, and some of the same are run; see
`hoplon.stats.strata_estimates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hoplon.errors import HoplonError, checked
from hoplon.stats.intervals import Floats, Ints

_PILOT = 2  # batches of each fault of a pilot: the fewest that tell the levels apart


@final
@dataclass(frozen=True)
class VarianceComponents:
    """Variances of the share of failing inputs: ``between`` the means of faults over all inputs, and ``within`` a
    fault from batch to batch of inputs.
    """

    between: float
    within: float

    def variance(self, batches: int, *, of: int) -> float:
        """Of the mean of one random fault over so many of its ``of`` batches (Cochran 1977, equation 10.9)."""
        return self.between + self.within * (1 / batches - 1 / of)


@final
@dataclass(frozen=True)
class TwoStagePlan:
    """Number of input batches that a memory fault meets, with the reasons.

    ``batches``: for the faults of either half of the strata (see
    `hoplon.campaign.stratified.schedule.SequentialSchedule`), each chosen from the pilot of the other half; ``of``:
    all there are; ``pilot``: what the pilot's faults meet. ``spreads``: that the choices rest on. ``fault_cost``
    (guards' check), ``batch_cost`` (one pass): bytes of memory that have to be touched.
    """

    batches: tuple[int, int]
    of: int
    pilot: int
    spreads: tuple[VarianceComponents, VarianceComponents]
    fault_cost: float
    batch_cost: float

    @property
    def partial(self) -> bool:
        """True if some fault meets a part of the inputs only."""
        return min(*self.batches, self.pilot) < self.of

    def __str__(self) -> str:
        """The choice in one line, with what led to it."""
        low, high = min(self.batches), max(self.batches)
        chosen = f"{low}" if low == high else f"{low} or {high}"
        if not self.partial:
            return f"every fault meets all inputs ({self.of} of {self.of} batches)"
        between, within = (np.mean([getattr(one, name) for one in self.spreads]) for name in ("between", "within"))
        return (
            f"each fault meets {chosen} of {self.of} input batches, drawn at random ({self.pilot} in the pilot): "
            f"variance {between:.2g} between faults, {within:.2g} between the batches of a fault; a fault costs "
            f"{self.fault_cost / self.batch_cost:.2g} batches besides"
        )


def pilot_batches(of: int) -> int:
    """Batches that a fault of the pilot meets, out of so many."""
    return min(_PILOT, of)


def spread_of(weights: Sequence[float], shares: Sequence[Floats], *, of: int) -> VarianceComponents:
    """Variance components from a pilot in strata.

    Args:
        weights: of each stratum, its share of all faults.
        shares: for each stratum, shape ``(faults, batches)``: the share of failing inputs in each batch that a fault
            met. Strata with fewer than two faults are left out.
        of: how many batches there are.
    Returns:
        The mean over strata of the components within them, each weighted by what the stratum contributes to the
        variance of the estimate, ``weight ** 2 / faults``; zero where no failure was seen. To the faults that failed
        some input one is added that fails all of them or none, as the intervals do: few faults do not show that all
        are alike.
    Source:
        Cochran, Sampling Techniques, 3rd ed. 1977, section 10.3 (equation 10.14: unbiased components).
    """
    parts, found = [], []
    failing = 0
    for weight, share in zip(weights, shares, strict=True):
        faults, met = share.shape
        if faults < 2:
            continue
        inside = float(share.var(axis=1, ddof=1).mean()) if met > 1 else 0.0
        between = float(share.mean(axis=1).var(ddof=1)) - inside * (1 / met - 1 / of)
        parts.append(weight**2 / faults)
        found.append((between, inside, float(share.mean()) * (1 - float(share.mean()))))
        failing += int(share.any(axis=1).sum())
    if not failing:
        return VarianceComponents(0.0, 0.0)
    between, within, whole = (float(part) for part in np.average(found, axis=0, weights=parts))
    return VarianceComponents((failing * max(between, 0.0) + whole) / (failing + 1), within)


@checked
def cheapest(spread: VarianceComponents, *, of: int, fault_cost: float, batch_cost: float) -> int:
    """Number of batches that each fault meets, so that a precision costs least.

    The variance of an estimate from n faults of b batches is ``(between + within (1 / b - 1 / of)) / n``, its cost
    ``n (fault_cost + b batch_cost)``; least is the product at
    ``b = sqrt(fault_cost within / (batch_cost (between - within / of)))``, in whole batches one beside it.

    Args:
        spread: of the faults.
        of: how many batches there are, at least 1.
        fault_cost: what a fault costs before it meets an input, at least 0.
        batch_cost: what each batch costs, above 0; in the same unit.
    Returns:
        In [1, ``of``]. Where faults differ less than random batches alone would make them, all: then a fault on all
        inputs says more than any number of faults on few.
    Raises:
        HoplonError: numbers out of range.
    Source:
        Cochran 1977, section 10.6, equation 10.26.
    Example:
        >>> cheapest(VarianceComponents(between=0.01, within=0.04), of=100, fault_cost=9.0, batch_cost=1.0)
        6
    """
    if of < 1 or fault_cost < 0 or batch_cost <= 0:
        raise HoplonError(
            "expected at least 1 batch, a cost per fault of at least 0 and a cost per batch above 0, "
            f"got {of}, {fault_cost} and {batch_cost}"
        )
    if spread.within == 0:
        return 1
    apart = spread.between - spread.within / of
    if apart <= 0:
        return of
    best = math.sqrt(fault_cost * spread.within / (batch_cost * apart))
    beside = [min(max(whole, 1), of) for whole in (math.floor(best), math.ceil(best))]
    return min(beside, key=lambda b: spread.variance(b, of=of) * (fault_cost + b * batch_cost))


def draw_groups(batches: Ints, sizes: Ints, *, seed: int, unit: int) -> NDArray[np.bool_]:
    """Draw the input batches that each fault meets: so many different ones, independently for every fault.

    The first is drawn with a probability in proportion to its size, the others evenly. So a group is drawn in
    proportion to the inputs in it, and the share of *its* inputs that fail is an unbiased estimate of the share of all,
    also where the last batch is short.

    Args:
        batches: int64, shape ``(faults,)``, how many each fault meets, in [1, ``len(sizes)``].
        sizes: int64, shape ``(batches,)``, the inputs in each batch.
        seed, unit: decide the groups.
    Returns:
        bool, shape ``(faults, len(sizes))``.
    Raises:
        HoplonError: more batches than there are, or none.
    Source:
        Midzuno, Annals of the Institute of Statistical Mathematics 3 (1951) 99-107; Lahiri (1951) in Cochran 1977,
        section 6.15.
    """
    wrong = batches[(batches < 1) | (batches > len(sizes))]
    if len(wrong):
        raise HoplonError(f"expected 1 to {len(sizes)} batches for each fault, got {wrong[0]}")
    generator = np.random.default_rng([seed, unit, _STREAM])
    first = generator.choice(len(sizes), size=len(batches), p=sizes / sizes.sum())
    turn = generator.random((len(batches), len(sizes)))
    turn[np.arange(len(batches)), first] = -1.0
    place = turn.argsort(axis=1).argsort(axis=1)
    groups: NDArray[np.bool_] = place < batches[:, None]
    return groups


def effects(
    shares: Sequence[Floats], *, pilot: VarianceComponents | None = None, met: int = 1, batches: int = 1, of: int = 1
) -> Floats:
    """Variance ratio by stratum: ``Var(share of failing inputs of a fault) / Var(outcome of one input)``.

    The design effect that `hoplon.stats.allocation.allocate` needs; dimensionless.

    Args:
        shares: for each stratum, shape ``(faults,)``, the share of a fault's inputs that fail.
        pilot: components; with them, ``shares`` are of ``met`` batches, the effect is that for ``batches``.
    Returns:
        Shape ``(strata,)``, in (0, 1]; held up by one whole fault, as in `hoplon.stats.intervals.effective`.
    """
    ratio = 1.0
    if pilot is not None and pilot.variance(met, of=of) > 0:
        ratio = pilot.variance(batches, of=of) / pilot.variance(met, of=of)
    found = np.ones(len(shares))
    for index, share in enumerate(shares):
        if len(share) and share.any():
            whole = len(share) * float(share.mean()) * (1 - float(share.mean()))
            found[index] = ratio * (float(((share - share.mean()) ** 2).sum()) + 1) / (whole + 1)
    return np.clip(found, 1e-6, 1.0)


_STREAM = 0x6261746368  # apart from the draws of faults
