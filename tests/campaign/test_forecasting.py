"""Forecasts: how many faults and runs exactly, time and memory plausibly, and nothing left behind."""

from __future__ import annotations

import math
import os

import pytest
import torch

from hoplon import BitFlip, Campaign, HoplonError, Inputs, Memory, Values, capture, forecast
from hoplon.faults.sampling import Exhaustive
from hoplon.formats import equal_bits
from tests.support.networks import NETWORKS, captured


def _campaign(sites: Values | Memory, samples: int = 12, **options: object) -> Campaign:
    net = NETWORKS["mlp"]
    return Campaign(captured("mlp"), Inputs(net.batch(samples)), sites=sites, batch=4, **options)  # type: ignore[arg-type]


def test_runs_are_faults_times_the_inputs_each_meets() -> None:
    assert forecast(_campaign(Values()), count=5000, seconds=0).runs == 5000
    found = forecast(_campaign(Memory()), count=5000, seconds=0)
    assert (found.faults, found.runs) == (5000, 60_000)
    assert found.to_dict()["pilot"]["inputs"] == 12


def test_listed_faults_are_counted() -> None:
    found = forecast(_campaign(Memory("fc3.bias"), fault_model=BitFlip(), sampling=Exhaustive()), seconds=0)
    assert found.faults == 4 * 32


def test_time_grows_with_the_faults_and_falls_with_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pilot of no duration ends after the first pass; figures follow from what it saw."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    found = forecast(_campaign(Memory()), count=6400, seconds=0)
    per_fault = found.pilot.seconds / found.pilot.faults
    assert 1 <= found.pilot.faults < 64
    assert found.seconds == pytest.approx(found.pilot.set_up_seconds + 6400 * per_fault)
    shared = forecast(_campaign(Memory()), count=6400, workers=4, seconds=0)
    per_fault = shared.pilot.seconds / shared.pilot.faults
    assert shared.seconds == pytest.approx(shared.pilot.set_up_seconds + 1600 * per_fault)
    assert found.memory_bytes is not None
    assert shared.memory_bytes is not None
    assert shared.memory_bytes >= 5 * found.memory_bytes > 50_000_000


def test_a_whole_unit_is_timed_where_it_takes_no_longer() -> None:
    assert forecast(_campaign(Memory()), count=20, seconds=60).pilot.faults == 20


def test_a_precision_is_bounded_and_the_bound_holds() -> None:
    campaign = _campaign(Values())
    found = forecast(campaign, half_width=0.02, seconds=0)
    assert found.faults == found.faults_at[0.5]
    counts = [found.faults_at[p] or 0 for p in (0.001, 0.01, 0.1, 0.5)]
    assert counts == sorted(counts)
    rate = campaign.run(half_width=0.02).summary()[0]
    assert rate.n_faults <= found.faults
    near = min(p for p in found.faults_at if p >= rate.failure.estimate)
    assert rate.n_faults <= (found.faults_at[near] or 0)
    assert forecast(campaign, half_width=1e-6, seconds=0).faults_at[0.5] is None


def test_memory_faults_of_a_precision_meet_the_batches_that_the_split_says() -> None:
    campaign = _campaign(Memory(), samples=22)  # five batches of four and one of two
    found = forecast(campaign, half_width=0.05, seconds=60)
    split = found.pilot.split
    assert split is not None
    assert (split.of, split.pilot, found.pilot.inputs) == (6, 2, 22)
    assert found.pilot.faults == 33  # of 64, in parts of 1, 2, 4, 8, 16 and what is left
    assert max(split.batches) < 6
    first = 64  # the faults of the campaign's pilot meet two batches each
    batches = first * 2 + (found.faults - first) * max(split.batches)
    assert found.runs == math.ceil(batches * 22 / 6)
    per_fault = found.pilot.seconds / 33 * max(split.batches) / 2  # no guard: batches are all that costs
    assert found.seconds == pytest.approx(found.pilot.set_up_seconds + found.faults * per_fault)
    assert found.to_dict()["split"] == str(split)
    results = campaign.run(half_width=0.05)
    assert results.split is not None
    assert results.split.of == split.of
    assert results.summary()[0].n_runs <= found.runs < found.faults * 22


def test_a_uniform_design_meets_all_inputs() -> None:
    found = forecast(_campaign(Memory()), half_width=0.1, design="uniform", seconds=0)
    assert found.pilot.split is None
    assert found.runs == found.faults * 12


def test_the_model_is_left_alone() -> None:
    net = NETWORKS["residual"]
    model = net.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    campaign = Campaign(capture(model, net.batch(2)), Inputs(net.batch(4)), sites=Memory())
    forecast(campaign, count=640, threads=1, seconds=0)
    assert all(equal_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected exactly one of count and half_width"),
        ({"count": 0}, "expected count of forecast to be an integer of at least 1 or None, got 0"),
        ({"count": 1, "workers": 0}, "expected workers of forecast to be an integer of at least 1, got 0"),
        ({"count": 1, "threads": 0}, r"expected threads of forecast to be an integer of at least 1 or None, got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        forecast(_campaign(Values()), **options)  # type: ignore[arg-type]
