"""Estimates from runs that do not all count alike: strata, weights, and what the first of two phases leaves open."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from hoplon.errors import BelowOne, HoplonError, Share, checked
from hoplon.stats.intervals import Floats, Interval, check_shapes, gamma_quantile, with_event

_METHOD = "stratified"

# So many runs stand for knowledge: a stratum with them adds nothing to any limit.
CERTAIN = 1e15
# Of the probability to miss, campaigns spend so much on the upper limit: it is the dear one where failures are rare.
ABOVE = 0.8


@checked
def stratified(
    shares: ArrayLike,
    failures: ArrayLike,
    runs: ArrayLike,
    *,
    candidates: ArrayLike | None = None,
    confidence: Share = 0.95,
    above: Share = 0.5,
) -> Interval:
    """Interval of the failure probability from runs in strata: ``sum(share x failures / runs)``.

    Args:
        shares: shape ``(strata,)``, the probability of each stratum; they sum to 1.
        failures: shape ``(strata,)``, in [0, runs]; fractions are allowed (effective counts).
        runs: shape ``(strata,)``, at least 1 where the share is above 0.
        candidates: how many first-phase draws the shares are counted from, one number or one per stratum (see
            `limits`); None: they are known.
        confidence: in (0, 1).
        above: the part of the probability to miss that is spent on the upper limit, in (0, 1).
    Raises:
        HoplonError: numbers out of range, or a stratum with a share and no run: nothing would be known of it.
    Source:
        Estimator and variance: Cochran, Sampling Techniques, 3rd ed. 1977, sections 5.3 and 12.2 (double sampling).
        Limits: see `limits`.
    Example:
        >>> print(stratified([0.9, 0.1], [0, 30], [1000, 100]))
        3.00 % [2.10, 4.05]
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (shares, failures, runs)]
    share, failed, run = parts
    if share.ndim != 1 or len({part.shape for part in parts}) != 1 or not len(share):
        raise HoplonError(f"expected one share, failures and runs per stratum, got {[part.shape for part in parts]}")
    if not ((share >= 0).all() and abs(share.sum() - 1) < 1e-6):
        raise HoplonError(f"expected shares of at least 0 that sum to 1, got a sum of {share.sum():g}")
    if not ((failed >= 0) & (failed <= run)).all():
        worst = int(((failed < 0) | (failed > run)).argmax())
        raise HoplonError(f"expected failures in [0, runs={run[worst]:g}], got {failed[worst]:g}")
    if ((share > 0) & (run < 1)).any():
        worst = int(((share > 0) & (run < 1)).argmax())
        raise HoplonError(f"expected at least one run in every stratum, got none in stratum {worst}; run some there")
    tails = {"low_tail": (1 - confidence) * (1 - above), "high_tail": (1 - confidence) * above}
    mean, low, high = limits(share, failed, run, candidates=candidates, **tails)
    return Interval(float(mean), float(low), float(high), confidence, _METHOD)


@checked
def limits(
    shares: Floats,
    failures: Floats,
    runs: Floats,
    *,
    candidates: ArrayLike | None,
    low_tail: BelowOne,
    high_tail: BelowOne,
) -> tuple[Floats, Floats, Floats]:
    """Estimate and limits of ``sum(share x p)`` for many sets of strata at once; the last axis is that of the strata.

    Each stratum is known up to the cumulants of its count, x of n: p = x/n, p (1 - p) / (n - 1), and so on. They have
    no bias that would add up over many strata of few runs. Clopper and Pearson's limits lie beyond them: the upper one
    is that of one more failure, which adds (1 - p)/n. In every stratum that would be one failure per stratum; in the
    limit of rare failures they are counts of Poisson processes, and of all processes together just one event is the
    next: so one failure is added, in the stratum in which it counts most, ``max(share (1 - p) / runs)``. It is what
    keeps the limit honest where a heavy stratum has shown no failure: the rule of three. The lower limit is the same of
    runs that do not fail, ``max(share p / runs)``. The sum of the distributions is taken to be the gamma distribution,
    shifted, of the same first three cumulants.

    With one stratum this is the interval of Clopper and Pearson up to rounding; with strata that count alike, that of
    Garwood for their total; with many failures everywhere, the normal one.

    Args:
        shares, failures, runs: shape ``(..., strata)``.
        candidates: shares are counted from so many multinomial draws: the spread between the strata over their number
            is added to the variance, and one draw to the upper limit for a stratum that no draw has shown. One number
            or one per stratum, shape ``(strata,)``: strata that have the same are parts of one band of known
            probability W, n draws of which count as n / W of the whole population.
        low_tail, high_tail: probability that the truth is below, above the limits.
    Returns:
        Estimate, lower and upper limit, each of shape ``(...)``.
    Source:
        Clopper and Pearson, Biometrika 26 (1934); Fay and Feuer, Statistics in Medicine 16 (1997) 791-801, for the
        one added event of the largest weight. Its distribution is convolved here, not replaced by one gamma of two
        moments, which is too short where one stratum is heavy and the others are well known. Variances: Cochran 1977,
        equation 5.13; phase one: equation 12.3 with the second term's variance between strata.
    """
    share, failed, run = (np.asarray(part, dtype=np.float64) for part in (shares, failures, runs))
    check_shapes("shares, failures, runs and candidates", share, failed, run, candidates)
    run = np.where(share > 0, run, 1.0)
    failed = np.where(share > 0, failed, 0.0)
    probability = failed / run
    spread, before_last = probability * (1 - probability), np.maximum(run - 1, 1.0)
    cumulants = probability, spread / before_last, 2 * spread * (1 - 2 * probability) / before_last**2
    mean, *higher = (np.asarray((share**power * part).sum(-1)) for power, part in enumerate(cumulants, 1))
    failure, passed = (_next_event(share * room, run) for room in (1 - probability, probability))
    high = [known + more for known, more in zip((mean, *higher), failure, strict=True)]
    low = [known + sign * more for known, sign, more in zip((mean, *higher), (-1, 1, -1), passed, strict=True)]
    if candidates is not None:
        draws = np.asarray(candidates, dtype=np.float64)
        if not (draws >= 1).all():
            raise HoplonError(f"expected at least one candidate in every stratum, got {draws.min():g}")
        for between, skew in _first_phase(share, probability, draws):
            low = [low[0], low[1] + between, low[2] + skew]
            high = [high[0], high[1] + between, high[2] + skew]
        unseen = 1 / float(draws.min())  # the one draw that counts most
        high = with_event(high, unseen)
    bottom = np.where(mean > 0, np.clip(gamma_quantile(low, low_tail), 0, None), 0.0)
    top = np.clip(gamma_quantile(high, 1 - high_tail), None, 1.0)
    return mean, np.minimum(bottom, mean), np.maximum(top, mean)


@checked
def paired_weighted(
    only_a: Floats, only_b: Floats, weights: Floats, *, candidates: ArrayLike | None = None, confidence: Share = 0.95
) -> Interval:
    """Interval of the difference in failure probability of two arms on faults that do not count alike.

    Args:
        only_a: shape ``(clusters,)``, for each fault the share of inputs that fail in the first arm alone, in [0, 1].
        only_b: in the second alone.
        weights: shape ``(clusters,)``, the share of all faults that each stands for; they sum to 1 at most.
        candidates: how many first-phase draws the weights are counted from, one number or one per cluster (see
            `limits`); None: they are known.
        confidence: in (0, 1).
    Source:
        As `hoplon.stats.intervals.weighted`, with failures of the second arm as events that count negative: one of
        the largest weight is added on either side. The total weight is taken as known. The first phase adds at most
        what as many plain draws would leave open: the variance of a single fault's difference over the number of
        candidates (Cochran 1977, section 12.2, whose between-strata variance it bounds).
    """
    check_shapes("shares of failures, weights and candidates", only_a, only_b, weights, candidates)
    method = "gamma, weighted"
    if not len(weights):
        return Interval(math.nan, -1.0, 1.0, confidence, method)
    difference, heaviest = weights * (only_a - only_b), float(np.max(weights))
    mean, variance, third = (float((difference**power).sum()) * max(1, power - 1) for power in (1, 2, 3))
    if candidates is not None:
        variance += _left_open(weights, only_a - only_b, candidates)
    below, above = (with_event((mean, variance, third), weight) for weight in (-heaviest, heaviest))
    tail = (1 - confidence) / 2
    low, high = max(-1.0, float(gamma_quantile(below, tail))), min(1.0, float(gamma_quantile(above, 1 - tail)))
    return Interval(mean, min(low, mean), max(high, mean), confidence, method)


def _first_phase(share: Floats, probability: Floats, candidates: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Yield what the shares of every band add to variance and third cumulant."""
    drawn = np.broadcast_to(candidates, share.shape[-1:])
    for draws in np.unique(drawn).tolist():
        part = np.where(drawn == draws, share, 0.0)
        whole = part.sum(-1, keepdims=True)
        off = probability - (part * probability).sum(-1, keepdims=True) / np.where(whole > 0, whole, 1.0)
        yield (part * off**2).sum(-1) / draws, (part * off**3).sum(-1) / draws**2


def _left_open(weights: Floats, differences: Floats, candidates: ArrayLike) -> float:
    """The variance that as many plain draws of every band would have."""
    drawn = np.broadcast_to(np.asarray(candidates, dtype=np.float64), weights.shape)
    missing, found = max(0.0, 1 - float(weights.sum())), 0.0
    for draws in np.unique(drawn).tolist():
        weight, difference = weights[drawn == draws], differences[drawn == draws]
        share = float(weight.sum()) + missing
        spread = float((weight * difference**2).sum()) - float((weight * difference).sum()) ** 2 / share
        found += max(0.0, spread) / draws
    return found


def _next_event(reach: Floats, run: Floats) -> list[Floats]:
    """The cumulants of ``reach x Beta(1, run)``, one more event, in the stratum where it counts most."""
    weight = reach / run
    heaviest = weight.argmax(-1, keepdims=True)
    far, runs = (np.take_along_axis(np.broadcast_to(part, weight.shape), heaviest, -1)[..., 0] for part in (reach, run))
    total = runs + 1
    variance = runs / (total**2 * (total + 1))
    return [far / total, far**2 * variance, far**3 * 2 * variance * (runs - 1) / (total * (total + 2))]
