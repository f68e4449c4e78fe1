"""Campaigns in two phases: against enumerated truths, the same for any number of workers, and proofs that hold."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from hoplon import (
    BitFlip,
    Campaign,
    HoplonError,
    Inputs,
    Memory,
    Ranger,
    StuckAt,
    Values,
    capture,
    compare,
    load_results,
    profile_ranges,
)
from hoplon.campaign.executors import Serial
from hoplon.campaign.rates import rate_of
from hoplon.campaign.runner import UnitStore
from hoplon.campaign.stratified.bit_bands import bands_of
from hoplon.campaign.stratified.candidates import Candidates
from hoplon.campaign.stratified.first_phase import FirstPhase
from hoplon.campaign.stratified.preview import LogitGradients
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.campaign.stratified.strata import (
    ByAnswer,
    ByBit,
    ByDeviation,
    ByFirstOrder,
    ByFunction,
    ByLayer,
    BySensitivity,
    CandidateFeatures,
)
from hoplon.campaign.stratified.two_phase import TwoPhaseRun
from hoplon.errors import StoreError
from hoplon.faults import Elements, FaultTable, Target
from hoplon.faults.sampling import ElementUniform, Exhaustive, Population
from hoplon.files import read_json, write_json
from hoplon.formats import FixedPoint, native
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.protections.base import Overlay
from hoplon.stats.allocation import allocate

HALF_WIDTH = 0.02


def _net() -> nn.Module:
    """Convolution, batch norm and ReLU, then logits: takes ``(n, 1, 5, 5)``, gives ``(n, 3)``."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
        net[1].running_var.fill_(1.0)  # type: ignore[union-attr, operator]
    return net


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    x = torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    return Campaign(capture(_net(), x[:2]), Inputs(x), sites=Values(kind="conv"), batch=4)


@pytest.fixture(scope="module")
def truth(campaign: Campaign) -> pl.DataFrame:
    """Every fault there is: 8 inputs x 27 elements x 32 bits."""
    whole = Campaign(campaign.program, campaign.data, sites=campaign.sites, sampling=Exhaustive(), batch=4).run()
    assert whole.runs.height == 8 * 27 * 32
    rate = whole.summary()[0].failure
    assert (rate.method, rate.low, rate.high) == ("all faults", rate.estimate, rate.estimate)
    table = whole.faults.frame.with_columns(whole.faults.bits)
    failed = whole.runs.select("fault", failed=pl.col("top-1").cast(pl.String).is_in(["sdc", "nonfinite"]))
    return table.join(failed, on="fault")


def test_the_estimate_is_that_of_all_faults(campaign: Campaign, truth: pl.DataFrame) -> None:
    """Three seeds: an honest 95 % interval misses in one of them at least twice with probability 0.007."""
    probability = float(truth["failed"].mean())  # type: ignore[arg-type]
    covered = 0
    for seed in range(3):
        rate = campaign.run(half_width=HALF_WIDTH, seed=seed).summary()[0]
        assert rate.failure.half_width <= HALF_WIDTH
        covered += rate.failure.low <= probability <= rate.failure.high
    assert covered >= 2


def test_the_pilot_says_what_to_expect_and_the_end_what_it_came_to(campaign: Campaign) -> None:
    results = campaign.run(half_width=HALF_WIDTH, seed=0)
    assert results.design is not None
    expected, spent = results.design.expected, results.design.spent
    assert spent["runs"] == results.summary()[0].n_runs
    assert 0.3 < expected["runs"] / spent["runs"] < 3
    assert expected["seconds"] > 0
    assert spent["seconds"] > 0
    assert 0.5 < expected["memory_bytes"] / spent["memory_bytes"] <= 1
    assert str(results).splitlines()[-1] == results.prediction
    assert results.prediction == results.design.prediction
    assert f"; it took {spent['runs']:,.0f} runs, " in results.prediction


def test_a_prediction_is_there_for_uniform_faults_and_after_loading(campaign: Campaign, tmp_path: Path) -> None:
    results = campaign.run(half_width=0.05, design="uniform", store=tmp_path / "run")
    assert results.prediction is not None
    assert re.fullmatch(
        r"planned from the pilot: [\d,]+ runs, [\d.,]+ s, [\d.]+ GB; "
        r"it took [\d,]+ runs, [\d.,]+ s, [\d.]+ GB, [12] looks?",
        results.prediction,
    )
    assert f"it took {results.summary()[0].n_runs:,} runs" in results.prediction
    assert load_results(tmp_path / "run").prediction == results.prediction
    assert load_results(tmp_path / "run").design is None
    assert campaign.run(count=10).prediction is None


def _too_wide(*given: Any, half_width: float, **others: Any) -> Any:
    return allocate(*given, half_width=min(4 * half_width, 0.9), **others)


@pytest.mark.parametrize(("sites", "half_width"), [(Values(kind="conv"), 0.005), (Memory("0.weight"), 0.04)])
def test_what_is_run_after_a_look_narrows_the_limits_and_leaves_the_estimate(
    campaign: Campaign, sites: Values | Memory, half_width: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for too wide an interval, so that the first look is not the last one."""
    plan = dataclasses.replace(campaign, sites=sites)
    monkeypatch.setattr("hoplon.campaign.stratified.schedule.allocate", _too_wide)
    results = plan.run(half_width=half_width, seed=3, store=tmp_path / "run")
    design, rate = results.design, results.summary()[0].failure
    assert design is not None
    assert design.looks is not None
    assert design.looks > 1
    assert design.planned is not None
    assert results.prediction is not None
    assert results.prediction.endswith(f", {design.looks} looks")
    failed, late = pl.col("top-1").cast(pl.String).is_in(["sdc", "nonfinite"]), pl.col("fault") >= design.planned
    faults = results.runs.group_by("fault", "cell", "proven").agg(failed.mean().alias("failed"), pl.col("weight").max())
    assert faults.filter(late).height > 0
    assert faults.filter(late)["weight"].max() == 0
    assert faults["weight"].sum() == pytest.approx(1)
    seen = faults.filter(~late & ~pl.col("proven")).group_by("cell").agg(pl.col("failed").mean()).sort("cell")
    halves = np.repeat(np.array(design.shares) / 2, 2)[seen["cell"].to_numpy()]
    assert rate.estimate == pytest.approx(float(halves @ seen["failed"].to_numpy()))
    alone = results.lazy_runs.filter(~late).drop("pooled")
    first = rate_of(alone, "top-1", target=results.target, confidence=rate.confidence)
    assert rate.half_width <= half_width < first.failure.half_width
    assert rate.low <= rate.estimate <= rate.high
    if results.target == "values":  # weights and limits travel with the faults
        faults_again = {"faults": results.faults, "batch": 4, "latency": False}
        arm = compare(campaign.program, campaign.data, arms={"none": []}, **faults_again).arms[0]  # type: ignore[arg-type]
        assert arm.rate.failure.estimate == pytest.approx(rate.estimate)
        assert arm.rate.failure.half_width < rate.half_width  # one look
    groups = results.by("layer")
    assert float(groups["failure"][0]) == pytest.approx(rate.estimate)
    again = load_results(tmp_path / "run")
    assert again.summary()[0].failure == rate
    assert again.digest() == results.digest()
    assert plan.run(half_width=half_width, seed=3, store=tmp_path / "run", resume=True).digest() == results.digest()


def test_an_estimate_that_later_runs_rule_out_ends_at_the_limit() -> None:
    """Else no runs narrow an interval that has to hold it: here four failures first, then 400 runs without one."""
    number = np.arange(404)
    outcomes = pl.Series(np.where(number < 4, "sdc", "identical"))
    weight, pooled = np.where(number < 4, 0.25, 0.0), np.full(404, 1 / 404)
    frame = pl.DataFrame({"fault": number, "input": 0, "top-1": outcomes, "weight": weight, "pooled": pooled})
    rate = rate_of(frame.lazy(), "top-1", target="values", confidence=0.95)
    plain = rate_of(frame.with_columns(weight=pl.col("pooled")).lazy(), "top-1", target="values", confidence=0.95)
    assert (rate.failure.low, rate.failure.high) == pytest.approx((plain.failure.low, plain.failure.high))
    assert plain.failure.estimate == pytest.approx(4 / 404)
    assert rate.failure.estimate == rate.failure.high < 0.05


def test_groups_are_estimated_from_the_same_runs(campaign: Campaign, truth: pl.DataFrame) -> None:
    """32 intervals at 95 %: nine misses or more have probability below 1e-4, were they independent."""
    found = campaign.run(half_width=HALF_WIDTH, seed=5).by("bit")
    real = truth.group_by("bit").agg(truth=pl.col("failed").mean())
    both = found.join(real, on="bit")
    assert both.height == 32
    covered = both.filter(
        (pl.col("failure_low") <= pl.col("truth") + 1e-9) & (pl.col("truth") <= pl.col("failure_high"))
    )
    assert covered.height >= 24
    worst = both.with_columns(error=(pl.col("failure") - pl.col("truth")).abs())["error"].max()
    assert isinstance(worst, float)
    assert worst < 0.35


def test_what_is_proven_to_be_masked_is_masked(campaign: Campaign) -> None:
    results = campaign.run(half_width=HALF_WIDTH, seed=0)
    proven = results.runs.filter(pl.col("proven"))
    assert proven.height > 50
    assert results.summary()[0].n_runs == results.runs.height - proven.height
    table = FaultTable("values", results.faults.frame.filter(pl.col("fault").is_in(proven["fault"].implode())))
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=4)  # type: ignore[arg-type]
    runs, observed = Injector(reference, Overlay()).runs(table.plan())
    assert (runs["top-1"] == "identical").all()
    assert observed.frame["before"].equals(table.frame["before"])
    assert observed.frame["after"].equals(table.frame["after"])
    assert runs["reached"].equals(proven["reached"])


def test_weights_sum_to_one_and_travel_into_a_comparison(campaign: Campaign) -> None:
    results = campaign.run(half_width=HALF_WIDTH, seed=0)
    weights = results.faults.frame.unique("fault")["weight"]
    assert weights.sum() == pytest.approx(1)
    assert results.design is not None
    assert set(results.faults.frame["candidates"]) == {int(count) for count in results.design.draws}
    ranges = profile_ranges(campaign.program, campaign.data)
    arms = compare(
        campaign.program,
        campaign.data,
        arms={"none": [], "ranger": [Ranger(ranges)]},
        faults=results.faults,
        latency=False,
        batch=4,
    ).arms
    assert arms[0].rate.failure.estimate == pytest.approx(results.summary()[0].failure.estimate)
    assert arms[0].results.candidates == results.candidates == int(min(results.design.draws))
    frame = results.faults.frame.with_columns(candidates=pl.lit(300, dtype=pl.Int64))
    coarse = compare(
        campaign.program, campaign.data, arms={"none": []}, faults=FaultTable("values", frame), latency=False, batch=4
    ).arms[0]
    assert coarse.rate.failure.half_width > 1.5 * arms[0].rate.failure.half_width
    unweighted = results.runs.filter(~pl.col("proven"))["top-1"].cast(pl.String).is_in(["sdc", "nonfinite"]).mean()
    assert abs(arms[0].rate.failure.estimate - float(unweighted)) > 0.02  # type: ignore[arg-type]
    assert arms[1].difference is not None
    expected = arms[1].rate.failure.estimate - arms[0].rate.failure.estimate
    assert arms[1].difference.estimate == pytest.approx(expected)
    assert arms[1].difference.low <= expected <= arms[1].difference.high


@pytest.mark.parametrize("sites", [Values(kind="conv"), Memory(kind="linear")])
def test_one_seed_is_one_table_for_any_number_of_workers_and_after_a_stop(
    campaign: Campaign, sites: Values | Memory, tmp_path: Path
) -> None:
    plan = Campaign(campaign.program, campaign.data, sites=sites, batch=4)
    alone = plan.run(half_width=0.05, seed=2)
    shared = plan.run(half_width=0.05, seed=2, workers=2, store=tmp_path / "run")
    assert alone.digest() == shared.digest()
    assert [r.as_row() for r in alone.summary()] == [r.as_row() for r in load_results(tmp_path / "run").summary()]
    for folder in ("faults", "runs"):  # of which the design tells
        shards = sorted((tmp_path / "run" / folder).glob("unit-*.parquet"))
        assert len(shards) >= 2
        for shard in shards[1:]:
            shard.unlink()
    with pytest.raises(StoreError, match=r"expected \d+ units in .*, got 1; resume the run"):
        load_results(tmp_path / "run")
    again = plan.run(half_width=0.05, seed=2, store=tmp_path / "run", resume=True)
    assert again.digest() == alone.digest()


@pytest.mark.parametrize(
    "strata",
    [
        ByDeviation(signs=False),
        [ByDeviation(), ByLayer()],
        ByBit(),
        ByFirstOrder(),
        BySensitivity((0.5, 1.0)),
        [ByDeviation(), ByAnswer(least=1.0)],
        ByFunction(lambda seen: (seen.after.abs() > 1).long(), name="large"),
    ],
)
def test_any_strata_reach_the_precision(campaign: Campaign, truth: pl.DataFrame, strata: object) -> None:
    results = campaign.run(half_width=0.04, seed=1, strata=strata)  # type: ignore[arg-type]
    rate = results.summary()[0].failure
    assert rate.half_width <= 0.04
    # 95 %, and three times the reach: missed with a probability far below 1e-4
    probability = float(truth["failed"].mean())  # type: ignore[arg-type]
    assert abs(rate.estimate - probability) < 0.12
    assert results.design is not None
    assert len(set(results.design.labels)) == len(results.design.labels)
    assert np.isclose(sum(results.design.shares), 1)


def test_sensitivity_sees_moves_of_either_direction() -> None:
    """Two logits x and -x: gap 2 \\|x\\|, gradient of length sqrt(2)."""
    seen = CandidateFeatures((), *[torch.zeros(4).long()] * 3, *[torch.zeros(4)] * 4, torch.ones(4))  # type: ignore[call-arg]
    seen = dataclasses.replace(
        seen,
        before=torch.tensor([1.0, 1.0, 1.0, 1.0]).double(),
        after=torch.tensor([1.5, 0.5, 100.0, torch.inf]).double(),
        sensitivity=torch.full((4,), 2**0.5 / 2).double(),
    )
    strata = BySensitivity((0.3, 0.4))
    assert strata.keys(seen).tolist() == [1, 1, 2, 3]
    labels = [strata.label(key, seen) for key in range(4)]
    assert labels[0] == "outputs move by less than 0.3 gaps"
    assert labels[3] == "not finite"
    with pytest.raises(HoplonError, match=r"expected edges in ascending order, at least one, got \(2.0, 1.0\)"):
        BySensitivity((2.0, 1.0))


def test_answers_part_only_faults_that_drown_the_input() -> None:
    seen = CandidateFeatures((), *[torch.zeros(5).long()] * 3, *[torch.zeros(5)] * 4, torch.ones(5))  # type: ignore[call-arg]
    seen = dataclasses.replace(
        seen,
        before=torch.zeros(5).double(),
        after=torch.tensor([1.0, 200.0, -200.0, 200.0, torch.inf]).double(),
        sensitivity=torch.ones(5).double(),
        answer=torch.tensor([3, 3, 0, 900, 3]),
    )
    strata = ByAnswer(most=10)
    assert strata.keys(seen).tolist() == [0, 4, 1, 11, 0]
    labels = [strata.label(key, seen) for key in (0, 4, 11)]
    assert labels == ["", "golden class 3", "golden class 10 or above"]


def test_one_batch_tells_how_long_gradients_are(campaign: Campaign) -> None:
    """Of all inputs in one batch: the root mean square of the gradients of each, over the gap of the input."""
    plan = dataclasses.replace(campaign, batch=8)
    work = plan._runner(0)
    reference = work.injector.reference
    inputs = reference.eligible
    given, element = inputs.repeat_interleave(27), torch.arange(27).repeat(len(inputs))
    step = torch.full_like(given, reference.program.site_steps[work.sites[0].name])
    none, found, _ = LogitGradients(work.injector, work.sites)(step, element, given)
    slope, each, _ = LogitGradients(work.injector, work.sites, each_input=True)(step, element, given)
    with torch.inference_mode():
        x = torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(1))
        largest = _net()(x[inputs]).double().topk(2, 1).values
    gap = (largest[:, 0] - largest[:, 1])[:, None]
    wanted = (each.view(-1, 27) * gap).square().mean(0).sqrt() / gap
    assert found.tolist() == pytest.approx(wanted.reshape(-1).tolist())
    assert not none.any()
    assert slope.any()


def test_answers_are_those_of_the_golden_run(campaign: Campaign) -> None:
    work = campaign._runner(0)
    reference = work.injector.reference
    given = reference.eligible.flip(0)
    step = torch.full_like(given, reference.program.site_steps[work.sites[0].name])
    *_, answer = LogitGradients(work.injector, work.sites)(step, torch.zeros_like(given), given)
    with torch.inference_mode():
        outputs = _net()(torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(1))[given])
    assert answer.tolist() == outputs.argmax(1).tolist()


def _negative(seen: CandidateFeatures) -> torch.Tensor:
    return torch.full_like(seen.number, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 10, "design": "stratified"}, "expected a half-width for strata"),
        ({"count": 10, "strata": ByBit()}, "expected a half-width for strata"),
        ({"half_width": 0.1, "design": "random"}, "expected design of Campaign.run to be .*, got 'random'"),
        ({"half_width": 0.1, "design": "uniform", "strata": ByBit()}, "expected no strata for design='uniform'"),
        ({"half_width": 0.1, "strata": []}, "expected 1 to 4 kinds of strata, got 0"),
        ({"half_width": 0.1, "strata": ByFunction(_negative)}, "expected one integer of at least 0 per candidate"),
        ({"half_width": 0.1, "confidence": 1.0}, "expected confidence of Campaign.run to be .*, got 1.0"),
    ],
)
def test_bad_options_are_named(campaign: Campaign, options: dict[str, object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        campaign.run(**options)  # type: ignore[arg-type]


def test_first_order_needs_value_faults(campaign: Campaign) -> None:
    plan = Campaign(campaign.program, campaign.data, sites=Memory(kind="linear"), fault_model=BitFlip(), batch=4)
    with pytest.raises(HoplonError, match="expected value faults, a model that can be exported and one judged output"):
        plan.run(half_width=0.1, strata=ByFirstOrder())


def test_a_precision_that_was_reached_is_that_of_the_results(campaign: Campaign) -> None:
    """Also where much is proven, in several bands: what a look does not know it would count to another band."""
    some = dataclasses.replace(campaign, fault_model=BitFlip(bits=tuple(range(20, 30))))
    assert some.run(half_width=0.003, seed=0).summary()[0].failure.half_width <= 0.003


@pytest.mark.parametrize("target", ["memory", "values"])
def test_proven_faults_leave_nothing_open(target: Target) -> None:
    """However few are recorded: ten faults in a thousand fail, of the half that was run."""
    failed = np.repeat([1, 0, 0], [10, 990, 2])
    runs = pl.DataFrame(
        {
            "fault": np.arange(1002),
            "input": 0,
            "top-1": np.where(failed, "sdc", "masked"),
            "weight": np.repeat([0.5 / 1000, 0.25], [1000, 2]),
            "candidates": 10**9,
            "proven": np.repeat([False, True], [1000, 2]),
        }
    )
    rate = rate_of(runs.lazy(), "top-1", target=target, confidence=0.95)
    assert rate.failure.estimate == pytest.approx(0.005)
    assert rate.failure.high < 0.01


def test_most_candidates_are_of_the_upper_exponent_whatever_bits_there_are(campaign: Campaign) -> None:
    sites = Values(kind="conv").select(campaign.program)
    for model, upper in ((BitFlip(), 2), (BitFlip(field="exponent"), 1), (BitFlip(bits=(3, 30, 31)), 1)):
        bands = bands_of(Population(sites, model, torch.arange(2)), ElementUniform())
        assert SequentialSchedule(0.01).candidates([band.part for band in bands]).argmax() == upper
        assert bands[upper].label == "bits 27 to 30"


def _dead() -> nn.Module:
    """The same network, with nothing behind the convolution that a finite value could get through."""
    net = _net()
    with torch.no_grad():
        net[1].weight.zero_()  # type: ignore[union-attr, operator]
        net[1].bias.fill_(-1.0)  # type: ignore[union-attr, operator]
    return net


def test_where_all_is_proven_to_be_masked_nothing_is_run() -> None:
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    mantissa = BitFlip(field="mantissa")
    dead = Campaign(capture(_dead(), x[:2]), Inputs(x), sites=Values(kind="conv"), fault_model=mantissa, batch=4)
    results = dead.run(half_width=HALF_WIDTH, seed=0)
    rate = results.summary()[0]
    assert (rate.n_runs, rate.failure.estimate, rate.failure.low) == (0, 0.0, 0.0)
    assert results.design is not None
    assert 3 / results.design.candidates < rate.failure.high < 6 / results.design.candidates
    assert results.by("bit").height == 23


def test_where_no_memory_fault_changes_anything_nothing_is_run() -> None:
    net = _net()
    with torch.no_grad():
        net[0].weight.abs_()  # type: ignore[union-attr, operator]
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    stuck = StuckAt(0, bits=(31,))
    positive = Campaign(capture(net, x[:2]), Inputs(x), sites=Memory("0.weight"), fault_model=stuck, batch=2)
    results = positive.run(half_width=HALF_WIDTH, seed=0)
    assert (results.summary()[0].n_runs, results.split) == (0, None)
    assert 0 < results.summary()[0].failure.high < 1e-3


def test_a_precision_that_candidates_cannot_give_does_not_go_on_for_ever() -> None:
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    mantissa = BitFlip(field="mantissa")
    dead = Campaign(capture(_dead(), x[:2]), Inputs(x), sites=Values(kind="conv"), fault_model=mantissa, batch=4)
    runner = dead._runner(0)
    manifest = {"target": "values", "criteria": ["top-1"], "confidence": 0.95}
    store = UnitStore(None, manifest, Serial(runner.run))
    schedule = SequentialSchedule(1e-7, most_candidates=2**17)
    results = store.results(*TwoPhaseRun(runner, (ByDeviation(),), schedule, store).finish())
    assert results.design is not None
    assert results.design.candidates == 2**17
    assert results.summary()[0].failure.half_width > 1e-7


def test_faults_of_several_words_are_told_apart_where_they_strike(campaign: Campaign) -> None:
    """By the gradient at their own operator, not at the step of the program that has the number of their site."""
    several = dataclasses.replace(campaign, fault_model=Elements(2))
    results = several.run(half_width=0.05, seed=0)
    assert any("outputs move by" in label for label in results.design.labels)  # type: ignore[union-attr]
    assert results.summary()[0].failure.half_width <= 0.05


def test_a_format_that_later_candidates_show_first_is_known() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(588, 3)).eval()
    program = capture(net, torch.zeros(2, 1, 16, 16))
    large, *_, small = Values().select(program)
    formats = {large.name: native(torch.float32), small.name: FixedPoint(integer=8, fraction=8)}
    model = BitFlip(format=formats)
    population = Population((large, small), model, torch.arange(2), lambda number, *_: torch.zeros_like(number))
    drawn = Candidates(population, ElementUniform(), (ByDeviation(),), seed=0, block=8)
    drawn.extend(np.array([8]))
    assert drawn.table(np.arange(8)).frame["format"].n_unique() == 1
    drawn.extend(np.array([4096]))
    assert drawn.table(np.arange(4096)).frame["format"].n_unique() == 2


def test_strata_that_late_candidates_show_are_run() -> None:
    """They would pass for proven where nothing else is open."""
    counts, known = np.array([5, 0, 4091]), np.array([np.nan, np.nan, 0.0])
    first = FirstPhase(counts, known, np.zeros(3, dtype=np.int64), np.ones(1), np.array([4096]))
    planned = SequentialSchedule(0.01).with_new_strata(first, np.zeros((3, 2), dtype=np.int64))
    assert planned[0].min() > 0
    assert planned[1:].max() == 0
    assert (SequentialSchedule(0.01).with_new_strata(first, 9 * np.ones((3, 2), dtype=np.int64)) == 9).all()


def test_a_run_with_candidates_drawn_otherwise_is_not_gone_on_with(campaign: Campaign, tmp_path: Path) -> None:
    """Units that are there already belong to the strata of their own candidates."""
    campaign.run(half_width=0.1, seed=0, store=tmp_path / "run")
    file = tmp_path / "run" / "manifest.json"
    write_json(file, {name: entry for name, entry in read_json(file).items() if name != "candidates"})
    with pytest.raises(StoreError, match="candidates: absent there, by bands of bits here"):
        campaign.run(half_width=0.1, seed=0, store=tmp_path / "run", resume=True)


def test_candidates_looked_at_in_parts_are_the_same() -> None:
    program = capture(_net(), torch.zeros(2, 1, 5, 5))
    sites, inputs = Values(kind="conv").select(program), torch.arange(2)
    found, looked = [], []

    def observe(number: Tensor, element: Tensor, given: Tensor | None) -> Tensor:
        looked.append(len(number))
        return element * 2**24

    population = Population(sites, BitFlip(), inputs, observe)
    for most in (2**22, 2**13):
        drawn = Candidates(population, ElementUniform(), (ByDeviation(),), seed=0, most_at_once=most)
        for count in (1, 20_000):
            drawn.extend(np.full(len(drawn.bands), count))
        found.append(drawn.stratum)
    assert np.array_equal(*found)
    assert looked == [4 * 4096, 16 * 4096, 4 * 4096, *8 * [2 * 4096]]
