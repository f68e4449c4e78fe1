"""Faults of a run in another model: the same records in the same model, paired differences in another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from hoplon import (
    TMR,
    BitFlip,
    Campaign,
    Deviation,
    HoplonError,
    Inputs,
    Memory,
    Program,
    TopK,
    Values,
    capture,
    load_results,
    rerun,
)
from hoplon.errors import DataError, SiteError, StoreError
from hoplon.stats.intervals import mcnemar, paired_clustered, paired_difference
from tests.support.networks import NETWORKS


def _program(seed: int = 0) -> Program:
    net = NETWORKS["mlp"]
    return capture(net.model(seed), net.batch(2), name=f"mlp-{seed}")


def _data(*, labels: bool = False) -> Inputs:
    """With labels: the first network gets every third input wrong, the second others."""
    x = NETWORKS["mlp"].batch(9)
    return Inputs(x, torch.arange(9) % 3 if labels else None, name="random")


def _run(folder: Path, sites: Values | Memory, **options: Any) -> Path:
    data = options.pop("data", _data())
    Campaign(_program(), data, sites=sites, fault_model=BitFlip(bits=(27, 30)), batch=4, **options).run(
        count=150, seed=2, store=folder
    )
    return folder


@pytest.fixture(params=[Values(), Memory()], ids=["values", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return _run(tmp_path / "run", request.param)


def test_the_same_model_gives_the_same_records(run: Path) -> None:
    again = rerun(run, _program(), _data())
    assert again.results.digest() == load_results(run).digest()
    assert (again.left_out, again.same_inputs) == (0, True)
    pair = again.paired["top-1"]
    assert pair.only_first == pair.only_second == pair.difference.estimate == 0
    assert pair.n_faults == 150
    assert pair.difference.low < 0 < pair.difference.high
    assert [rate.as_row() for rate in again.rates["top-1"]] == [again.original.summary()[0].as_row()] * 2


def test_another_model_is_compared_fault_by_fault(run: Path) -> None:
    other = rerun(run, _program(1), _data())
    stored = load_results(run)
    assert other.results.faults.plan() == stored.faults.plan()
    joined = stored.runs.join(other.results.runs, on=["fault", "input"], suffix="_other")
    assert joined.height == stored.runs.height
    before, after = (joined[c].cast(pl.String).is_in(["sdc", "nonfinite"]) for c in ("top-1", "top-1_other"))
    only_other, only_original = int((after & ~before).sum()), int((before & ~after).sum())
    pair = other.paired["top-1"]
    assert only_other > 0
    assert only_original > 0
    assert (pair.only_first, pair.only_second) == (only_other, only_original)
    if stored.target == "values":
        assert pair.difference == paired_difference(only_other, only_original, 150)
        assert pair.p_value == mcnemar(only_other, only_original)
    else:
        shares = (after.cast(pl.Int64) - before.cast(pl.Int64)).to_numpy().reshape(150, -1).mean(1)
        assert pair.difference == paired_clustered(shares)
        assert pair.p_value is None
    found = other.to_dict()["criteria"]["top-1"]
    assert found["difference"] == pair.difference.estimate
    assert found["other"]["failure"] - found["original"]["failure"] == pytest.approx(found["difference"])
    assert "in the other (mlp-1), on the same 150 faults" in str(other)


def test_inputs_that_the_other_model_gets_wrong_are_left_out_and_counted(tmp_path: Path) -> None:
    data = _data(labels=True)
    for sites in (Values(), Memory()):
        run = _run(tmp_path / sites.target, sites, data=data)
        right = [
            {i for i, wrong in enumerate(program(data.x).argmax(1) != data.y) if not wrong}
            for program in (_program(), _program(1))
        ]
        assert right[0] - right[1], right
        other = rerun(run, _program(1), data)
        stored = load_results(run).runs
        common = stored.filter(pl.col("input").is_in(list(right[0] & right[1])))
        assert other.paired["top-1"].n_runs == common.height
        assert other.left_out == stored.height - common.height > 0


def test_a_guard_in_the_other_model(tmp_path: Path) -> None:
    run = _run(tmp_path, Memory())
    guarded = rerun(run, _program(), _data(), protections=[TMR()])
    assert guarded.results.runs["corrected"].all()
    assert guarded.rates["top-1"][1].failure.estimate == 0
    assert guarded.paired["top-1"].difference.estimate == -guarded.rates["top-1"][0].failure.estimate < 0


def test_a_stored_replay_is_a_run_directory_and_goes_on(run: Path, tmp_path: Path) -> None:
    whole = rerun(run, _program(1), _data())
    seen: list[tuple[int, int | None]] = []

    def stop(done: int, total: int | None) -> None:
        seen.append((done, total))
        if done > 100:
            raise KeyboardInterrupt

    out = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        rerun(run, _program(1), _data(), store=out, progress=stop)
    with pytest.raises(StoreError, match="expected a new run directory"):
        rerun(run, _program(1), _data(), store=out)
    with pytest.raises(StoreError, match="program.name: mlp-1 there, mlp-2 here"):
        rerun(run, _program(2), _data(), store=out, resume=True)
    again = rerun(run, _program(1), _data(), store=out, resume=True, progress=lambda d, t: seen.append((d, t)))
    assert seen[-1] == (150, 150)
    assert again.results.digest() == whole.results.digest() == load_results(out).digest()
    assert again.paired == whole.paired


class Shorter(nn.Module):
    """`Mlp` with a narrower second layer and without the third."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def test_all_sites_that_do_not_fit_are_listed(run: Path) -> None:
    program = capture(Shorter().eval(), torch.zeros(2, 6), name="shorter")
    with pytest.raises(SiteError) as caught:
        rerun(run, program, _data())
    message = str(caught.value)
    assert f"expected the sites struck in {run} in shorter, got " in message
    if load_results(run).target == "values":
        assert "got 3 of 5 that it lacks" in message
        assert ":tanh" in message
        assert "fc2:linear (an output of 3 elements, struck at 7)" in message
        assert "fc3:linear" in message
    else:
        assert "got 4 of 6 that it lacks" in message
        assert "fc2.weight (a storage of 24 elements, struck at " in message
        assert "fc3.weight, fc3.bias" in message or "fc3.bias, fc3.weight" in message
    assert "fc1" not in message


def test_another_dtype_does_not_fit(tmp_path: Path) -> None:
    run = _run(tmp_path, Memory())
    wide = capture(copy.deepcopy(NETWORKS["mlp"].model()).double(), torch.zeros(2, 6).double())
    with pytest.raises(SiteError, match=r"fc1.weight \(float64, struck as float32\)"):
        rerun(run, wide, _data())


def test_other_data_is_refused_for_value_faults_only(run: Path) -> None:
    other = Inputs(NETWORKS["mlp"].batch(9, seed=7), name="other")
    if load_results(run).target == "values":
        with pytest.raises(DataError, match="expected the data of the run, 'random' with 9 inputs, got 'other' with 9"):
            rerun(run, _program(1), other)
    else:
        assert not rerun(run, _program(1), other).same_inputs


def test_the_criterion_is_that_of_the_run(tmp_path: Path) -> None:
    run = _run(tmp_path / "k", Memory(), criterion=[TopK(1), TopK(2)])
    assert list(rerun(run, _program(1), _data()).paired) == ["top-1", "top-2"]
    with pytest.raises(HoplonError, match=r"expected the criterion of the run, Several.* got TopK\(.*k=3"):
        rerun(run, _program(1), _data(), criterion=TopK(3))
    run = _run(tmp_path / "d", Memory(), criterion=Deviation((0.5, 2.0), scale=2.0))
    with pytest.raises(HoplonError, match=r"expected the criterion of the run, Deviation.* got none; give it"):
        rerun(run, _program(1), _data())
    again = rerun(run, _program(), _data(), criterion=Deviation((0.5, 2.0), scale=2.0))
    assert again.paired["deviation>0.5"].only_first == 0


def test_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a run directory with manifest.json at"):
        rerun(tmp_path, _program(), _data())


@pytest.mark.parametrize("sites", [Values(), Memory()])
def test_faults_that_do_not_count_alike_stand_for_as_many_in_the_other_model(
    sites: Values | Memory, tmp_path: Path
) -> None:
    plan = Campaign(_program(), _data(), sites=sites, fault_model=BitFlip(), batch=4)
    first = plan.run(half_width=0.03, seed=2, store=tmp_path / "run")
    again = rerun(tmp_path / "run", _program(), _data(), store=tmp_path / "again")
    for before, after in again.rates.values():
        assert before.failure == after.failure
    kept = load_results(tmp_path / "again")
    assert kept.summary()[0].failure == again.results.summary()[0].failure
    if first.split is None or not first.split.partial:  # otherwise the faults meet all inputs now
        assert kept.summary()[0].failure == first.summary()[0].failure
