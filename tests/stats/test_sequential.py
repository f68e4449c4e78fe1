"""Decisions over many looks: wrong ones are as rare as asked for, right ones come."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hoplon.errors import HoplonError
from hoplon.stats.intervals import Interval, clopper_pearson
from hoplon.stats.sequential import (
    Looks,
    decided,
    faults_to_decide,
    increase_at_look,
    probability_at_look,
)

LOOKS = Looks(first=1000, most=100_000, error=0.05)
BASELINE, INCREASE = 0.003, 0.001


def verdicts(new: float, old: float, *, shared: float, builds: int, seed: int) -> Counter[str]:
    """Verdicts on simulated builds: ``shared`` of the baseline's failures also fail in the new one."""
    rng, found = np.random.default_rng(seed), Counter[str]()
    both = shared * min(new, old)
    for _ in range(builds):
        draw = rng.random(LOOKS.most)
        fails_new = (draw < both) | ((draw >= both) & (draw < new))
        fails_old = (draw < both) | ((draw >= new) & (draw < new + old - both))
        verdict = "undecided"
        for look, number in enumerate(LOOKS.numbers):
            sides = (fails_new[:number].astype(float), fails_old[:number].astype(float))
            interval = increase_at_look(*sides, confidence=LOOKS.confidence(look))
            verdict = decided(interval.low, interval.high, INCREASE)
            if verdict != "undecided":
                break
        found[verdict] += 1
    return found


BUILDS = [pytest.param(60, id="short"), pytest.param(1000, id="whole", marks=pytest.mark.slow)]


@pytest.mark.parametrize("shared", [0.0, 0.9], ids=["fresh faults", "the same faults"])
@pytest.mark.parametrize("builds", BUILDS)
def test_equal_builds_pass_and_twice_the_rate_is_blocked(builds: int, shared: float) -> None:
    """Baseline 0.3 %, at most 0.1 points more, at most 100,000 faults."""
    equal = verdicts(BASELINE, BASELINE, shared=shared, builds=builds, seed=1)
    assert equal["fail"] <= 0.05 * builds
    assert equal["undecided"] <= 0.05 * builds
    twice = verdicts(2 * BASELINE, BASELINE, shared=shared, builds=builds, seed=2)
    assert twice["fail"] >= 0.95 * builds
    assert twice["undecided"] <= 0.05 * builds


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_at_the_limit_itself_either_wrong_decision_is_rare(shared: float) -> None:
    """An increase of just 0.1 points keeps to the limit; a little more does not."""
    at_limit = verdicts(BASELINE + INCREASE, BASELINE, shared=shared, builds=1000, seed=3)
    assert at_limit["fail"] <= 64  # 5 % and two standard errors
    assert at_limit["pass"] <= 64


@pytest.mark.parametrize(("failed", "runs"), [(0, 1000), (3, 1000), (60, 2000)])
def test_one_look_is_the_interval_of_clopper_and_pearson(failed: int, runs: int) -> None:
    looks = Looks(first=runs, most=runs, error=0.025)
    found = probability_at_look((np.arange(runs) < failed).astype(float), confidence=looks.confidence(0))
    exact = clopper_pearson(failed, runs, confidence=0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=0.02)


def test_looks_double_and_share_the_error() -> None:
    assert LOOKS.numbers == (1000, 2000, 4000, 8000, 16000, 32000, 64000, 100_000)
    errors = [(1 - LOOKS.confidence(look)) / 2 for look in range(8)]
    assert sum(errors) == pytest.approx(0.05)
    assert errors[-1] == pytest.approx(0.025)
    assert Looks(first=64, most=64, error=0.05).numbers == (64,)
    with pytest.raises(HoplonError, match="at most 10"):
        Looks(first=11, most=10, error=0.05)


def test_how_many_more_faults_decide() -> None:
    """Three times as many halve the distance of both limits, which then just decides."""
    open_ = Interval(0.001, 0.0, 0.003, 0.99, "")
    assert decided(open_.low, open_.high, 0.002) == "undecided"
    assert faults_to_decide(open_, 0.002, 1000) == 3000
    assert faults_to_decide(open_, 0.0005, 1000) == 3000
    assert faults_to_decide(open_, 0.001, 1000) is None
    assert faults_to_decide(open_, 0.004, 1000) == 0
