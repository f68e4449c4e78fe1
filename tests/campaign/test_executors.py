"""Executors: units in other processes give what they give here; a program survives the journey bit for bit."""

from __future__ import annotations

import os
import pickle
from typing import Any

import cloudpickle
import pytest
import torch

from hoplon import TMR, Campaign, HoplonError, Inputs, Memory, Values
from hoplon.campaign import executors
from hoplon.campaign.executors import Processes, Serial
from hoplon.campaign.runner import UnitRunner
from hoplon.errors import HoplonWarning
from hoplon.formats import equal_bits
from hoplon.program.program import Program
from tests.support.networks import GRAPHS, NETWORKS, captured


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_program_travels_bit_for_bit(name: str, form: str) -> None:
    net = NETWORKS[name]
    program = captured(name, form=form)  # type: ignore[arg-type]
    twin: Program = pickle.loads(cloudpickle.dumps(program))
    assert type(twin) is type(program)
    assert twin.fingerprint() == program.fingerprint()
    assert twin.value_sites == program.value_sites
    assert twin.memory_sites == program.memory_sites
    assert [s.name for s in Values().select(twin)] == [s.name for s in Values().select(program)]
    assert [s.numel for s in Memory().select(twin)] == [s.numel for s in Memory().select(program)]
    x = net.batch(1, seed=4)
    assert equal_bits(twin(x), program(x))


def test_processes_give_every_unit_once_with_their_threads() -> None:
    def work(unit: int) -> tuple[int, int]:
        return unit * unit, torch.get_num_threads()

    with Processes(work, workers=2, threads=1) as pool:
        assert dict(pool.run({unit: unit for unit in range(5)})) == {unit: (unit * unit, 1) for unit in range(5)}
        assert dict(pool.run({7: 7})) == {7: (49, 1)}
        assert dict(pool.run({})) == {}
    with Serial(lambda unit: unit + 1) as serial:
        assert list(serial.run({3: 3, 1: 1})) == [(3, 4), (1, 2)]


class Groups:
    """Work that says which units came together; unit 5 fails."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, ...]] = []

    def __call__(self, unit: int) -> int:
        return self.together((unit,))[0]

    def together(self, units: tuple[int, ...]) -> list[int]:
        self.groups.append(units)
        if 5 in units:
            raise HoplonError("expected another unit than 5")
        return [10 * unit for unit in units]


def test_units_here_go_together_and_those_before_an_error_are_kept() -> None:
    work = Groups()
    with Serial(work) as serial:
        results = serial.run({unit: unit for unit in range(7)})
        assert [next(results) for _ in range(5)] == [(unit, 10 * unit) for unit in range(5)]
        with pytest.raises(HoplonError, match="another unit than 5"):
            next(results)
    assert work.groups == [(0,), (1, 2, 3, 4, 5, 6), (1,), (2,), (3,), (4,), (5,)]


@pytest.mark.parametrize(
    ("name", "plan"), [("residual", {"count": 3500}), ("in-place", {"half_width": 0.002})], ids=["uniform", "two-phase"]
)
def test_units_that_run_together_give_what_they_give_alone(
    name: str, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, asked = NETWORKS[name], []
    campaign = Campaign(captured(name), Inputs(net.batch(12, seed=4)), sites=Values())
    run_together = UnitRunner.run_together
    monkeypatch.setattr(
        UnitRunner,
        "run_together",
        lambda self, items, **more: (asked.append(len(items)), run_together(self, items, **more))[1],
    )
    together = campaign.run(**plan, seed=1)
    monkeypatch.setattr(executors, "_MOST_TOGETHER", 1)
    alone = campaign.run(**plan, seed=1)
    assert max(asked) > 1
    assert together.faults.frame.equals(alone.faults.frame)
    assert together.runs.equals(alone.runs)
    assert together.faults.frame.schema == alone.faults.frame.schema


def test_an_error_in_a_process_comes_back_as_it_is() -> None:
    def work(unit: int) -> int:
        raise HoplonError(f"expected another unit, got {unit}")

    with Processes(work, workers=1, threads=1) as pool, pytest.raises(HoplonError, match="another unit, got 3"):
        list(pool.run({3: 3}))
    with pytest.raises(HoplonError, match="expected at least 1 worker and 1 thread, got 0 and 1"):
        Processes(work, workers=0, threads=1)


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("sites", [Values(), Memory()])
def test_workers_change_no_record(sites: Values | Memory, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are asked for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    net = NETWORKS["mlp"]
    program = captured("mlp", form=form)  # type: ignore[arg-type]
    campaign = Campaign(program, Inputs(net.batch(6)), sites=sites, protections=[TMR()])
    count = 2100 if isinstance(sites, Values) else 130
    count = count if form == "export" else 130
    seen: list[int] = []
    alone = campaign.run(count=count, seed=0, threads=1)
    with pytest.warns(HoplonWarning, match="2 of 64 workers run, as there are 2 cores"):
        shared = campaign.run(count=count, seed=0, workers=64, threads=1, progress=lambda done, _: seen.append(done))
    assert shared.runs.equals(alone.runs)
    assert shared.faults == alone.faults
    assert seen[-1] == count
    assert shared.manifest == alone.manifest


def test_threads_are_put_back() -> None:
    net = NETWORKS["mlp"]
    campaign = Campaign(captured("mlp"), Inputs(net.batch(6)), sites=Values())
    before = torch.get_num_threads()
    results = campaign.run(count=10, threads=before + 1)
    assert results.manifest["threads"] == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(
        HoplonError, match=r"expected threads of Campaign\.run to be an integer of at least 1 or None, got 0"
    ):
        campaign.run(count=10, threads=0)
