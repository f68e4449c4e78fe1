"""Faults that stay, against enumeration and against simulated inputs."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest

from hoplon.errors import HoplonError
from hoplon.stats.lifetimes import any_failure


def by_enumeration(x: int, m: int, exposure: int) -> float:
    """Mean over j of the share of all j-subsets of m inputs that hold one of x failing ones."""
    shares = []
    for j in range(1, exposure + 1):
        subsets = list(itertools.combinations(range(m), j))
        shares.append(sum(min(subset) < x for subset in subsets) / len(subsets))
    return sum(shares) / exposure


@pytest.mark.parametrize(("x", "m", "exposure"), [(0, 5, 5), (1, 5, 3), (2, 7, 7), (6, 7, 2), (7, 7, 4), (1, 1, 1)])
def test_up_to_the_inputs_that_were_met_it_is_the_share_of_all_subsets(x: int, m: int, exposure: int) -> None:
    found = any_failure(np.array([x]), np.array([m]), exposure=exposure, inputs_are="drawn")
    assert found.exact
    assert found.estimate[0] == pytest.approx(by_enumeration(x, m, exposure), abs=1e-12)
    assert np.array_equal(found.estimate, found.above)


def mean_over_inputs(share: float, m: int, exposure: int, part: str) -> float:
    """The exact expectation over the binomial number of failing inputs."""
    counts = np.arange(m + 1)
    weight = np.array([comb(m, k) * share**k * (1 - share) ** (m - k) for k in counts])
    found = any_failure(counts, np.full(m + 1, m), exposure=exposure, inputs_are="drawn")
    return float(weight @ getattr(found, part))


def truth(share: float, exposure: int) -> float:
    return float(np.mean([1 - (1 - share) ** j for j in range(1, exposure + 1)]))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("exposure", [1, 7, 40])
def test_it_is_unbiased_over_the_inputs_that_a_run_happened_to_draw(share: float, exposure: int) -> None:
    assert mean_over_inputs(share, 40, exposure, "estimate") == pytest.approx(truth(share, exposure), abs=1e-10)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("exposure", [41, 100, 1000])
def test_beyond_the_inputs_the_truth_lies_between_estimate_and_bound(share: float, exposure: int) -> None:
    low, high = (mean_over_inputs(share, 40, exposure, part) for part in ("estimate", "above"))
    assert low <= truth(share, exposure) + 1e-12
    assert min(high, 1.0) >= truth(share, exposure) - 1e-12


def test_the_share_put_into_the_formula_would_be_too_low() -> None:
    """What the estimator is for: rare faults on few inputs."""
    counts, share, exposure = np.arange(41), 0.01, 40
    weight = np.array([comb(40, k) * share**k * (1 - share) ** (40 - k) for k in counts])
    plugged = any_failure(counts, np.full(41, 40), exposure=exposure, inputs_are="given").estimate
    assert float(weight @ plugged) < 0.9 * truth(share, exposure)


@pytest.mark.parametrize(("share", "exposure"), [(0.0, 10**6), (0.25, 3), (0.5, 1), (1.0, 5)])
def test_given_inputs_leave_nothing_open(share: float, exposure: int) -> None:
    found = any_failure(np.array([round(4 * share)]), np.array([4]), exposure=exposure, inputs_are="given")
    expected = 0.0 if share == 0 else truth(share, exposure)
    assert found.estimate[0] == pytest.approx(expected, abs=1e-12)
    assert found.exact


def test_long_exposures_keep_their_precision() -> None:
    """1 - (1 - s)^j of tiny shares, and binomial coefficients of thousands of inputs."""
    given = any_failure(np.array([1]), np.array([10**9]), exposure=10**3, inputs_are="given").estimate[0]
    assert given == pytest.approx(1e-9 * (10**3 + 1) / 2, rel=1e-5)
    drawn = any_failure(np.array([3]), np.array([50_000]), exposure=20_000, inputs_are="drawn").estimate[0]
    j = np.arange(1, 20_001)
    by_hand = 1 - (50_000 - j) * (49_999 - j) * (49_998.0 - j) / (50_000 * 49_999 * 49_998.0)
    assert drawn == pytest.approx(by_hand.mean(), rel=1e-8)


def test_counts_that_do_not_fit_are_refused() -> None:
    for x, m in (([2], [1]), ([-1], [3]), ([0], [0]), ([0, 1], [3])):
        with pytest.raises(HoplonError, match="failing inputs"):
            any_failure(np.array(x), np.array(m), exposure=1, inputs_are="drawn")
