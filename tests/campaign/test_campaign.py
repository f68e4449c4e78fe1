"""Campaigns: outcomes against the naive injector, determinism, restoration, run directories, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
import torch
from torch import nn

from hoplon import BitFlip, Campaign, Deviation, HoplonError, Inputs, Memory, TopK, Values, capture, load_results
from hoplon.campaign.results import Results
from hoplon.errors import DataError, SiteError, StoreError
from hoplon.formats import equal_bits
from hoplon.program.program import Program
from tests.reference.forward import faulty_memory_outputs, faulty_outputs
from tests.support.networks import GRAPHS, NETWORKS, Network


def _setting(name: str, samples: int = 10) -> tuple[Network, nn.Module, Program, Inputs]:
    """A net and data that it gets right except for every fourth input."""
    net = NETWORKS[name]
    model, x = net.model(), net.batch(samples)
    with torch.inference_mode():
        golden = model(x.clone()).argmax(1)
    y = torch.where(torch.arange(samples) % 4 == 3, (golden + 1) % 3, golden)
    return net, model, capture(model, net.batch(3)), Inputs(x, y, name="random")


def _outcome(golden: torch.Tensor, faulty: torch.Tensor) -> str:
    """The definition of DESIGN, one run at a time, in plain Python."""
    numbers, wanted = faulty.tolist(), golden.tolist()
    if any(math.isnan(v) or math.isinf(v) for v in numbers):
        return "nonfinite"
    if numbers.index(max(numbers)) != wanted.index(max(wanted)):
        return "sdc"
    return "identical" if equal_bits(golden, faulty) else "benign"


@pytest.mark.parametrize("name", GRAPHS)
def test_value_outcomes_equal_the_naive_injector(name: str) -> None:
    _, model, program, data = _setting(name)
    batch = 4
    results = Campaign(program, data, sites=Values(), fault_model=BitFlip(), batch=batch).run(count=60, seed=3)
    eligible = [i for i in range(10) if i % 4 != 3]
    joined = results.faults.frame.join(results.runs, on=["fault", "input"]).with_columns(results.faults.bits)
    assert joined.height == 60
    assert set(joined["input"].to_list()) <= set(eligible)
    for fault in joined.iter_rows(named=True):
        position = eligible.index(fault["input"])
        rows = eligible[position // batch * batch :][:batch]
        rows += [rows[0]] * (batch - len(rows))
        x = data.tensors[0][rows]
        with torch.inference_mode():
            golden = model(x.clone())[position % batch]
        hit = [(fault["element"], [fault["bit"]])]
        faulty = faulty_outputs(model, x, fault["site"], position % batch, hit)[position % batch]
        assert fault["top-1"] == _outcome(golden, faulty), fault
        assert fault["before"] ^ fault["after"] == fault["flip"] == 1 << fault["bit"]


@pytest.mark.parametrize("name", ["residual", "tied", "in-place"])
def test_memory_outcomes_equal_the_naive_injector(name: str) -> None:
    _, model, program, data = _setting(name)
    batch, eligible = 4, [i for i in range(10) if i % 4 != 3]
    results = Campaign(program, data, sites=Memory(), fault_model=BitFlip(bits=(30, 29, 22, 31)), batch=batch).run(
        count=40, seed=1
    )
    assert results.runs.height == 40 * len(eligible)
    table = results.faults.frame.with_columns(results.faults.bits)
    for fault in table.iter_rows(named=True):
        found = results.runs.filter(pl.col("fault") == fault["fault"]).sort("input")
        assert found["input"].to_list() == eligible
        wanted = []
        for start in range(0, len(eligible), batch):
            rows = eligible[start : start + batch]
            x = data.tensors[0][rows + [rows[0]] * (batch - len(rows))]
            with torch.inference_mode():
                golden = model(x.clone())
            faulty = faulty_memory_outputs(model, x, fault["site"], fault["element"], [fault["bit"]])
            wanted += [_outcome(golden[r], faulty[r]) for r in range(len(rows))]
        assert found["top-1"].to_list() == wanted, fault


@pytest.mark.parametrize("sites", [Values(kind="linear"), Memory()])
def test_one_seed_is_one_table_of_records(sites: Values | Memory) -> None:
    _, _, program, data = _setting("mlp")
    campaign = Campaign(program, data, sites=sites)
    first, again, other = (campaign.run(count=200, seed=seed) for seed in (7, 7, 8))
    assert first.runs.equals(again.runs)
    assert first.faults == again.faults
    assert first.faults != other.faults


def test_a_longer_campaign_begins_with_the_shorter_one() -> None:
    _, _, program, data = _setting("mlp")
    campaign = Campaign(program, data, sites=Values())
    short, whole, long = (campaign.run(count=count, seed=0) for count in (300, 1024, 1500))
    assert long.runs.height == 1500
    assert long.runs["fault"].to_list() == list(range(1500))
    assert long.runs.head(1024).equals(whole.runs)
    assert long.runs.head(300).equals(short.runs)


@pytest.mark.parametrize("sites", [Values(), Memory()])
@pytest.mark.parametrize("stop", [None, KeyboardInterrupt, RuntimeError])
def test_the_model_is_bit_identical_after_a_campaign(sites: Values | Memory, stop: type[BaseException] | None) -> None:
    _, model, program, data = _setting("residual")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def progress(done: int, total: int | None) -> None:
        if stop is not None and done > 20:
            raise stop

    campaign = Campaign(program, data, sites=sites, fault_model=BitFlip(bits=(30,)))
    if stop is None:
        assert campaign.run(count=70, seed=0, progress=progress).runs["reached"].any()
    else:
        with pytest.raises(stop):
            campaign.run(count=70, seed=0, progress=progress)
    assert all(equal_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("design", ["stratified", "uniform"])
def test_half_width_is_reached_and_the_level_pays_for_looking(design: Literal["stratified", "uniform"]) -> None:
    _, _, program, data = _setting("mlp")
    results = Campaign(program, data, sites=Values()).run(half_width=0.02, seed=0, design=design)
    rate = results.summary()[0]
    assert rate.failure.half_width <= 0.02
    assert results.level > results.confidence == 0.95
    assert results.level < 0.97  # one look was enough
    assert (results.design is None) == (design == "uniform")


def test_progress_counts_up_to_the_total() -> None:
    _, _, program, data = _setting("mlp")
    for sites in (Values(), Memory()):
        seen: list[tuple[int, int | None]] = []
        Campaign(program, data, sites=sites, batch=4).run(
            count=150, seed=0, progress=lambda d, t, seen=seen: seen.append((d, t))
        )
        assert seen[-1] == (150, 150)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_run_directory_gives_the_same_results_again(tmp_path: Path) -> None:
    _, _, program, data = _setting("mlp")
    for sites in (Values(), Memory()):
        folder = tmp_path / sites.target
        results = Campaign(program, data, sites=sites).run(count=80, seed=0, store=folder)
        held = Campaign(program, data, sites=sites).run(count=80, seed=0)
        again = load_results(folder)
        assert again.runs.equals(held.runs)
        assert again.faults == held.faults == results.faults
        assert [rate.as_row() for rate in again.summary()] == [rate.as_row() for rate in held.summary()]
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["seed"] == 0
        assert manifest["data"]["digest"] == data.digest()
        assert manifest["program"]["fingerprint"] == program.fingerprint()
        assert {"torch", "hoplon"} <= manifest["versions"].keys()
        assert not list(folder.rglob(".*"))


def test_a_used_folder_is_refused_and_another_campaign_is_shown(tmp_path: Path) -> None:
    _, _, program, data = _setting("mlp")
    campaign = Campaign(program, data, sites=Values())
    campaign.run(count=10, seed=0, store=tmp_path)
    with pytest.raises(StoreError, match="expected a new run directory, got .* with a run in it"):
        campaign.run(count=10, seed=0, store=tmp_path)
    with pytest.raises(StoreError, match="seed: 0 there, 1 here"):
        campaign.run(count=10, seed=1, store=tmp_path, resume=True)
    assert campaign.run(count=10, seed=0, store=tmp_path, resume=True).runs.height == 10


def test_an_unwritable_folder_is_named_before_anything_runs(tmp_path: Path) -> None:
    _, _, program, data = _setting("mlp")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(StoreError, match="expected to write .*manifest.json, got Not a directory"):
        Campaign(program, data, sites=Values()).run(count=10, store=blocked / "run")


def test_a_refused_campaign_leaves_no_run_directory(tmp_path: Path) -> None:
    _, _, program, data = _setting("mlp")
    campaign = Campaign(program, data, sites=Values(), fault_model=BitFlip(bits=(40,)))
    with pytest.raises(HoplonError, match=r"expected bits in \[0, 32\)"):
        campaign.run(count=5, store=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rates_by_layer_and_bit_add_up() -> None:
    _, _, program, data = _setting("residual")
    for sites in (Values(), Memory()):
        results: Results = Campaign(program, data, sites=sites).run(count=300, seed=0)
        total = results.summary()[0]
        for key in ("layer", "bit", "input"):
            table = results.by(key)
            assert table["n_runs"].sum() == total.n_runs
            failures = (table["failure"] * table["n_runs"]).sum()
            assert failures == pytest.approx(total.counts["sdc"] + total.counts["nonfinite"])
            assert ((table["failure_low"] <= table["failure"]) & (table["failure"] <= table["failure_high"])).all()
    with pytest.raises(HoplonError, match="expected keys out of layer, kind, bit, .* got 'depth'"):
        results.by("depth")


def test_several_thresholds_give_one_outcome_each() -> None:
    _, _, program, data = _setting("mlp")
    results = Campaign(program, Inputs(data.x), sites=Values(), criterion=Deviation((0.1, 10.0), unit="V")).run(
        count=400, seed=0
    )
    low, high = results.summary()
    assert (low.criterion, high.criterion) == ("deviation>0.1V", "deviation>10V")
    assert low.counts["sdc"] >= high.counts["sdc"]
    assert low.counts["nonfinite"] == high.counts["nonfinite"]
    assert sum(low.counts.values()) == sum(high.counts.values()) == 400


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": (torch.zeros(4, 7), torch.zeros(4).long())}, DataError, r"expected input 0 .* got \(4, 7\)"),
        ({"data": (torch.full((4, 6), math.nan), None)}, DataError, "NaN or infinity in sample 0"),
        ({"data": (torch.zeros(0, 6), None)}, DataError, "expected at least one sample, got 0"),
        (
            {"data": (torch.zeros(4, 6), torch.tensor([0, 1, 9, 2]))},
            DataError,
            r"labels in \[0, 4\).* got 9 for input 2",
        ),
        ({"criterion": TopK(reference="label"), "data": torch.zeros(4, 6)}, DataError, "labels"),
        ({"sites": Values("fc9:*")}, SiteError, "no value site matches 'fc9:.*near names"),
        (
            {"placement": "middle"},
            HoplonError,
            "expected placement of Campaign to be 'before' or 'after', got 'middle'",
        ),
        ({"batch": 0}, HoplonError, "expected batch of Campaign to be an integer of at least 1 or None, got 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    _, _, program, data = _setting("mlp")
    options: dict[str, object] = {"data": data, "sites": Values(), **change}
    with pytest.raises(error, match=message):
        Campaign(program, options.pop("data"), **options).run(count=10)  # type: ignore[arg-type]


@pytest.mark.parametrize("goal", [{}, {"count": 10, "half_width": 0.1}, {"count": 0}, {"half_width": 0.0}])
def test_a_goal_is_one_of_two(goal: dict[str, float]) -> None:
    _, _, program, data = _setting("mlp")
    with pytest.raises(HoplonError, match="expected exactly one of|expected count of|expected half_width of"):
        Campaign(program, data, sites=Values()).run(**goal)  # type: ignore[arg-type]
