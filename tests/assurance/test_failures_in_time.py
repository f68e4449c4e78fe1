"""Failure rates: cases computed by hand, joint limits, what they say of a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from hoplon.assurance.failures_in_time import FailureRate, Use, dominating, failure_rate
from hoplon.assurance.raw_rate import RawRate
from hoplon.assurance.upsets import Upsets, guard_upsets
from hoplon.errors import HoplonError
from hoplon.stats.intervals import clopper_pearson

RATE = RawRate.of(1000, unit="FIT/Mbit")


def memory(
    failing: list[int], *, inputs: int = 10, bits: int = 1_000_000, bits_each: int = 1, **columns: Any
) -> Upsets:
    known = {"site": "fc.weight", "structure": "weights", "present": True, "acted": False, "share": 1.0}
    late = {"late": pl.Series([None] * len(failing), dtype=pl.Int64)}
    flags = {key: columns.pop(key) for key in ("arrival", "complete") if key in columns}
    frame = pl.DataFrame({"fault": range(len(failing)), "failing": failing, **known, **late, **columns}).with_columns(
        inputs=pl.lit(inputs, dtype=pl.Int64)
    )
    return Upsets("memory", "memory", bits_each, bits, float(bits), frame, **{"complete": True, **flags})


def values(failing: list[int], shares: list[float], *, bits: int = 1_000_000) -> Upsets:
    one = memory(failing, inputs=1, bits=bits, site=[f"conv{i}:conv" for i in range(len(failing))], structure="values")
    return Upsets(
        "values", "values", 1, bits, float(bits), one.faults.with_columns(share=pl.Series(shares)), complete=True
    )


def known(*upsets: Upsets, rate: RawRate = RATE, **use: Any) -> FailureRate:
    return failure_rate(upsets, rate, use=Use(**{"inferences_per_reload": 1, **use}))


def test_weights_that_are_reloaded_for_every_inference() -> None:
    """1 Mbit at 1,000 FIT/Mbit: 1,000 upsets in 10^9 h; faults fail 0, 0, 5 and 10 of 10 inputs: 0.375 of them."""
    found = known(memory([0, 0, 5, 10]))
    assert found.raw_fit == pytest.approx(1000.0)
    assert (found.fit, found.fit_low, found.fit_high) == pytest.approx((375.0, 375.0, 375.0))
    assert not found.at_least


def test_a_fault_that_stays_meets_more_inferences() -> None:
    """Given inputs, 2 inferences: of s = 1/2 half of the upsets meet one (1/2), half two (3/4): 0.625."""
    assert known(memory([5]), inferences_per_reload=2, inputs_are="given").fit == pytest.approx(625.0)
    # drawn from what the run's ten are a sample of: 2 of 10 without replacement hold none of 5 with 5/10 x 4/9
    assert known(memory([5]), inferences_per_reload=2).fit == pytest.approx(1000 * (0.5 + (1 - 2 / 9)) / 2)


def test_not_the_share_but_whether_any_fails() -> None:
    """A million inferences on given inputs: whatever fails one input of ten fails, s or not."""
    found = known(memory([0, 1, 10]), inferences_per_reload=10**6, inputs_are="given")
    assert found.fit == pytest.approx(1000 * 2 / 3, rel=1e-4)


def test_beyond_the_inputs_of_the_run_the_estimate_is_a_lower_bound() -> None:
    found = known(memory([0, 0, 0, 1]), inferences_per_reload=10**6)
    assert found.at_least
    assert found.fit == pytest.approx(250.0, rel=1e-4)
    assert found.fit_high == pytest.approx(1000.0)  # the other three may fail one input in a million
    short = known(memory([0, 0, 0, 1]), inferences_per_reload=20)
    # j = 1 .. 10: j/10, then 1 for those that failed; above, j/10 up to 20: (55 + 155) / 10 / 20 = 1.05 of a quarter
    assert short.fit == pytest.approx(250 * (5.5 + 10) / 20)
    assert short.fit_high == pytest.approx(250 * 1.05, rel=1e-6)


def test_what_guards_repair_lives_until_the_next_check() -> None:
    """Two faults of four are repaired; before the check all fail half of the inputs. Checks every 2, reload every 4."""
    acted = [True, True, False, False]
    after = memory([5, 5, 5, 5], arrival="after", acted=acted)
    use = {"inferences_per_reload": 4, "inferences_per_check": 2, "inputs_are": "given"}
    short, long = (1 / 2 + 3 / 4) / 2, (1 / 2 + 3 / 4 + 7 / 8 + 15 / 16) / 4
    assert known(after, **use).fit == pytest.approx(1000 * (short + long) / 2)
    before = memory([0, 0, 5, 5], acted=acted, present=[False, False, True, True], late=[5, 5, 5, 5])
    assert known(before, **use).fit == pytest.approx(1000 * (short + long) / 2)
    unknown = memory([0, 0, 5, 5], acted=acted, present=[False, False, True, True])
    found = known(unknown, **use)
    assert found.fit == pytest.approx(1000 * long / 2)
    assert any("not known here" in text for text in found.assumptions)


def test_repaired_faults_bound_any_exposure() -> None:
    """Nothing of 1,000 faults is left after the check: however long the exposure, at most the rule of three."""
    clean = memory([0] * 1000, acted=True, present=False, complete=False)
    found = known(clean, inferences_per_reload=10**6)
    limit = clopper_pearson(0, 1000, confidence=0.975).high  # half of the upper 2.5 %
    assert found.fit_high == pytest.approx(1000 * limit, rel=0.01)
    left = known(memory([0] * 1000, present=True, complete=False), inferences_per_reload=10**6)
    assert left.fit_high == pytest.approx(1000.0)


def test_values_are_at_risk_while_they_are_live() -> None:
    """Two sites, live for 10 % and 50 % of a pass, the first failing: 1,000 x 0.1 / 2; half the time idle: 25."""
    found = known(values([1, 0], [0.1, 0.5]), duty=0.5)
    assert found.fit == pytest.approx(25.0)
    assert found.raw_fit == pytest.approx(500.0)
    assert found.sites[0].name == "conv0:conv"


def test_structures_add_up_and_the_largest_is_named() -> None:
    guard = guard_upsets(guard_bits=500_000, faults=10, harmful=1, present=1, inputs=10)
    found = known(memory([0, 10]), values([1, 0], [0.1, 0.5]), guard)
    assert found.fit == pytest.approx(500 + 50 + 50, rel=0.7)
    assert {part.name: part.fit for part in found.structures} == pytest.approx(
        {"weights": 500.0, "values": 50.0, "guard memory": 50.0}
    )
    assert dominating(found).startswith("weights 83%; fc.weight 83%")
    assert found.raw_fit == pytest.approx(2500.0)


def test_larger_upsets_count_by_their_share() -> None:
    """90 % of upsets change one bit (0.2 fail), 10 % two (0.8): 0.26."""
    rate = RawRate.of(1000, unit="FIT/Mbit", shares=(0.9, 0.1, 0.0))
    one, two = memory([0, 0, 0, 0, 10]), memory([0, 10, 10, 10, 10], bits_each=2)
    assert known(one, two, rate=rate).fit == pytest.approx(260.0)
    with pytest.raises(HoplonError, match=r"2-bit upsets in memory, which are 10.00%"):
        known(one, rate=rate)


def test_the_raw_rates_range_joins_the_limits() -> None:
    rate = RawRate.of(1000, unit="FIT/Mbit", low=700, high=1200)
    found = failure_rate([memory([0] * 90 + [10] * 10, complete=False)], rate, use=Use(inferences_per_reload=1))
    exact = clopper_pearson(10, 100)
    assert found.fit == pytest.approx(100.0)
    assert (found.fit_low, found.fit_high) == pytest.approx((700 * exact.low, 1200 * exact.high), rel=0.03)
    assert (found.fit_low_of_rate, found.fit_high_of_rate) == pytest.approx((70.0, 120.0))
    assert (found.fit_low_of_campaign, found.fit_high_of_campaign) == pytest.approx(
        (1000 * exact.low, 1000 * exact.high), rel=0.03
    )


def test_the_limits_decide_about_a_budget_and_more_faults_narrow_them() -> None:
    found = failure_rate([memory([0] * 990 + [10] * 10, complete=False)], RATE, use=Use(inferences_per_reload=1))
    assert found.fit == pytest.approx(10.0)
    assert [found.verdict(budget) for budget in (4.0, 12.0, 19.0)] == ["fail", "undecided", "pass"]
    assert found.faults_to_decide(19.0) == 0
    more = found.faults_to_decide(12.0)
    assert more is not None
    times = (1000 + more) / 1000
    tighter = memory([0] * round(990 * times) + [10] * round(10 * times), complete=False)
    assert failure_rate([tighter], RATE, use=Use(inferences_per_reload=1)).fit_high == pytest.approx(12.0, rel=0.01)
    wide = RawRate.of(1000, unit="FIT/Mbit", low=700, high=1500)
    assert known(memory([0] * 99 + [10]), rate=wide).faults_to_decide(10.0) is None


def test_faults_that_do_not_count_alike() -> None:
    """Two strata: 90 % of the population with 0 of 50, 10 % with 25 of 50 failing: 5 %."""
    weights = np.repeat([0.9 / 50, 0.1 / 50], 50)
    extra = {"weight": weights, "pooled": weights, "proven": False, "candidates": pl.Series([10**6] * 100)}
    found = known(memory([0] * 50 + [0, 10] * 25, complete=False, **extra))
    assert found.fit == pytest.approx(50.0)
    assert found.fit_low < 36 < 100 < found.fit_high < 140


def test_every_number_says_its_unit() -> None:
    found = known(memory([0, 10])).to_dict(budget_fit=10.0)
    numbers = [key for key, value in found.items() if isinstance(value, float)]
    units = ("fit", "share_of_budget", "confidence")
    assert all(any(unit in key for unit in units) for key in numbers), numbers
    assert found["share_of_budget"] == pytest.approx(50.0)
    assert found["verdict"] == "fail"
    assert known(memory([0, 10])).assumptions[0].startswith("Raw rate: 1,000 FIT/Mbit (given; the user's own)")


def test_nothing_is_no_failure_rate() -> None:
    with pytest.raises(HoplonError, match="got none"):
        known()
