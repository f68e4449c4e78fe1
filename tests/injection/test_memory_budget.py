"""The memory budget: what runs side by side carry stays within it, and no outcome changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hoplon import Campaign, HoplonError, Inputs, Values, capture
from hoplon.injection.memory_budget import Budget, live_bytes
from hoplon.injection.replay.sweep import Divergent, Sweep
from hoplon.injection.replay.whole_maps import WholeMapPasses
from tests.injection.replay.test_channels import CHANNELS, Residual

BUDGET = 800_000


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Residual().eval(), torch.randn(16, 4, 9, 9)
    return Campaign(capture(model, x[:4]), Inputs(x), sites=Values(kind="conv"), batch=8)


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of all pieces in a sweep after each step, and of those that passes of whole values hand on."""
    found: list[int] = []
    advance, in_rows = Sweep._advance, WholeMapPasses._in_rows

    def size(left: Divergent) -> int:
        return sum(piece.data.nbytes for pieces in left.pieces.values() for piece in pieces)

    def advanced(self: Sweep, index: int, live: list[int]) -> None:
        advance(self, index, live)
        found.append(size(self.left) + sum(piece.data.nbytes for part in self.values.values() for piece in part))

    def handed(self: WholeMapPasses, later: Divergent, *rest: object) -> None:
        found.append(size(later))
        in_rows(self, later, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Sweep, "_advance", advanced)
    monkeypatch.setattr(WholeMapPasses, "_in_rows", handed)
    return found


def test_what_faults_carry_stays_within_the_budget(campaign: Campaign, carried: list[int]) -> None:
    count = 2000
    free = campaign.run(count=count)
    most = max(carried)
    assert most > BUDGET // 2
    carried.clear()
    bounded = dataclasses.replace(campaign, memory_budget=BUDGET).run(count=count)
    assert 0 < max(carried) <= BUDGET // 2 < most
    assert bounded.digest() == free.digest()


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
    with pytest.raises(HoplonError, match="expected a memory budget of at least 1 byte, got 0"):
        dataclasses.replace(campaign, memory_budget=0)
