"""Limits of figures of a series in time, whose neighbouring values depend on each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from hoplon.errors import Count, HoplonError, Seed, Share, checked
from hoplon.stats.intervals import Floats, Interval


@checked
def block_bootstrap(
    values: ArrayLike,
    figure: Callable[[Floats], Floats],
    *,
    block: int,
    seed: Seed,
    times: Count = 2000,
    confidence: Share = 0.95,
) -> Interval:
    """A figure of the means of a series, with limits from resampled stretches of it.

    Stretches keep what neighbours share, so the limits do not take dependent values for independent ones. They are
    only as good as the series has stretches: of fewer than about 30 they are somewhat too narrow.

    Args:
        values: shape ``(n, k)``, in the order of time: one row per moment, k values that belong together.
        figure: of means of shape ``(..., k)``, to shape ``(...)``.
        block: length of a stretch; longer than values depend on each other.
        seed: of the stretches drawn.
        times: how many series are drawn.
        confidence: in (0, 1).
    Raises:
        HoplonError: no values, another shape, a block that is not in [1, n], or a confidence out of range.
    Source:
        D. N. Politis and J. P. Romano, "A circular block-resampling procedure for stationary data", in Exploring the
        Limits of Bootstrap, 1992; H. R. Künsch, Annals of Statistics 17, 1989. Percentiles.
    Example:
        >>> errors = np.array([[1.0], [1.0], [9.0], [9.0]])
        >>> found = block_bootstrap(errors, lambda means: np.sqrt(means[..., 0]), block=2, seed=0)
        >>> float(found.low), round(float(found.estimate), 3), float(found.high)
        (1.0, 2.236, 3.0)
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 2 or not series.size:
        raise HoplonError(f"expected values of shape (n, k), got {series.shape}")
    count = len(series)
    if not 1 <= block <= count:
        raise HoplonError(f"expected a block in [1, {count}], the length of the series, got {block}")
    ring = np.concatenate([series, series[: block - 1]])  # a stretch may run over the end
    sums = np.concatenate([np.zeros((1, series.shape[1])), ring.cumsum(0)])
    means = (sums[block:] - sums[:-block]) / block  # of the stretch from each moment on, shape (n, k)
    starts = np.random.default_rng(seed).integers(count, size=(times, -(-count // block)))
    drawn = figure(means[starts].mean(1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    estimate = float(figure(series.mean(0)))
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), confidence, "block bootstrap")
