"""Packed kernels: what they compute, what a campaign with them says of itself, where they are refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hoplon import Campaign, HoplonError, Inputs, Memory, Values, capture, load_results
from hoplon.errors import StoreError
from hoplon.formats import equal_bits
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.packing import TOLERANCE, PackedConvolution, packed, proof
from hoplon.program.program import Program
from tests.support.networks import NETWORKS

WITH_CONVOLUTIONS = ("residual", "concat", "in-place", "in-place-sum", "branches", "views")


def _campaign(name: str, **options: object) -> Campaign:
    net = NETWORKS[name]
    program = capture(net.model(), net.batch(3))
    return Campaign(program, Inputs(net.batch(10)), sites=Values(), batch=4, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_packed_convolution_equals_the_plain_one_up_to_rounding(groups: int, last: bool) -> None:
    x, weight, bias = torch.randn(3, 4, 9, 7), torch.randn(8, 4 // groups, 3, 2), torch.randn(8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    convolve = PackedConvolution()
    with torch.inference_mode():
        for place in ({}, {"stride": (2, 1), "padding": (1, 1)}, {"dilation": [2, 1], "padding": 1}):
            again = PackedConvolution()
            wanted = torch.conv2d(x.double(), weight.double(), bias.double(), groups=groups, **place)
            found = again(x, weight, bias, groups=groups, **place)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
            assert found.is_contiguous(memory_format=torch.channels_last)
        changed = weight + 1
        other = convolve(x, weight, groups=groups), convolve(x, changed, groups=groups)
        torch.testing.assert_close(other[1], torch.conv2d(x, changed, groups=groups), rtol=1e-4, atol=1e-4)
        assert not other[0].allclose(other[1])
        assert equal_bits(pickle.loads(pickle.dumps(convolve))(x, changed, groups=groups), other[1])


def test_gradients_go_through_the_plain_convolution() -> None:
    x, weight = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(6, 4, 3, 3)
    result = PackedConvolution()(x, weight, padding=1)
    (gradient,) = torch.autograd.grad(result.sum(), [x])
    (wanted,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), [x])
    assert equal_bits(gradient, wanted)


@pytest.mark.parametrize("name", WITH_CONVOLUTIONS)
def test_a_campaign_with_packed_kernels_says_so_and_how_near_it_is(name: str) -> None:
    exact, found = (_campaign(name, kernels=kernels).run(count=40, seed=2) for kernels in ("exact", "packed"))
    said = found.manifest["kernels"]
    assert said["form"] == "packed"
    assert said["samples"] == 4
    assert 0 <= said["difference"] <= said["tolerance"] == TOLERANCE
    assert f"within {said['difference']:.1e} of the model's own" in str(found)
    assert "kernels" not in exact.manifest
    assert "Packed" not in str(exact)
    assert found.manifest["program"] == exact.manifest["program"]
    assert found.faults.frame.select("site", "element", "flip").equals(
        exact.faults.frame.select("site", "element", "flip")
    )


def test_records_with_packed_kernels_do_not_depend_on_workers_or_resumption(tmp_path: Path) -> None:
    campaign = _campaign("residual", kernels="packed")
    here = campaign.run(count=1100, seed=4, threads=1, store=tmp_path / "run")
    assert campaign.run(count=1100, seed=4, threads=1, workers=2).digest() == here.digest()
    (tmp_path / "run" / "digests" / "unit-00000001.sha256").unlink()
    assert campaign.run(count=1100, seed=4, threads=1, store=tmp_path / "run", resume=True).digest() == here.digest()
    assert load_results(tmp_path / "run").manifest["kernels"] == here.manifest["kernels"]
    with pytest.raises(StoreError, match="kernels"):
        _campaign("residual").run(count=1100, seed=4, threads=1, store=tmp_path / "run", resume=True)


def test_two_phases_with_packed_kernels_find_what_exact_ones_find() -> None:
    rates = [
        _campaign("residual", kernels=form).run(half_width=0.05, seed=1).summary()[0] for form in ("exact", "packed")
    ]
    exact, found = (rate.failure for rate in rates)
    assert exact.low <= found.estimate <= exact.high


def test_what_packed_kernels_cannot_do_is_refused() -> None:
    net = NETWORKS["residual"]
    program = capture(net.model(), net.batch(3))
    with pytest.raises(HoplonError, match="faults in memory"):
        Campaign(program, net.batch(4), sites=Memory(), kernels="packed")
    with pytest.raises(HoplonError, match="two-dimensional float32 convolutions"):
        _campaign("mlp", kernels="packed").run(count=4)
    with pytest.raises(HoplonError, match="with a graph"):
        packed(capture(net.model(), net.batch(3), form="eager"))
    with pytest.raises(HoplonError, match="two-dimensional float32"):
        packed(capture(net.model().double(), net.batch(3).double()))


def _run_of(model: nn.Module, x: torch.Tensor) -> tuple[Program, GoldenRun]:
    program = capture(model, x[:3])
    return program, GoldenRun.run(packed(program), Inputs(x), _campaign("residual").criterion, batch=4)


def test_kernels_that_compute_something_else_are_refused() -> None:
    net = NETWORKS["residual"]
    model, x = net.model(), net.batch(8)
    program, reference = _run_of(model, x)
    assert proof(program, reference)["difference"] <= TOLERANCE
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.01)
    with pytest.raises(HoplonError, match="use kernels='exact'"):
        proof(capture(other, x[:3]), reference)
