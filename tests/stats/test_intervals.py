from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from hoplon.errors import HoplonError
from hoplon.stats.intervals import (
    Interval,
    clopper_pearson,
    clustered,
    mcnemar,
    paired_clustered,
    paired_difference,
    paired_ratio,
    sample_size,
    wilson,
)


# Newcombe, Statistics in Medicine 17 (1998), Table I: methods 3 (score) and 5 (exact).
@pytest.mark.parametrize(
    ("successes", "trials", "score", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_binomial_intervals_are_the_published_ones(
    successes: int, trials: int, score: tuple[float, float], exact: tuple[float, float]
) -> None:
    for interval, limits in (
        (wilson(successes, trials), score),
        (clopper_pearson(successes, trials), exact),
    ):
        assert (interval.low, interval.high) == pytest.approx(limits, abs=5e-5)
        assert interval.estimate == successes / trials


@pytest.mark.parametrize("interval_of", [wilson, clopper_pearson])
def test_no_trials_is_not_measured(interval_of: Callable[..., Interval]) -> None:
    interval = interval_of(0, 0)
    assert math.isnan(interval.estimate)
    assert (interval.low, interval.high) == (0.0, 1.0)
    assert str(interval) == "not measured [0.00, 100.00]"


@pytest.mark.parametrize("trials", [1, 2, 10, 1000, 10**7])
@pytest.mark.parametrize("interval_of", [wilson, clopper_pearson])
def test_limits_hold_the_estimate_and_mirror(interval_of: Callable[..., Interval], trials: int) -> None:
    none, all_of_them = interval_of(0, trials), interval_of(trials, trials)
    assert none.low == 0
    assert all_of_them.high == 1
    assert 0 < none.high == pytest.approx(1 - all_of_them.low)


@pytest.mark.parametrize("probability", [0.01, 0.3])
def test_exact_covers_and_score_covers_on_average(probability: float) -> None:
    # Coverage summed over all outcomes of 200 runs, no simulation.
    trials = 200
    for interval_of, least in ((clopper_pearson, 0.95), (wilson, 0.93)):
        coverage = 0.0
        for k in range(trials + 1):
            interval = interval_of(k, trials)
            if interval.low <= probability <= interval.high:
                coverage += math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k)
        assert coverage >= least


def test_higher_confidence_is_wider() -> None:
    widths = [wilson(10, 100, confidence=c).half_width for c in (0.5, 0.9, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.0204, 0.0197, 0.0212, 0.95, "wilson"), "2.04 % [1.97, 2.12]"),
        (Interval(0.00037, 0.00033, 0.00041, 0.95, "wilson"), "0.037 % [0.033, 0.041]"),
        (Interval(-0.5, -1.0, 0.0, 0.95, "bonett-price"), "-50.00 % [-100.00, 0.00]"),
        (Interval(0.25, 0.25, 0.25, 0.95, "all"), "25.00 % [25.00, 25.00]"),
    ],
)
def test_intervals_print_in_percent_with_enough_decimals(interval: Interval, text: str) -> None:
    assert str(interval) == text


@pytest.mark.parametrize("failures", [0, 1, 7, 50])
def test_clusters_of_one_are_plain_counts(failures: int) -> None:
    shares = np.repeat([1.0, 0.0], [failures, 50 - failures])
    interval, plain = clustered(shares, np.ones(50)), wilson(failures, 50)
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high))
    assert interval.estimate == plain.estimate


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clusters_that_agree_on_an_extreme_count_as_clusters(share: float) -> None:
    interval, plain = clustered(np.full(40, share), np.full(40, 1000)), wilson(round(40 * share), 40)
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high))


def test_one_small_share_hardly_narrows_the_interval() -> None:
    # 1,000 faults without a failure leave 0.38 % open; one input in 100 of one fault does not change that.
    shares = np.zeros(1000)
    nothing = clustered(shares, np.full(1000, 100))
    shares[0] = 0.01
    assert clustered(shares, np.full(1000, 100)).high == pytest.approx(nothing.high, rel=0.02)


def test_never_more_trials_than_runs() -> None:
    interval = clustered(np.full(200, 0.5), np.full(200, 2))
    assert interval.half_width >= wilson(200, 400).half_width - 1e-12


@pytest.mark.parametrize("scenario", ["skewed", "rare and total", "independent inputs"])
@pytest.mark.parametrize("clusters", [20, 100, 500])
def test_clustered_intervals_cover(scenario: str, clusters: int) -> None:
    # 400 intervals at 95 %: a method that covers exactly falls below 0.92 with probability 0.005.
    generator, inputs, covered = np.random.default_rng(7), 50, 0
    for _ in range(400):
        if scenario == "skewed":
            shares, truth = generator.beta(0.2, 1.8, clusters), 0.1
        elif scenario == "rare and total":
            total = generator.random(clusters) < 0.01
            shares, truth = np.where(total, 1.0, np.where(generator.random(clusters) < 0.2, 0.02, 0)), 0.01396
        else:
            shares, truth = np.full(clusters, 0.05), 0.05
        measured = generator.binomial(inputs, shares) / inputs
        interval = clustered(measured, np.full(clusters, inputs))
        covered += interval.low <= truth <= interval.high
    assert covered / 400 >= 0.92


def test_no_clusters_is_not_measured() -> None:
    interval = clustered(np.zeros(0), np.zeros(0))
    assert math.isnan(interval.estimate)
    assert (interval.low, interval.high) == (0, 1)


def test_sample_size_is_the_published_formula() -> None:
    assert sample_size(10**9, error=0.01) == 9604
    assert sample_size(10**9, error=0.01, confidence=0.99) == 16587
    assert sample_size(1000, error=0.05) == 278
    assert sample_size(1, error=0.5) == 1


def test_a_sample_is_never_larger_than_its_population() -> None:
    assert all(1 <= sample_size(n, error=0.001) <= n for n in (1, 2, 3, 10, 1000, 10**6))


def test_mcnemar_is_the_exact_binomial_tail() -> None:
    assert mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar(7, 1) == mcnemar(1, 7)
    assert mcnemar(4, 4) == 1
    assert mcnemar(0, 0) == 1


def test_paired_difference_is_the_published_one() -> None:
    # Documented example of ci.prop.ps in the R package statpsych, by the first author of the method.
    interval = paired_difference(26, 4, 48)
    assert (interval.low, interval.high) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)
    assert interval.estimate == pytest.approx(22 / 48)


def test_paired_difference_changes_sign_with_the_arms() -> None:
    there, back = paired_difference(9, 2, 50), paired_difference(2, 9, 50)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_paired_difference_at_the_edges() -> None:
    assert paired_difference(1, 0, 1).high == 1
    same = paired_difference(0, 0, 100)
    assert same.estimate == 0
    assert same.low == -same.high < 0
    assert math.isnan(paired_difference(0, 0, 0).estimate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), r"expected successes in \[0, trials=2\], got 3"),
        (
            lambda: clopper_pearson(-1, 2),
            r"expected successes of clopper_pearson to be an integer of at least 0, got -1",
        ),
        (
            lambda: wilson(1, 2, confidence=95),
            r"expected confidence of wilson to be a number above 0 and below 1, got 95",
        ),
        (lambda: clustered(np.array([1.5]), np.ones(1)), r"expected shares in \[0, 1\], got 1.5"),
        (lambda: clustered(np.array([math.nan]), np.ones(1)), r"expected shares in \[0, 1\], got nan"),
        (lambda: clustered(np.array([0.5]), np.zeros(1)), "expected sizes of at least 1, got 0.0; leave empty"),
        (lambda: clustered(np.ones(2), np.ones(3)), r"one share and one size per cluster, got \(2,\) and \(3,\)"),
        (lambda: sample_size(0, error=0.1), "expected population of sample_size to be a number of at least 1, got 0"),
        (lambda: sample_size(10, error=0), r"expected error of sample_size to be a number above 0 and below 1, got 0"),
        (
            lambda: sample_size(10, error=0.1, p=1),
            r"expected p of sample_size to be a number above 0 and below 1, got 1",
        ),
        (lambda: mcnemar(-1, 2), "expected only_a of mcnemar to be an integer of at least 0, got -1"),
        (lambda: paired_difference(3, 3, 5), "sum to at most 5, got 3 and 3"),
    ],
)
def test_arguments_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()


def test_paired_clustered_of_single_runs_is_paired_difference() -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [30, 10, 960])
    wanted = paired_difference(30, 10, 1000)
    got = paired_clustered(differences)
    assert (got.estimate, got.low, got.high) == pytest.approx((wanted.estimate, wanted.low, wanted.high), abs=1e-12)


def test_paired_clustered_of_agreeing_clusters_still_has_a_width() -> None:
    interval = paired_clustered(np.zeros(50))
    assert interval.estimate == 0
    assert interval.low < -0.02
    assert interval.high > 0.02


def test_paired_ratio_is_the_published_one() -> None:
    """Cavo et al., 2012 in the R package contingencytables, chapter 8: 0.8667 (0.7579 to 0.9910)."""
    found = paired_ratio(59, 6, 16)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.8667, 0.7579, 0.9910), abs=5e-5)
    assert str(found) == "0.867 [0.758, 0.991]"
    other = paired_ratio(59, 16, 6)
    assert (1 / other.estimate, 1 / other.high, 1 / other.low) == pytest.approx((found.estimate, found.low, found.high))


def test_paired_ratio_where_an_arm_never_failed() -> None:
    unseen, never, always = paired_ratio(0, 0, 0), paired_ratio(0, 0, 40), paired_ratio(0, 40, 0)
    assert math.isnan(unseen.estimate)
    assert (unseen.low, unseen.high) == (0, math.inf)
    assert (never.estimate, never.low) == (0, 0)
    assert 0 < never.high < 0.2
    assert (always.estimate, always.high) == (math.inf, math.inf)
    assert always.low == pytest.approx(1 / never.high)
    with pytest.raises(HoplonError, match="expected only_a of paired_ratio to be an integer of at least 0, got -1"):
        paired_ratio(1, -1, 0)


@pytest.mark.parametrize("both", [0.0, 0.0005])
def test_paired_ratio_covers_where_one_arm_rarely_fails(both: float) -> None:
    # 2,000 intervals at 95 %: a method that covers exactly falls below 0.935 with probability 0.002.
    generator, trials = np.random.default_rng(3), 20_000
    only_a, only_b = 0.02 - both, 0.0006 - both
    truth = 0.02 / 0.0006
    counts = generator.multinomial(trials, [both, only_a, only_b, 1 - both - only_a - only_b], size=2000)
    found = [paired_ratio(*map(int, row[:3])) for row in counts]
    assert sum(each.low <= truth <= each.high for each in found) / len(found) >= 0.935
