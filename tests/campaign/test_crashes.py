"""Runs that crash: counted beside the other outcomes, whatever ends them; an error of the tool is never one of them."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.campaign.executors import Processes
from hoplon.campaign.store import RunDirectory
from hoplon.cli.tables import document, tables_of
from hoplon.errors import HoplonError
from hoplon.injection import time_limit
from hoplon.injection.replay.eager import EagerReplay
from hoplon.report.text import only_crashes
from tests.support import fatal
from tests.support.early_runs import as_early
from tests.support.fatal import End


class Routed(nn.Module):
    """Rows of a table, chosen by a gate, as a mixture of experts has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(8, 4), nn.Linear(6, 3)
        self.table = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight, index = self.gate(x).softmax(-1).topk(2, -1)
        return self.head((weight.unsqueeze(-1) * self.table[index]).sum(1))


@pytest.fixture(scope="module")
def routed() -> tuple[Routed, hp.Inputs, hp.Campaign]:
    """The network, its inputs, and a campaign that strikes its indices."""
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(16, 8)
    data = hp.Inputs(x)
    return model, data, hp.Campaign(hp.capture(model, x), data, sites=hp.Values(dtype=torch.int64))


def _fatal(end: End, target: str) -> hp.Campaign:
    """Faults at a box of `fatal`, either bit of which makes exponentials of some inputs infinite."""
    sites = {"values": hp.Values("box:linear"), "memory": hp.Memory("box.*")}[target]
    return hp.Campaign(fatal.program(end), fatal.data(), sites=sites, fault_model=hp.BitFlip(bits=(29, 30)))


def _same_but_cause(results: hp.Results, other: hp.Results, cause: str) -> bool:
    """Equal records, whose crashes have this cause; there are some, and other runs."""
    assert results.runs.drop("cause").equals(other.runs.drop("cause"))
    crashed = results.runs.filter(pl.col("top-1") == "crash")
    assert 0 < crashed.height < results.runs.height
    return set(crashed["cause"]) == {cause} and results.faults == other.faults and results.digest() == other.digest()


def test_flipped_indices_crash_where_they_leave_the_table(routed: tuple[Routed, hp.Inputs, hp.Campaign]) -> None:
    model, data, campaign = routed
    results = campaign.run(count=300, seed=0)
    with torch.no_grad():
        index = model.gate(data.x).softmax(-1).topk(2, -1).indices
    joined = results.faults.frame.with_columns(results.faults.bits).join(results.runs, on=["fault", "input"])
    for fault in joined.iter_rows(named=True):
        bit = 1 << fault["bit"] if fault["bit"] < 63 else -(1 << 63)
        crashes = not -4 <= int(index[fault["input"], fault["element"]]) ^ bit < 4
        assert (fault["top-1"] == "crash") == crashes == (fault["cause"] == "exception")
    rate = results.summary()[0]
    assert rate.counts["crash"] == rate.causes["exception"] == 292
    assert sum(rate.counts.values()) == rate.n_runs == 300
    assert rate.crash.estimate == pytest.approx(292 / 300)
    assert rate.crash.low < 292 / 300 < rate.crash.high


def test_crashes_stand_wherever_a_rate_is_printed(routed: tuple[Routed, hp.Inputs, hp.Campaign]) -> None:
    _, data, campaign = routed
    results = campaign.run(count=300, seed=0)
    shown = "97.33 % [94.83, 98.64]"
    assert f"crash {shown} (exception 292)" in str(results)
    row = results.by("layer").row(0, named=True)
    assert (round(row["crash"], 4), round(row["crash_low"], 4), round(row["crash_high"], 4)) == (0.9733, 0.9483, 0.9864)
    found = document(results)
    assert found["summary"][0]["crash"] == row["crash"]
    assert found["summary"][0]["causes"] == {"exception": 292, "hang": 0, "death": 0}
    assert all(shown in str(table) for table in tables_of(found)[:2])
    compared = hp.compare(campaign.program, data, arms={"none": []}, faults=results.faults, latency=False)
    assert shown in str(compared)
    assert compared.to_dict()["arms"][0]["crash"] == row["crash"]


def test_a_half_width_of_failures_is_reached_beside_crashes(routed: tuple[Routed, hp.Inputs, hp.Campaign]) -> None:
    results = routed[2].run(half_width=0.03, seed=0)
    rate = results.summary()[0]
    assert rate.failure.half_width <= 0.03
    assert rate.crash.low < 0.97 < rate.crash.high


def test_a_layer_at_which_every_run_crashes_is_said_loudly(routed: tuple[Routed, hp.Inputs, hp.Campaign]) -> None:
    _, data, campaign = routed
    struck = dataclasses.replace(campaign, fault_model=hp.BitFlip(bits=(40, 41)))
    results = struck.run(count=20, seed=0)
    line = "ALL 20 RUNS CRASHED that struck :topk#1"
    compared = hp.compare(campaign.program, data, arms={"none": []}, faults=results.faults, latency=False)
    for text in (str(results), str(tables_of(document(results))[1]), str(compared)):
        assert line in " ".join(text.split())
    assert only_crashes([{"layer": "fc", "crash": 0.9, "n_runs": 20}, {"layer": "conv", "n_runs": 20}]) is None


@pytest.mark.parametrize("target", ["values", "memory"])
def test_an_error_without_any_fault_is_no_outcome(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither where a campaign begins, nor where the first run raises."""

    def fails(*_: object) -> None:
        raise KeyError("weight_v")

    campaign = _fatal("exception", target)
    faults = campaign.run(count=5, seed=0).faults
    monkeypatch.setattr(EagerReplay, f"strike_{target}", fails)
    refused = pytest.raises(
        HoplonError, match="path of faults through box.* no word is changed, got KeyError: 'weight_v'"
    )
    with refused:
        campaign.run(count=5, seed=0, store=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with refused:
        hp.compare(campaign.program, campaign.data, arms={"none": []}, faults=faults, latency=False)


@pytest.mark.parametrize("target", ["values", "memory"])
def test_a_pass_that_hangs_is_ended(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = {"values": 1, "memory": 2}[target]
    monkeypatch.setattr(time_limit, "LEAST_SECONDS", 0.05)
    raised = _fatal("exception", target).run(count=6, seed=seed)
    alarm = signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)
    assert _same_but_cause(_fatal("hang", target).run(count=6, seed=seed), raised, "hang")
    left, handler = signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM)
    assert (left > 0, handler) == (alarm[0] > 0, alarm[1])  # the caller's own goes on


def test_workers_find_the_faults_that_end_them() -> None:
    raised = _fatal("exception", "values").run(count=6, seed=1, threads=1)
    assert _same_but_cause(_fatal("death", "values").run(count=6, seed=1, threads=1, workers=2), raised, "death")


def test_a_resumed_run_finds_the_faults_that_ended_it(tmp_path: Path) -> None:
    """Of memory faults, the inputs at which they end it."""
    code = (
        "from tests.campaign.test_crashes import _fatal; "
        f"_fatal('death', 'memory').run(count=2, seed=2, threads=1, store={str(tmp_path)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert RunDirectory(tmp_path).ended_a_process
    raised = _fatal("exception", "memory").run(count=2, seed=2, threads=1)
    results = _fatal("death", "memory").run(count=2, seed=2, threads=1, store=tmp_path, resume=True)
    assert _same_but_cause(results, raised, "death")
    assert _same_but_cause(hp.load_results(tmp_path), raised, "death")


@pytest.mark.slow
def test_workers_find_the_operators_that_do_not_come_back() -> None:
    raised = _fatal("exception", "values").run(count=6, seed=1, threads=1)
    assert _same_but_cause(_fatal("stuck", "values").run(count=6, seed=1, threads=1, workers=2), raised, "hang")


def test_a_process_that_ends_without_any_fault_is_refused() -> None:
    """Halves go down to a task that cannot be halved; what is left of it without faults ends the process too."""

    class Deadly:
        def __call__(self, task: list[int]) -> None:
            os._exit(3)

        def halves(self, task: list[int]) -> list[list[int]]:
            return [task[:1], task[1:]] if len(task) > 1 else []

        def unchanged(self, task: list[int]) -> list[int]:
            return []

    with (
        Processes(Deadly(), workers=1, threads=1) as pool,
        pytest.raises(HoplonError, match="survive a run without any fault, got its death"),
    ):
        list(pool.run({0: [1, 2]}))


class _Homeless:
    """Cannot be loaded elsewhere, as what a script defines."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("no_such_module",)


def test_workers_say_at_once_that_they_cannot_load_the_model(tmp_path: Path) -> None:
    with pytest.raises(HoplonError, match="can load the model .* got ModuleNotFoundError.* or use workers=1"):
        Processes(_Homeless(), workers=1, threads=1)


def test_runs_stored_before_are_read(routed: tuple[Routed, hp.Inputs, hp.Campaign], tmp_path: Path) -> None:
    """Where a crash was called exception and had no cause; beside shards of today, and when such a run is resumed."""
    campaign = routed[2]
    results = campaign.run(count=1100, seed=0)
    campaign.run(count=1100, seed=0, store=tmp_path)
    old = pl.Enum(["identical", "benign", "sdc", "nonfinite", "exception", "uncorrectable"])
    as_early(tmp_path)
    shard = tmp_path / "runs" / "unit-00000000.parquet"
    runs = pl.read_parquet(shard).drop("cause")
    runs.with_columns(pl.col("top-1").cast(pl.String).replace("crash", "exception").cast(old)).write_parquet(shard)
    for again in (hp.load_results(tmp_path), campaign.run(count=1100, seed=0, store=tmp_path, resume=True)):
        assert again.runs.equals(results.runs)
        assert again.digest() == results.digest()
        assert again.summary() == results.summary()
