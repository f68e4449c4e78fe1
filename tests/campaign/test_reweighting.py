"""From one sampling to another: on populations whose truth is known by enumeration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from hoplon import BitFlip, Campaign, HoplonError, Inputs, Memory, Values, capture
from hoplon.campaign.reweighting import importance_weights
from hoplon.faults import BitRate
from hoplon.faults.sampling import (
    Among,
    ElementUniform,
    Exhaustive,
    Explicit,
    LayerUniform,
    OpUniform,
    Population,
    Sampling,
    Stratified,
    draw_faults,
    unit_generator,
)
from hoplon.program import ValueSite
from hoplon.stats.intervals import Interval, clustered, weighted, wilson

SITES = (ValueSite("a", "conv", shape=(40,)), ValueSite("b", "relu", shape=(5,)), ValueSite("c", "conv", shape=(2,)))


def campaign(sites: Values | Memory, sampling: Sampling) -> Campaign:
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)).eval(), torch.randn(3, 6))
    data = Inputs(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))
    return Campaign(program, data, sites=sites, fault_model=BitFlip(), sampling=sampling, batch=4)


@pytest.fixture(scope="module")
def truths() -> dict[str, Interval]:
    """Every value fault there is, and every memory fault of the last layer."""
    return {
        "values": campaign(Values(), Exhaustive()).run().summary()[0].failure,
        "memory": campaign(Memory("2.*"), Exhaustive()).run().summary()[0].failure,
    }


@pytest.mark.parametrize(
    "drawn", [OpUniform(), LayerUniform(), Stratified("bit", {30: 31, **dict.fromkeys({*range(32)} - {30}, 1)})]
)
def test_reweighted_to_element_uniform_agrees_with_the_direct_estimate(
    drawn: Sampling, truths: dict[str, Interval]
) -> None:
    """Confidence 0.999, three intervals, generator fixed: a false alarm comes once in 300 seeds."""
    truth = truths["values"].estimate
    source, direct = campaign(Values(), drawn), campaign(Values(), ElementUniform())
    results = source.run(count=3000, seed=1, confidence=0.999)
    found, plain = source.reweighted(results, to=ElementUniform()), direct.run(count=3000, seed=2, confidence=0.999)
    straight = plain.summary()[0].failure
    assert found.low <= truth <= found.high
    assert straight.low <= truth <= straight.high
    assert found.low <= straight.estimate <= found.high
    # The unweighted estimate is of something else.
    unweighted = results.summary()[0].failure
    assert not unweighted.low <= truth <= unweighted.high
    assert (found.method, found.confidence) == ("wilson, weighted", 0.999)


def test_reweighted_memory_faults_agree_too(truths: dict[str, Interval]) -> None:
    source = campaign(Memory("2.*"), OpUniform())
    results = source.run(count=1500, seed=3, confidence=0.999)
    found = source.reweighted(results, to=ElementUniform())
    assert found.low <= truths["memory"].estimate <= found.high
    same = source.reweighted(results, to=OpUniform())
    assert same.estimate == pytest.approx(results.summary()[0].failure.estimate)


def test_weights_are_ratios_of_probabilities() -> None:
    population = Population(SITES, BitFlip(), torch.arange(3))
    table = draw_faults(population, 300, sampling=OpUniform(), generator=unit_generator(0, 0))
    weights = importance_weights(table, population, drawn=OpUniform(), to=ElementUniform())
    sites = table.frame["site"].cast(pl.String).to_list()
    assert weights.tolist() == pytest.approx(
        [{"a:conv": 40, "b:relu": 5, "c:conv": 2}[site] / 47 * 3 for site in sites]
    )
    back = importance_weights(table, population, drawn=OpUniform(), to=OpUniform(kinds=("conv",)))
    assert back.tolist() == pytest.approx([0 if site == "b:relu" else 1.5 for site in sites])


def refused(drawn: Sampling, to: Sampling, model: BitFlip | BitRate | None = None) -> Callable[[], object]:
    population = Population(SITES, model or BitFlip(), torch.arange(3))
    table = draw_faults(population, 5, sampling=ElementUniform(), generator=unit_generator(0, 0))
    return lambda: importance_weights(table, population, drawn=drawn, to=to)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            refused(OpUniform(kinds=("conv",)), ElementUniform()),
            r"sampling that OpUniform\(kinds=\('conv',\).*covers, got ElementUniform\(\), .*element 0 of b:relu",
        ),
        (
            refused(Among({"a:conv": torch.arange(39)}), OpUniform(kinds=("conv",))),
            r"Among\(39 elements.*covers, got OpUniform.*element 39 of a:conv",
        ),
        (refused(ElementUniform(), Explicit([("a:conv", 0)])), "faults that were drawn, got an explicit list"),
        (refused(ElementUniform(), OpUniform(), BitRate(0.1)), r"faults of a place that was drawn, got BitRate"),
    ],
)
def test_what_cannot_be_reweighted_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()


def test_equal_weights_are_no_weights() -> None:
    failed = np.array([1.0] * 7 + [0.0] * 93)
    plain, found = wilson(7, 100), weighted(failed, np.full(100, 0.3))
    assert (found.estimate, found.low, found.high) == pytest.approx((plain.estimate, plain.low, plain.high))
    grouped = clustered(failed, np.ones(100, dtype=int))
    assert (found.low, found.high) == pytest.approx((grouped.low, grouped.high))


@pytest.mark.parametrize("failing", [(0.02, 0.02, 0.02), (0.0, 0.3, 0.9), (0.01, 0.3, 0.3), (0.1, 0.0, 0.5)])
def test_weighted_intervals_cover(failing: tuple[float, float, float]) -> None:
    """2,000 op-uniform campaigns of 400 faults: three sites of 40, 5 and 2 elements, failing this often."""
    rng = np.random.default_rng(0)
    sizes = np.array([40, 5, 2]) / 47
    truth = float(sizes @ failing)
    covered = 0
    for _ in range(2000):
        site = rng.integers(3, size=400)
        interval = weighted(rng.random(400) < np.array(failing)[site], (sizes * 3)[site])
        covered += interval.low <= truth <= interval.high
    assert covered / 2000 > 0.94


def test_no_failure_yet_is_bounded_by_the_heaviest_fault() -> None:
    """Zero failures among 400 with weights up to 2.5: as wide as 160 plain runs."""
    weights = np.array([2.5] * 160 + [0.0] * 240)
    assert weighted(np.zeros(400), weights).high == pytest.approx(wilson(0, 160).high)
    assert weighted(np.array([]), np.array([])).high == 1


@pytest.mark.parametrize(
    ("shares", "weights", "message"),
    [
        ([0.5], [1.0, 1.0], r"one share and one weight per cluster, got \(1,\) and \(2,\)"),
        ([1.5], [1.0], r"shares in \[0, 1\], got 1.5"),
        ([0.5], [-1.0], "weights that are finite, at least 0 and not all 0"),
        ([0.5], [0.0], "weights that are finite, at least 0 and not all 0"),
        ([0.5], [np.inf], "weights that are finite, at least 0 and not all 0"),
    ],
)
def test_shares_and_weights_out_of_range_are_refused(shares: list[float], weights: list[float], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        weighted(np.array(shares), np.array(weights))
