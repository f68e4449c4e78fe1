from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError, SiteError
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.ranges import Bound, Ranges, profile_ranges


class Net(nn.Module):
    """relu, elu and tanh of the input, so that ranges are known in closed form."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).sum(1) + F.elu(2 * x).sum(1) + torch.tanh(x).sum(1) + (x + 1).sum(1)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(F.relu(x) - 1.0)


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Net().eval(), torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))


def data(count: int = 70) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1))


def test_bounds_are_the_exact_extremes_over_all_batches(program: Program) -> None:
    x = data()
    ranges = profile_ranges(program, x, batch=16)
    assert list(ranges.bounds) == [":relu", ":elu", ":tanh"]
    assert ranges[":relu"] == Bound(0.0, x.max().item())
    assert ranges[":elu"] == Bound(F.elu(2 * x).min().item(), F.elu(2 * x).max().item())
    assert ranges[":tanh"].high == pytest.approx(torch.tanh(x).max().item(), rel=1e-6)


def test_the_last_sample_of_a_short_batch_counts(program: Program) -> None:
    x = data(17)
    x[16, 31] = 50.0
    assert profile_ranges(program, x, batch=16)[":relu"].high == 50.0


def test_chosen_sites_and_progress(program: Program) -> None:
    seen: list[tuple[int, int]] = []
    ranges = profile_ranges(
        program, data(40), sites=Values(kind="add"), batch=16, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(16, 40), (32, 40), (40, 40)]
    assert all(":add" in name for name in ranges.bounds)
    assert len(ranges) > 1


def test_provenance(program: Program) -> None:
    ranges = profile_ranges(program, Inputs(data(40), name="train"))
    assert (ranges.program, ranges.data, ranges.n_samples) == ("Net", "train", 40)
    assert ranges.fingerprint == program.fingerprint()
    assert ranges.versions["torch"] == torch.__version__


def test_a_file_gives_the_same_ranges_back(program: Program, tmp_path: Path) -> None:
    ranges = profile_ranges(program, data())
    ranges.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == ranges
    assert Ranges.load(tmp_path) == ranges, "a folder that holds them, as hoplon profile makes"
    odd = Ranges({"a": Bound(-5e-324, 0.1), "b": Bound(1 / 3, 1.7976931348623157e308)})
    odd.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == odd
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a file of ranges, got .*missing\.json"):
        Ranges.load(tmp_path / "missing.json")
    for content in ("{", "[]", json.dumps({"bounds": {"a": {"low": 2, "high": 1}}}), json.dumps({"surprise": 1})):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"expected a file of ranges in .*bad\.json"):
            Ranges.load(tmp_path / "bad.json")


def test_golden_values_that_are_not_finite_name_their_site() -> None:
    program = capture(Root().eval(), torch.full((4, 4), 2.0) + torch.rand(4, 4))
    with pytest.raises(DataError, match="got NaN or infinity in :sqrt"):
        profile_ranges(program, torch.zeros(3, 4), sites=Values())


def test_a_model_without_activations_is_refused() -> None:
    program = capture(nn.Linear(4, 4).eval(), torch.randn(4, 4))
    with pytest.raises(SiteError, match=r"expected an activation to profile in Linear, got kinds linear"):
        profile_ranges(program, torch.randn(3, 4))


def test_unknown_sites_and_bad_bounds_are_refused() -> None:
    with pytest.raises(SiteError, match="no profiled site matches 'rel'; near names: relu"):
        Ranges({"relu": Bound(0.0, 1.0)})["rel"]
    with pytest.raises(HoplonError, match=r"expected high of Bound to be a number, got nan"):
        Bound(0.0, float("nan"))
