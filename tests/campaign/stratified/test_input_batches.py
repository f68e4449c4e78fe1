"""Memory faults on two levels: groups without bias, intervals that cover, the cheapest split, whole campaigns."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hoplon import BitFlip, Campaign, HoplonError, Inputs, KnownBits, Memory, Results, capture, load_results
from hoplon.campaign.stratified.input_batches import SecondStage
from hoplon.cli.tables import document, tables_of
from hoplon.errors import StoreError
from hoplon.faults.sampling import Exhaustive
from hoplon.files import write_json
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.protections.base import Overlay
from hoplon.stats.intervals import clustered
from hoplon.stats.two_stage import (
    TwoStagePlan,
    VarianceComponents,
    cheapest,
    draw_groups,
    effects,
    pilot_batches,
    spread_of,
)
from tests.support.networks import small_net

HALF_WIDTH = 0.02
BITS = BitFlip(bits=(31, 30, 29, 26, 23))
SIZES = np.array([8, 8, 8, 3])


def _pool(faults: int, seed: int) -> np.ndarray:
    """Whether each of 27 inputs fails, by fault: some faults fail most inputs, and inputs of a batch are alike."""
    generator = np.random.default_rng(seed)
    level = generator.choice([0.0, 0.1, 0.9], size=(faults, 1), p=[0.7, 0.2, 0.1])
    batch = np.repeat(generator.random((faults, 4)), SIZES, axis=1)
    found: np.ndarray = (0.5 * batch + 0.5 * generator.random((faults, 27))) < level
    return found


def _shares(pool: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    met = np.repeat(groups, SIZES, axis=1)
    return (pool & met).sum(1) / met.sum(1), met.sum(1)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_the_share_of_a_group_is_unbiased_though_the_last_batch_is_short(batches: int) -> None:
    """By enumeration: groups as often as their inputs are many; their shares then average to that of all inputs."""
    drawn = draw_groups(np.full(60_000, batches), SIZES, seed=3, unit=0)
    assert (drawn.sum(1) == batches).all()
    failing = np.array([8, 0, 2, 3])
    probability, expected = 0.0, 0.0
    for group in itertools.combinations(range(4), batches):
        inputs = SIZES[list(group)].sum()
        often = inputs / (27 * math.comb(3, batches - 1))
        is_group = np.isin(np.arange(4), group)
        assert (drawn == is_group).all(1).mean() == pytest.approx(often, abs=0.008)
        probability += often
        expected += often * failing[list(group)].sum() / inputs
    assert probability == pytest.approx(1)
    assert expected == pytest.approx(failing.sum() / 27)
    assert (drawn @ failing / (drawn @ SIZES)).mean() == pytest.approx(failing.sum() / 27, abs=0.006)


def test_groups_are_those_of_seed_and_unit() -> None:
    counts = np.tile([1, 3, 4], 10)
    first = draw_groups(counts, SIZES, seed=3, unit=1)
    assert (first.sum(1) == counts).all()
    assert (first == draw_groups(counts, SIZES, seed=3, unit=1)).all()
    assert (first != draw_groups(counts, SIZES, seed=3, unit=2)).any()
    assert (first != draw_groups(counts, SIZES, seed=4, unit=1)).any()
    with pytest.raises(HoplonError, match="expected 1 to 4 batches for each fault, got 5"):
        draw_groups(np.array([1, 5]), SIZES, seed=0, unit=0)


def test_intervals_of_random_groups_cover_the_mean_over_all_inputs() -> None:
    """400 campaigns of 300 faults: 95 %, less than 92.2 % of them has probability below 0.01. Bias within 4 errors."""
    pool = _pool(20_000, seed=0)
    truth, generator = pool.mean(), np.random.default_rng(1)
    found = []
    for unit in range(400):
        groups = draw_groups(np.full(300, 1), SIZES, seed=5, unit=unit)
        found.append(clustered(*_shares(pool[generator.integers(len(pool), size=300)], groups)))
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.922
    estimates = np.array([one.estimate for one in found])
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / math.sqrt(len(found))


def test_components_are_found_from_two_batches_of_each_fault() -> None:
    generator = np.random.default_rng(2)
    means = generator.normal(0.5, 0.05, size=(4000, 1))
    everything = means + generator.normal(0, 0.1, size=(4000, 10))
    real = VarianceComponents(everything.mean(1).var(), everything.var(axis=1, ddof=1).mean())
    met = np.take_along_axis(everything, generator.random((4000, 10)).argsort(1)[:, :2], axis=1)
    found = spread_of([1.0], [met], of=10)
    assert found.between == pytest.approx(real.between, rel=0.15)
    assert found.within == pytest.approx(real.within, rel=0.1)
    assert found.variance(2, of=10) == pytest.approx(met.mean(1).var(ddof=1), rel=0.02)
    assert found.variance(10, of=10) == found.between
    half = spread_of([0.5, 0.5], [met, np.zeros((4000, 2))], of=10)
    assert half.within == pytest.approx(found.within / 2)
    assert spread_of([0.5, 0.5], [met, np.zeros((1, 2))], of=10) == found
    assert spread_of([1.0], [np.zeros((5, 2))], of=10) == VarianceComponents(0.0, 0.0)
    few = spread_of([1.0], [np.array([[0.0, 1.0], [0.0, 0.0]])], of=10)
    assert few.within == pytest.approx(0.25)
    assert few.between == pytest.approx((0.125 - 0.25 * (1 / 2 - 1 / 10) + 0.25 * 0.75) / 2)


@pytest.mark.parametrize(
    ("between", "within", "fault_cost", "expected"),
    [
        (0.01, 0.04, 9.0, 6),  # sqrt(9 x 0.04 / (0.01 - 0.04 / 100)) = 6.12
        (0.01, 0.04, 0.0, 1),
        (0.01, 0.04, 1e6, 100),
        (0.01, 0.0, 9.0, 1),
        (0.0001, 0.04, 0.0, 100),  # less than batches alone would make
    ],
)
def test_the_split_is_the_one_of_the_square_root(
    between: float, within: float, fault_cost: float, expected: int
) -> None:
    spread = VarianceComponents(between, within)
    assert cheapest(spread, of=100, fault_cost=fault_cost, batch_cost=1.0) == expected
    price = [spread.variance(b, of=100) * (fault_cost + b) for b in range(1, 101)]
    assert price[expected - 1] == pytest.approx(min(price))


def test_bad_costs_are_named() -> None:
    with pytest.raises(HoplonError, match="expected at least 1 batch, a cost per fault of at least 0"):
        cheapest(VarianceComponents(0.1, 0.1), of=4, fault_cost=1.0, batch_cost=0.0)


def test_plans_know_that_a_fault_meets_several_inputs() -> None:
    generator = np.random.default_rng(0)
    single, even = (generator.random(500) < 0.3).astype(float), np.full(500, 0.3)
    found = effects([single, even, np.zeros(9)])
    assert found[0] == pytest.approx(1)
    assert found[1] == pytest.approx(1 / 106)
    assert found[2] == 1
    assert effects([even], pilot=VarianceComponents(0.1, 0.2), met=2, batches=1, of=10)[0] == pytest.approx(
        0.28 / 0.18 / 106
    )


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    """The linear layer's memory on 22 inputs: five batches of four and one of two."""
    x = torch.randn(22, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return Campaign(capture(small_net(), x[:2]), Inputs(x), sites=Memory(kind="linear"), fault_model=BITS, batch=4)


@pytest.fixture(scope="module")
def results(campaign: Campaign) -> Results:
    return campaign.run(half_width=HALF_WIDTH, seed=0)


@pytest.fixture(scope="module")
def truth(campaign: Campaign) -> float:
    """All flips of these bits, on all inputs."""
    whole = dataclasses.replace(campaign, sampling=Exhaustive()).run()
    assert whole.split is None
    assert whole.critical_share().height == 5
    return whole.summary()[0].failure.estimate


def test_the_estimate_is_that_of_all_faults_on_all_inputs(campaign: Campaign, results: Results, truth: float) -> None:
    """Three seeds: an honest 95 % interval misses in two of them with probability 0.007."""
    found = [results, *(campaign.run(half_width=HALF_WIDTH, seed=seed) for seed in (1, 2))]
    rates = [one.summary()[0] for one in found]
    assert all(rate.failure.half_width <= HALF_WIDTH for rate in rates)
    assert sum(rate.failure.low <= truth <= rate.failure.high for rate in rates) >= 2


def test_faults_meet_whole_batches_and_cost_fewer_runs(results: Results) -> None:
    split, rate = results.split, results.summary()[0]
    assert split is not None
    assert (split.of, split.pilot) == (6, pilot_batches(6)) == (6, 2)
    assert split.batches == (1, 1)  # no guard: a fault costs nothing before it meets inputs
    spent = results.runs.filter(~pl.col("proven")).with_columns(batch=pl.col("input") // 4)
    met = spent.group_by("fault").agg(batches=pl.col("batch").n_unique(), inputs=pl.len(), all=pl.col("batch").unique())
    assert set(met["batches"]) == {1, 2}
    short = pl.col("all").list.contains(5)
    assert (met.select(pl.col("inputs") == 4 * pl.col("batches") - 2 * short.cast(pl.Int64)))["inputs"].all()
    assert rate.n_runs < 2 / 6 * 22 * rate.n_faults
    assert results.design is not None
    assert results.design.spent["runs"] == rate.n_runs


def test_each_half_is_split_by_the_other(campaign: Campaign) -> None:
    """Half 0 varies within faults only, half 1 between them only."""
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=4)
    levels = SecondStage(Injector(reference, Overlay()), 0)
    within, between = [np.array([0.0, 1.0])] * 8, [np.full(2, fault % 2.0) for fault in range(8)]
    tally = [(np.array([one.mean() for one in half]), half) for half in (within, between)]
    levels.choose(tally, np.ones(1))
    assert levels.split is not None
    assert levels.split.batches == (1, 6)
    assert levels.split.spreads[0].within == 0
    assert levels.split.spreads[1].between == pytest.approx(0.25 / 9)
    assert levels.effects(tally).shape == (1, 2)


def test_a_guard_that_reads_all_memory_makes_a_fault_dearer(campaign: Campaign) -> None:
    costs = []
    for protections in ((), (KnownBits(),)):
        plan = dataclasses.replace(campaign, protections=protections)
        split = plan.run(half_width=0.2).split
        assert split is not None
        costs.append((split.fault_cost, split.batch_cost))
    memory = 4 * sum(parameter.numel() for parameter in small_net().parameters())
    assert costs[0][0] == 0
    assert costs[1][0] >= memory
    assert costs[0][1] == costs[1][1] > memory


def test_the_split_is_told_and_all_inputs_are_not_made_up(campaign: Campaign, results: Results) -> None:
    told = str(results.split)
    assert told.startswith("each fault meets 1 of 6 input batches, drawn at random (2 in the pilot): variance ")
    assert told in str(results).splitlines()
    for wrong in (results.critical_share, results.distribution):
        with pytest.raises(HoplonError, match=r"expected faults that met all inputs, got .* 1 of 6 .*run\(count"):
            wrong()
    assert set(results.per_fault()["n_inputs"]) >= {2, 4, 6, 8}
    found = document(results)
    assert found["split"] == told
    assert "critical_share" not in found
    assert told in str(tables_of(found)[0].caption)
    assert results.manifest["inputs_per_fault"] == "random batches"
    every = campaign.run(count=20)
    assert every.split is None
    assert set(every.per_fault()["n_inputs"]) == {22}
    assert "critical_share" in document(every)


def test_a_resumed_campaign_goes_on_with_the_recorded_split(
    campaign: Campaign, results: Results, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    first = campaign.run(half_width=HALF_WIDTH, seed=0, store=path)
    assert first.digest() == results.digest()
    assert load_results(path).split == results.split
    shards = sorted(path.glob("*/unit-*.parquet"))
    for shard in shards:
        if shard.name != "unit-00000000.parquet":
            shard.unlink()
    again = campaign.run(half_width=HALF_WIDTH, seed=0, store=path, resume=True)
    assert again.digest() == first.digest()
    assert results.split is not None
    design = load_results(path).design
    assert design is not None

    def record(split: TwoStagePlan) -> None:
        write_json(path / "design.json", dataclasses.replace(design, split=split).to_dict())

    record(dataclasses.replace(results.split, batches=(3, 3)))
    for shard in path.glob("*/unit-*.parquet"):
        shard.unlink()
    other = campaign.run(half_width=HALF_WIDTH, seed=0, store=path, resume=True)
    assert other.split is not None
    assert other.split.batches == (3, 3)
    assert other.digest() != first.digest()
    record(dataclasses.replace(results.split, of=7))
    with pytest.raises(StoreError, match="expected a split of 6 input batches, got .* delete design.json"):
        campaign.run(half_width=HALF_WIDTH, seed=0, store=path, resume=True)
    found = design.to_dict()
    found["split"]["spread"] = found["split"].pop("spreads")
    write_json(path / "design.json", found)
    with pytest.raises(StoreError, match=r"expected a design as hoplon writes it .*split.spreads"):
        load_results(path)


def test_all_inputs_in_one_batch_leave_nothing_to_choose(campaign: Campaign) -> None:
    found = dataclasses.replace(campaign, batch=22).run(half_width=0.1)
    assert str(found.split) == "every fault meets all inputs (1 of 1 batches)"
    assert found.critical_share().height == 5
