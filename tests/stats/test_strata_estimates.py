"""Stratified estimates: against published special cases, against enumerated outcomes, and the course of stages."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hoplon.campaign.stratified.first_phase import FirstPhase
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.errors import HoplonError
from hoplon.stats.intervals import clopper_pearson, effective, gamma_quantile, weighted
from hoplon.stats.strata_estimates import limits, paired_weighted, stratified


@pytest.mark.parametrize(("failures", "runs"), [(0, 100), (15, 148), (81, 263), (5, 10_000), (140, 148), (263, 263)])
def test_one_stratum_is_clopper_pearson(failures: int, runs: int) -> None:
    found, exact = stratified([1.0], [failures], [runs]), clopper_pearson(failures, runs)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=0.015, abs=2e-4)
    assert found.estimate == exact.estimate


@pytest.mark.parametrize("above", [0.5, 0.8])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("heavy", [0.1, 0.6, 1.5, 3.0, 3.6, 6.0, 15.0])
def test_limits_cover_where_one_stratum_counts_more(heavy: float, ratio: float, above: float) -> None:
    """Coverage summed over all outcomes of two rare strata, no simulation; 0.0005 for the sums cut off."""
    low_tail, high_tail = 0.05 * (1 - above), 0.05 * above
    runs = 1e7
    for light in (0.0, 0.5, 3.0, 30.0, 1000.0):
        reach = [np.arange(max(0, int(m - 6 * m**0.5 - 12)), int(m + 6 * m**0.5 + 14)) for m in (heavy, light)]
        one, two = np.meshgrid(*reach, indexing="ij")
        probability = stats.poisson.pmf(one, heavy) * stats.poisson.pmf(two, light)
        shares, failures = np.array([1.0, ratio]), np.stack([one, two], -1).astype(float)
        _, low, high = limits(
            shares, failures, np.full(failures.shape, runs), candidates=None, low_tail=low_tail, high_tail=high_tail
        )
        truth = (heavy + ratio * light) / runs
        below, over = probability[high < truth].sum(), probability[low > truth].sum()
        assert below < high_tail + 0.0005
        assert below + over < 0.0505


@pytest.mark.parametrize("probabilities", [(0.5,), (0.55,), (0.9,), (0.98,), (0.3, 0.9), (0.05, 0.95), (0.001, 0.99)])
@pytest.mark.parametrize(("strata", "runs"), [(40, 8), (20, 20), (5, 100), (1, 20)])
def test_limits_cover_where_many_strata_have_few_runs(strata: int, runs: int, probabilities: tuple[float, ...]) -> None:
    """What is small in one stratum adds up over many; 4 standard errors of 4,000 repeats are 0.014."""
    truth = np.resize(probabilities, strata)
    failures = np.random.default_rng(0).binomial(runs, truth, size=(4000, strata)).astype(float)
    shares = np.full(strata, 1 / strata)
    tails = {"low_tail": 0.008, "high_tail": 0.032}
    _, low, high = limits(shares, failures, np.full(failures.shape, float(runs)), candidates=None, **tails)
    target = truth.mean()
    missed = np.mean((low > target + 1e-12) | (high < target - 1e-12))
    assert missed < 0.05 + 0.014


def test_limits_are_the_same_seen_from_either_side() -> None:
    shares, failures, runs = np.array([0.7, 0.2, 0.1]), np.array([0.0, 30.0, 99.0]), np.array([5000.0, 100.0, 100.0])
    (mean, low, high), (other, below, above) = (
        limits(shares, seen, runs, candidates=None, low_tail=0.01, high_tail=0.01)
        for seen in (failures, runs - failures)
    )
    assert (mean, low, high) == pytest.approx((1 - other, 1 - above, 1 - below), rel=1e-9)


def test_a_stratum_without_failures_has_to_be_ruled_out_by_runs() -> None:
    few, many = (stratified([0.9, 0.1], [0, 30], [runs, 100]) for runs in (100, 10_000))
    assert few.high - few.estimate > 0.9 * 0.02
    assert many.high < few.high
    certain = stratified([0.9, 0.1], [0, 30], [1e15, 100])
    assert certain.high == pytest.approx(0.1 * clopper_pearson(30, 100).high, rel=0.01)


def test_the_first_phase_counts() -> None:
    known, drawn = (stratified([0.5, 0.5], [0, 1000], [1000, 1000], candidates=n) for n in (None, 400))
    assert known.half_width < 0.01
    assert drawn.half_width == pytest.approx(1.96 * 0.5 / 20, rel=0.05)  # all that is left is a plain count of 400


def test_draws_of_a_band_count_for_more_than_they_are() -> None:
    """Half the faults are one band, all known to pass: 200 draws of the other half say what 400 of all would."""
    shares, failures, runs = [0.5, 0.25, 0.25], [0, 0, 10**6], [10**9, 10**6, 10**6]
    plain, banded = (stratified(shares, failures, runs, candidates=n) for n in (400, [1e9, 400, 400]))
    assert plain.half_width == pytest.approx(1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.05)
    assert banded.half_width == pytest.approx(1.96 * 0.5 * (0.5 * 0.5 / 200) ** 0.5, rel=0.05)


@pytest.mark.parametrize("expected", [0.05, 0.13, 1.0, 10.0])
def test_weighted_intervals_cover_the_rarest_failures(expected: float) -> None:
    """400 intervals at 95 %: one that covers exactly falls below 0.915 with probability 0.002."""
    generator, covered, faults = np.random.default_rng(5), 0, 400
    for _ in range(400):
        weights = np.array([1.0, 20.0])[generator.integers(0, 2, faults)]
        failed = (generator.random(faults) < expected / faults).astype(float)
        interval = weighted(failed, weights)
        covered += interval.low <= expected / faults <= interval.high
    assert covered / 400 >= 0.915


def test_a_failure_of_a_kind_not_met_yet_widens() -> None:
    plain = weighted(np.zeros(50), np.ones(50))
    assert weighted(np.zeros(50), np.ones(50), heaviest=10.0).high > 3 * plain.high


def test_clusters_as_runs() -> None:
    assert effective(np.array([1.0, 0.0, 0.0, 0.0]), np.full(4, 50)) == pytest.approx((1.0, 4.0))
    alike = effective(np.full(100, 0.2), np.full(100, 50))
    assert alike[0] == pytest.approx(0.2 * alike[1])
    assert 100 < alike[1] <= 5000


def test_paired_weights() -> None:
    both = paired_weighted(np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0]), np.full(4, 0.25))
    assert both.estimate == 0
    assert both.low == pytest.approx(-both.high)
    assert gamma_quantile([0.0, 1.0, 0.0], 0.975) == pytest.approx(stats.norm.ppf(0.975))


def test_a_difference_is_no_surer_than_its_candidates() -> None:
    """Weights that are counted from 400 draws cannot say more than 400 plain runs would."""
    one = np.repeat([1.0, 0.0], [50_000, 50_000])
    known, drawn = (paired_weighted(one, 0 * one, np.full(len(one), 1 / len(one)), candidates=n) for n in (None, 400))
    assert known.half_width < 0.005  # 1.96 sqrt(0.5 / 100,000), weights taken for those of Poisson counts
    assert drawn.half_width == pytest.approx(1.96 * 0.5 / 20, rel=0.02)


BAND = np.array([0, 0, 1, 1, 1])


def _finish(
    course: SequentialSchedule, shares: np.ndarray, truth: np.ndarray, generator: np.random.Generator
) -> tuple[float, ...]:
    """One campaign without a model: the estimate, what all runs together would give, final limits, runs and looks."""
    weights = np.bincount(BAND, shares)

    def draw(more: np.ndarray) -> np.ndarray:
        parts = [generator.multinomial(n, np.where(b == BAND, shares, 0) / weights[b]) for b, n in enumerate(more)]
        return np.sum(parts, axis=0)

    def grow(wanted: np.ndarray, drawn: np.ndarray) -> None:
        nonlocal first, runs, failures
        drawn = np.maximum(drawn, first.drawn)
        counts = first.counts + draw(drawn - first.drawn)
        first = FirstPhase(counts, first.known, BAND, weights, drawn)
        failures = failures + generator.binomial(np.maximum(wanted - runs, 0), truth[:, None])
        runs = np.maximum(wanted, runs)

    drawn = course.candidates((2, 3))
    first = FirstPhase(draw(drawn), np.full(len(shares), np.nan), BAND, weights, drawn)
    runs = course.pilot(first)
    failures = generator.binomial(runs, truth[:, None])
    grow(*course.main_stage(first, failures, runs))
    look, planned = 0, (failures, runs)
    while True:
        pooled, *_ = course.look(first, failures, runs, look=look)
        estimate, low, high = course.look(first, failures, runs, look=look, planned=planned)
        if (high - low) / 2 <= course.half_width:
            return estimate, pooled, low, high, float(runs.sum()), float(look)
        look += 1
        grow(*course.next_allocation(first, failures, runs, look=look))


RARE = (0.0, 0.001, 0.004, 0.01, 0.02)
SHARES = np.array([0.60, 0.30, 0.05, 0.03, 0.02])


@pytest.mark.parametrize(
    ("truth", "repeats"),
    [
        pytest.param(truth, repeats, marks=[] if repeats < 100 else pytest.mark.slow)
        for truth in ((0.0, 1e-4, 0.01, 0.5, 0.99), (0.004, 0.0, 0.01, 0.3, 1.0), (0.0, 0.0, 0.0, 0.0, 0.02))
        for repeats in (40, 1000)
    ],
)
def test_the_course_covers_without_a_bias(truth: tuple[float, ...], repeats: int) -> None:
    """Rare failures hide in the heaviest stratum of the second case.

    Coverage of 95 % is refused by a one-sided binomial test at 0.001, no bias by four standard errors of the mean
    (false alarm: 6 in 100,000).
    """
    course, generator = SequentialSchedule(0.005), np.random.default_rng(1)
    probabilities = np.array(truth)
    found = np.array([_finish(course, SHARES, probabilities, generator) for _ in range(repeats)])
    target = float(SHARES @ probabilities)
    low, high = found[:, 2], found[:, 3]
    covered = int(((low <= target) & (target <= high)).sum())
    assert stats.binomtest(covered, repeats, 0.95, alternative="less").pvalue > 0.001
    assert ((high - low) / 2 <= 0.005).all()
    error = found[:, 0].std() / repeats**0.5
    assert abs(found[:, 0].mean() - target) <= 4 * error


def test_the_estimate_has_no_bias_where_most_campaigns_go_on_after_a_look() -> None:
    """Campaigns that stop have met few failures, so an estimate to which all runs count is too low.

    No bias is refused at four standard errors of the mean; the other estimate is off by 6.4 of them.
    """
    course, generator, probabilities = SequentialSchedule(0.002), np.random.default_rng(1), np.array(RARE)
    shares = np.array([0.5, 0.3, 0.1, 0.07, 0.03])
    estimate, pooled, _, _, _, looks = np.array(
        [_finish(course, shares, probabilities, generator) for _ in range(100)]
    ).T
    assert (looks > 0).mean() > 0.5
    off = [(one.mean() - shares @ probabilities) / one.std() * 100**0.5 for one in (estimate, pooled)]
    assert abs(off[0]) <= 4
    assert off[1] < -4
    assert (looks < 12).all()


def test_looks_spend_no_more_than_there_is() -> None:
    course = SequentialSchedule(0.01, 0.9)
    assert sum(sum(course.tails(look)) for look in range(60)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.4], [0, 0], [1, 1]), "expected shares of at least 0 that sum to 1, got a sum of 0.9"),
        (([1.0], [2], [1]), r"expected failures in \[0, runs=1\], got 2"),
        (([0.5, 0.5], [0, 0], [1, 0]), "expected at least one run in every stratum, got none in stratum 1"),
        (([1.0], [0, 0], [1]), "expected one share, failures and runs per stratum"),
    ],
)
def test_bad_strata_are_named(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        stratified(*arguments)
