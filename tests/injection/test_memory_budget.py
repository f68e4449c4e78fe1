"""The memory budget: what runs side by side carry stays within it, and no outcome changes."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import polars as pl
import pytest
import torch

from hoplon import Campaign, HoplonError, Inputs, Values, capture
from hoplon.injection.arm import Arm
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.golden_values import FaultFree, SharedReplay
from hoplon.injection.memory_budget import Budget, live_bytes
from hoplon.injection.replay import ReplayStatistics
from hoplon.injection.value_faults import ValueFaultRuns
from hoplon.protections.base import Overlay
from tests.support.networks import CHANNELS, Wide

BUDGET = 800_000


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Wide().eval(), torch.randn(16, 4, 9, 9)
    return Campaign(capture(model, x[:4]), Inputs(x), sites=Values(kind="conv"), batch=8)


def outcome(campaign: Campaign, budget: Budget) -> tuple[pl.DataFrame, ReplayStatistics]:
    """The runs of 2000 faults, and what the replay counted."""
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=campaign.batch)
    runs = ValueFaultRuns(SharedReplay(Arm(reference, Overlay(), budget=budget)), campaign.draw(count=2000))
    frame, _ = runs.run(lambda count: None)
    return frame, runs.replay.statistics


def test_what_faults_carry_stays_within_the_budget(campaign: Campaign) -> None:
    free, most = outcome(campaign, Budget())
    bounded, least = outcome(campaign, Budget(BUDGET))
    assert 0 < least.carried_bytes <= BUDGET // 2 < most.carried_bytes
    assert least.passes > most.passes  # smaller waves fill fewer of the passes over whole values
    assert bounded.equals(free)
    assert dataclasses.replace(campaign, memory_budget=BUDGET).run(count=200).runs.height == 200


def test_the_budget_is_parted_among_runs_by_what_is_live_at_once(campaign: Campaign) -> None:
    program = campaign.program
    one = 4 * CHANNELS * 81
    # the sum of two maps, made while both are live
    assert live_bytes(program) == 3 * one
    assert Budget(6 * one * 50).runs(program, program.value_sites, batch=8, default=1) == 50
    assert Budget(1).runs(program, program.value_sites, batch=8, default=1) == 1
    assert Budget().runs(program, program.value_sites, batch=8, default=1) == 8
    assert Budget(6).golden == 3


def test_a_budget_of_nothing_is_refused(campaign: Campaign) -> None:
    with pytest.raises(HoplonError, match="expected memory_budget of Campaign to be .*, got 0"):
        dataclasses.replace(campaign, memory_budget=0)


def test_fault_free_values_go_with_their_owner(campaign: Campaign) -> None:
    """Without waiting for the garbage collector, which few large objects hardly ever wake."""
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=campaign.batch)
    held = FaultFree(Arm(reference, Overlay()))
    held.want([campaign.program.site_steps[site.name] for site in campaign.program.value_sites])
    value = weakref.ref(next(iter(held[0].values())))
    gc.disable()
    try:
        del held
        assert value() is None
    finally:
        gc.enable()
