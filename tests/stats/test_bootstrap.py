from __future__ import annotations

import numpy as np
import pytest

from hoplon.errors import HoplonError
from hoplon.stats.bootstrap import block_bootstrap
from hoplon.stats.intervals import Interval


def mean(values: np.ndarray, *, block: int, seed: int = 0) -> Interval:
    return block_bootstrap(values[:, None], lambda means: means[..., 0], block=block, seed=seed)


def test_independent_values_have_the_limits_of_their_standard_error() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = mean(values, block=1)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(values.std() / 20, rel=0.08)


def test_values_that_come_in_stretches_have_the_limits_of_the_stretches() -> None:
    stretches = np.random.default_rng(2).normal(size=40)
    values = np.repeat(stretches, 25)
    apart, together = (mean(values, block=block) for block in (1, 50))
    wanted = 2 * 1.96 * stretches.std() / np.sqrt(40)
    assert apart.high - apart.low < 0.3 * wanted
    assert together.high - together.low == pytest.approx(wanted, rel=0.25)


def test_limits_cover_the_mean_of_a_dependent_series_nearly_as_often_as_they_say() -> None:
    generator, covered = np.random.default_rng(3), 0
    for _ in range(200):  # moving averages over 10: neighbours depend on each other
        values = np.convolve(generator.normal(size=809), np.ones(10) / 10, "valid")
        found = mean(values, block=50)
        covered += found.low <= 0 <= found.high
    assert covered >= 173  # of 200; fewer with a probability of 0.003 if they cover 92 %


def test_a_stretch_as_long_as_the_series_leaves_nothing_to_draw() -> None:
    found = mean(np.arange(10.0), block=10)
    assert (found.low, found.high) == pytest.approx((4.5, 4.5))


def test_what_belongs_together_is_drawn_together_and_the_seed_decides() -> None:
    values = np.random.default_rng(4).normal(size=60)
    pair = np.stack([values, values + 1], 1)
    found = block_bootstrap(pair, lambda means: means[..., 1] - means[..., 0], block=5, seed=0)
    assert (found.low, found.estimate, found.high) == pytest.approx((1, 1, 1))
    assert mean(values, block=5, seed=1) == mean(values, block=5, seed=1) != mean(values, block=5, seed=2)


@pytest.mark.parametrize("block", [0, 11])
def test_a_block_longer_than_the_series_is_refused(block: int) -> None:
    with pytest.raises(HoplonError, match=rf"expected a block in \[1, 10\], the length of the series, got {block}"):
        mean(np.zeros(10), block=block)


def test_other_shapes_and_confidences_are_refused() -> None:
    with pytest.raises(HoplonError, match=r"expected values of shape \(n, k\), got \(3,\)"):
        block_bootstrap(np.zeros(3), lambda means: means, block=1, seed=0)
    with pytest.raises(
        HoplonError, match=r"expected confidence of block_bootstrap to be a number above 0 and below 1, got 1"
    ):
        block_bootstrap(np.zeros((3, 1)), lambda means: means[..., 0], block=1, seed=0, confidence=1)
