"""Intervals, sample sizes and tests: what a count of failures says about the probability behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import numpy as np
import scipy  # whose parts are loaded where they are used: half a second
from annotated_types import Ge, Lt
from numpy.typing import ArrayLike, NDArray

from hoplon.errors import HoplonError, Natural, Share, checked

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_NO_SKEW = 1e-3  # below, two terms of an expansion are exact to 1e-6 of the spread


@final
@dataclass(frozen=True)
class Interval:
    """An estimated probability, or difference of two, with its confidence limits.

    Args:
        estimate: in [-1, 1]; NaN where nothing was measured.
        low: lower limit.
        high: upper limit.
        confidence: probability that the interval covers the truth, in (0, 1).
        method: how the limits were found.
    Example:
        >>> print(Interval(0.0204, 0.0197, 0.0212, 0.95, "wilson"))
        2.04 % [1.97, 2.12]
    """

    estimate: float
    low: float
    high: float
    confidence: float
    method: str

    @property
    def half_width(self) -> float:
        """Half the distance between the limits."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """In percent, with two decimals, or as many as show the half-width."""
        half_width = 100 * self.half_width
        decimals = 2 if half_width <= 0 else max(2, math.ceil(-math.log10(half_width)))
        low, high = (f"{100 * limit:.{decimals}f}" for limit in (self.low, self.high))
        if math.isnan(self.estimate):
            return f"not measured [{low}, {high}]"
        return f"{100 * self.estimate:.{decimals}f} % [{low}, {high}]"


@final
@dataclass(frozen=True)
class Ratio:
    """An estimated ratio of two probabilities with its confidence limits.

    Args:
        estimate: at least 0; infinite where only the denominator's event was never seen, NaN where neither was.
        low: lower limit, finite.
        high: upper limit, may be infinite.
        confidence: probability that the interval covers the truth, in (0, 1).
        method: how the limits were found.
    Example:
        >>> print(Ratio(48.8, 39.342, 60.554, 0.95, "bonett-price"))
        48.8 [39.3, 60.6]
    """

    estimate: float
    low: float
    high: float
    confidence: float
    method: str

    def __str__(self) -> str:
        """With three significant digits."""
        estimate = "not measured" if math.isnan(self.estimate) else f"{self.estimate:.3g}"
        return f"{estimate} [{self.low:.3g}, {self.high:.3g}]"


@checked
def wilson(successes: Natural, trials: Natural, *, confidence: Share = 0.95) -> Interval:
    """Wilson score interval of a probability, for plain counts.

    Args:
        successes: in [0, trials].
        trials: independent runs; 0 gives the estimate NaN and the limits 0 and 1.
        confidence: in (0, 1).
    Source:
        Wilson, JASA 22 (1927); Newcombe, Statistics in Medicine 17 (1998) 857-872, method 3.
    Example:
        >>> print(wilson(3, 1000))
        0.30 % [0.10, 0.88]
    """
    return _binomial(successes, trials, confidence, "wilson", "wilson")


@checked
def clopper_pearson(successes: Natural, trials: Natural, *, confidence: Share = 0.95) -> Interval:
    """Clopper-Pearson interval of a probability: covers at least `confidence` for every probability.

    Wider than `wilson`; arguments as there.

    Source:
        Clopper and Pearson, Biometrika 26 (1934); Newcombe (1998), method 5.
    """
    return _binomial(successes, trials, confidence, "exact", "clopper-pearson")


@checked
def clustered(shares: np.ndarray, sizes: np.ndarray, *, confidence: Share = 0.95) -> Interval:
    """Interval of a mean share over clusters: Wilson with the effective sample size of the design.

    A memory fault meets many inputs, which fail together; runs of one fault are a cluster, faults are independent.
    With one input per fault the result is `wilson`.

    Args:
        shares: shape ``(clusters,)``, for each fault the share of its inputs that fail, in [0, 1].
        sizes: shape ``(clusters,)``, for each fault the number of its inputs, at least 1.
        confidence: in (0, 1).
    Returns:
        The unweighted mean of the shares; no cluster gives the estimate NaN and the limits 0 and 1.
    Raises:
        HoplonError: shares or sizes out of range or of unequal length.
    Source:
        Franco, Little, Louis and Slud, Journal of Survey Statistics and Methodology 7 (2019) 334-364: the Wilson
        interval at ``p (1 - p) / var(mean)`` trials, at most as many as there are runs. That variance is zero when
        all shares are equal, and far too small while the few faults that fail many inputs have not been seen.
        So one pseudo-cluster's worth of full correlation is added to it, which makes the trials equal to the
        clusters when no failure was seen, and fades as failures accumulate.
    """
    shares, sizes = _per_cluster(shares, sizes, "size")
    if not (sizes >= 1).all():
        raise HoplonError(f"expected sizes of at least 1, got {sizes[~(sizes >= 1)][0]}; leave empty clusters out")
    method = "wilson, clustered"
    if not len(shares):
        return Interval(math.nan, 0.0, 1.0, confidence, method)
    return _wilson_at(float(shares.mean()), effective(shares, sizes)[1], confidence, method)


def effective(shares: Floats, sizes: NDArray[Any]) -> tuple[float, float]:
    """Clusters as so many independent runs, and the failures among them.

    Args:
        shares: shape ``(clusters,)``, the share of each cluster's runs that fail; at least one cluster.
        sizes: shape ``(clusters,)``, runs of each cluster.
    Returns:
        Failures and runs, fractions among them; at least as many runs as clusters.
    Source:
        See `clustered`: the runs that would have this variance, held down by one more whole
        cluster.
    """
    clusters, mean = len(shares), float(np.mean(shares))
    between, whole = float(((shares - mean) ** 2).sum()), clusters * mean * (1 - mean)
    # between / whole is the design effect per cluster: 1 where a cluster fails as one, less where inputs differ.
    runs = min(clusters * (whole + 1) / (between + 1), float(sizes.sum()))
    return mean * runs, runs


@checked
def weighted(
    shares: np.ndarray, weights: np.ndarray, *, confidence: Share = 0.95, heaviest: float | None = None
) -> Interval:
    """Interval of a mean share under another measure than the one the clusters were drawn from.

    Args:
        shares: shape ``(clusters,)``, for each fault the share of its inputs that fail, in [0, 1].
        weights: shape ``(clusters,)``, for each fault its probability under the measure that is asked for over that
            under the measure it was drawn from, at least 0 and not all 0; only their ratios matter.
        confidence: in (0, 1).
        heaviest: the largest weight that a fault can have; that of the faults given by default. Say it where they are a
            part of all faults: one of another kind may still turn up among them.
    Returns:
        The self-normalised mean, ``sum(w share) / sum(w)``; no cluster gives the estimate NaN and the limits 0 and 1.
    Raises:
        HoplonError: shares or weights out of range or of unequal length.
    Source:
        Ratio estimator with its linearised variance (Hajek; Owen, Monte Carlo theory, methods and examples, 2013,
        section 9.2), turned into an interval by the effective sample size, as in `clustered`. The pseudo-cluster that
        keeps the interval honest before failures are seen has the largest weight there is: a failure not yet seen may
        hide where one draw stands for most. With equal weights and one input per fault the result is that of `wilson`.
        With unequal ones, the limits reach at least as far as those of a weighted sum of Poisson counts (Fay and Feuer,
        Statistics in Medicine 16, 1997, with `gamma_quantile`): the lower limit of a single heavy failure is near 0.
        Simulated at 95 %: covers 95 to 100 %, from 0.05 expected failures on.
    """
    shares, weights = _per_cluster(shares, weights, "weight")
    if not ((weights >= 0) & np.isfinite(weights)).all() or (len(weights) and not weights.any()):
        raise HoplonError("expected weights that are finite, at least 0 and not all 0, got others")
    method = "wilson, weighted"
    clusters = len(shares)
    if clusters == 0:
        return Interval(math.nan, 0.0, 1.0, confidence, method)
    relative = weights / weights.mean()
    mean = float((relative * shares).mean())
    between, whole = float((relative**2 * (shares - mean) ** 2).sum()), clusters * mean * (1 - mean)
    added = max(float(relative.max()), (heaviest or 0.0) / float(weights.mean()))
    trials = clusters * (whole + added) / (between + added**2)
    found = _wilson_at(mean, trials, confidence, method)
    if added < 1 + 1e-9:
        return found
    low, high = _gamma_limits(relative / clusters, shares, added / clusters, confidence)
    return Interval(found.estimate, min(low, found.low), max(high, found.high), confidence, method)


def _gamma_limits(weights: Floats, shares: Floats, added: float, confidence: float) -> tuple[float, float]:
    """Limits of a sum of rare events of unequal weight; where most faults fail, those that do not are the events."""
    mean = float((weights * shares).sum())
    if mean > 0.5:
        low, high = _gamma_limits(weights, 1 - shares, added, confidence)
        return 1 - high, 1 - low
    influence = weights * (shares - mean)
    known = [mean, float((influence**2).sum()), 2 * float((influence**3).sum())]
    above = with_event(known, added)
    tail = (1 - confidence) / 2
    low = max(float(gamma_quantile(known, tail)), 0.0) if mean > 0 else 0.0
    return low, min(float(gamma_quantile(above, 1 - tail)), 1.0)


def with_event(cumulants: Sequence[Any], weight: Any) -> list[Any]:
    """Add one more event of this weight to the three cumulants of a weighted sum of rare events."""
    return [cumulants[0] + weight, cumulants[1] + weight**2, cumulants[2] + 2 * weight**3]


def gamma_quantile(cumulants: Sequence[ArrayLike], level: float) -> Floats:
    """The quantile of the shifted gamma distribution with these three cumulants; of the normal one without a skew.

    Args:
        cumulants: mean, variance (at least 0) and third central moment, of equal shapes.
        level: in (0, 1).
    Source:
        Pearson's type III. The sum of independent gamma variables has one of equal scales as its special case.
    Example:
        >>> bool(abs(gamma_quantile([1.0, 1.0, 2.0], 0.975) + math.log(0.025)) < 1e-9)  # of Exp(1)
        True
    """
    mean, variance, third = (np.asarray(part, dtype=np.float64) for part in cumulants)
    spread = np.sqrt(variance)
    skew = np.divide(third, variance * spread, out=np.zeros_like(third), where=variance > 0)
    z = float(scipy.special.ndtri(level))
    nearly_normal = np.abs(skew) < _NO_SKEW
    expanded = mean + spread * (z + (z * z - 1) * skew / 6)  # Cornish and Fisher
    shape = 4 / np.where(nearly_normal, 1.0, skew) ** 2
    side = np.where(skew < 0, 1 - level, level)
    standard = (scipy.special.gammaincinv(shape, side) - shape) / np.sqrt(shape)
    return np.asarray(np.where(nearly_normal, expanded, mean + np.sign(skew) * spread * standard), dtype=np.float64)


@checked
def sample_size(
    population: Annotated[float, Ge(1), Lt(math.inf)], *, error: Share, confidence: Share = 0.95, p: Share = 0.5
) -> int:
    """Number of faults to draw without replacement so that the estimate is within `error` of the truth.

    Args:
        population: possible faults, at least 1.
        error: half-width of the interval, in (0, 1).
        confidence: in (0, 1).
        p: expected probability, in (0, 1); 0.5 is the worst case.
    Returns:
        At least 1, at most `population`; rounded to the nearest integer, halves up.
    Raises:
        HoplonError: an argument out of range.
    Source:
        Leveugle, Calvez, Maistri and Vanhauwaert, DATE 2009, equation 4: n = N / (1 + e^2 (N - 1) / (t^2 p (1 - p))).
        It rests on the normal approximation: for small p plan with `wilson` at the expected count.
    Example:
        >>> sample_size(10**9, error=0.01)
        9604
    """
    quantile = _two_sided(confidence)
    size = population / (1 + error**2 * (population - 1) / (quantile**2 * p * (1 - p)))
    return max(1, math.floor(size + 0.5))


@checked
def mcnemar(only_a: Natural, only_b: Natural) -> float:
    """Exact two-sided p-value that two arms fail equally often, from the runs in which just one failed.

    Args:
        only_a: runs in which the first arm failed and the second did not.
        only_b: the opposite.
    Returns:
        In (0, 1]; 1 when the arms never differed.
    Raises:
        HoplonError: a negative count.
    Source:
        McNemar, Psychometrika 12 (1947); exact conditional form: binomial test with probability 1/2.
    Example:
        >>> mcnemar(0, 5)
        0.0625
    """
    _check_counts(only_a, only_b, only_a + only_b)
    differing = int(only_a) + int(only_b)
    return float(scipy.stats.binomtest(int(only_a), differing, 0.5).pvalue) if differing else 1.0


@checked
def paired_difference(only_a: Natural, only_b: Natural, n: Natural, *, confidence: Share = 0.95) -> Interval:
    """Interval of p_a - p_b, the difference in failure probability of two arms on the same runs.

    Args:
        only_a: runs in which the first arm failed and the second did not.
        only_b: the opposite.
        n: all runs; 0 gives the estimate NaN and the limits -1 and 1.
        confidence: in (0, 1).
    Raises:
        HoplonError: a negative count, or more differing runs than runs.
    Source:
        Bonett and Price, Journal of Educational and Behavioral Statistics 37 (2012) 479-488: Wald with one
        pseudo-run added to each differing cell, cut at -1 and 1. The estimate itself stays unadjusted.
    Example:
        >>> print(paired_difference(30, 10, 1000))
        2.00 % [0.73, 3.26]
    """
    _check_counts(only_a, only_b, n)
    z, method = _two_sided(confidence), "bonett-price"
    if n == 0:
        return Interval(math.nan, -1.0, 1.0, confidence, method)
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    reach = z * math.sqrt((share_a + share_b - centre**2) / (n + 2))
    return Interval((only_a - only_b) / n, *_cut(centre, reach), confidence, method)


@checked
def paired_ratio(both: Natural, only_a: Natural, only_b: Natural, *, confidence: Share = 0.95) -> Ratio:
    """Interval of p_a / p_b, how many times more often the first arm fails than the second on the same runs.

    Runs in which neither fails say nothing about a ratio, so their number is not asked for.

    Args:
        both: runs in which both arms failed.
        only_a: runs in which the first arm failed and the second did not.
        only_b: the opposite.
        confidence: in (0, 1).
    Raises:
        HoplonError: a negative count.
    Source:
        The hybrid Wilson score interval of Bonett and Price, as given in chapter 8 (the paired 2 x 2 table) of the R
        package contingencytables: Wilson intervals of both probabilities among the runs in which an arm failed, their
        quantile shrunk so that the quotients of their ends cover as asked.
    Example:
        >>> print(paired_ratio(59, 6, 16))
        0.867 [0.758, 0.991]
    """
    z, method = _two_sided(confidence), "bonett-price"
    runs, failed_a, failed_b = both + only_a + only_b, both + only_a, both + only_b
    if runs == 0:
        return Ratio(math.nan, 0.0, math.inf, confidence, method)
    spread = math.sqrt((only_a + only_b + 2) / ((failed_a + 1) * (failed_b + 1)))
    parts = sum(math.sqrt((1 - (failed + 1) / (runs + 2)) / (failed + 1)) for failed in (failed_a, failed_b))
    z = z * spread / parts
    inner = float(scipy.special.ndtr(z) - scipy.special.ndtr(-z))
    a, b = (_wilson_at(failed / runs, runs, inner, method) for failed in (failed_a, failed_b))
    estimate = failed_a / failed_b if failed_b else math.inf
    return Ratio(estimate, a.low / b.high, a.high / b.low if b.low else math.inf, confidence, method)


@checked
def paired_clustered(differences: np.ndarray, *, confidence: Share = 0.95) -> Interval:
    """Interval of the mean difference of two arms over clusters: `paired_difference` for faults that meet many inputs.

    Args:
        differences: shape ``(clusters,)``, for each fault the share of inputs that fail in the first arm minus that
            in the second, in [-1, 1].
        confidence: in (0, 1).
    Raises:
        HoplonError: a difference out of range, or not one number per cluster.
    Source:
        Bonett and Price (see `paired_difference`) with clusters in the place of runs: one pseudo-cluster of +1 and one
        of -1 are added, so that clusters which all agree do not give an interval of no width. With one input per
        fault it is `paired_difference`.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 1 or not (np.abs(differences) <= 1).all():
        raise HoplonError(f"expected one difference in [-1, 1] per cluster, got shape {differences.shape}")
    z, method = _two_sided(confidence), "bonett-price, clustered"
    if not len(differences):
        return Interval(math.nan, -1.0, 1.0, confidence, method)
    padded = np.append(differences, (1.0, -1.0))
    limits = _cut(float(padded.mean()), float(z * padded.std() / math.sqrt(len(padded))))
    return Interval(float(differences.mean()), *limits, confidence, method)


def _per_cluster(shares: np.ndarray, others: np.ndarray, name: str) -> tuple[Floats, Floats]:
    """Shares in [0, 1], and as many other numbers: float64."""
    shares, others = np.asarray(shares, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if shares.ndim != 1 or shares.shape != others.shape:
        raise HoplonError(f"expected one share and one {name} per cluster, got {shares.shape} and {others.shape}")
    inside = (shares >= 0) & (shares <= 1)
    if not inside.all():
        raise HoplonError(f"expected shares in [0, 1], got {shares[~inside][0]}")
    return shares, others


def _cut(centre: float, reach: float) -> tuple[float, float]:
    """Limits of a difference, in [-1, 1]."""
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def _two_sided(confidence: float) -> float:
    """The quantile of the normal distribution for both limits at a confidence in (0, 1)."""
    return float(scipy.special.ndtri(0.5 + confidence / 2))


def _binomial(
    successes: int, trials: int, confidence: float, method: Literal["wilson", "exact"], name: str
) -> Interval:
    if not 0 <= successes <= trials:
        raise HoplonError(f"expected successes in [0, trials={trials}], got {successes}")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, confidence, name)
    limits = scipy.stats.binomtest(int(successes), int(trials)).proportion_ci(confidence, method=method)
    estimate = successes / trials
    # Rounding may put a limit at 0 or 1 on the wrong side of the estimate.
    low, high = min(float(limits.low), estimate), max(float(limits.high), estimate)
    return Interval(estimate, low, high, confidence, name)


def _wilson_at(mean: float, trials: float, confidence: float, method: str) -> Interval:
    """Wilson's interval at an effective number of trials."""
    mean = min(max(mean, 0.0), 1.0)
    z = _two_sided(confidence)
    centre = (mean + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * math.sqrt(mean * (1 - mean) / trials + z**2 / (4 * trials**2))
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return Interval(mean, min(low, mean), max(high, mean), confidence, method)


def _check_counts(only_a: int, only_b: int, n: int) -> None:
    if only_a < 0 or only_b < 0 or only_a + only_b > n:
        raise HoplonError(f"expected counts of at least 0 that sum to at most {n}, got {only_a} and {only_b}")


def check_shapes(what: str, first: ArrayLike, *others: ArrayLike | None) -> None:
    """Refuse arrays of one value per stratum or cluster that do not fit together; None is left out."""
    shapes = [np.shape(part) for part in (first, *others) if part is not None]
    try:
        whole = np.broadcast_shapes(*shapes)
    except ValueError:
        whole = ()
    if not shapes[0] or whole[-1:] != shapes[0][-1:]:
        raise HoplonError(f"expected {what} of one length, got shapes {', '.join(map(str, shapes))}")
