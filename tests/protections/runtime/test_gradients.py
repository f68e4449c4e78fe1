"""Gradients through hardened modules, and counting under the compiler."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn

from hoplon import capture
from hoplon.errors import HoplonError
from hoplon.formats import equal_bits
from hoplon.injection.replay import Replay
from hoplon.protections.base import overlay
from hoplon.protections.ranges import Bound, Ranges, profile_ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.policy import Clamp, Detect, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import GRAPHS, NETWORKS, captured

FORMS = ("separate", "fused")


class Elementwise(nn.Module):
    """A ReLU and a tanh over one weight each."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 1.0]))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x * self.scale) + torch.tanh(x * self.scale)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the sum of squared outputs, by the input and by every parameter."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    model(x).square().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in model.parameters())]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GRAPHS)
def test_inside_of_the_bounds_gradients_are_the_models(name: str, form: str) -> None:
    model, x = NETWORKS[name].model(), NETWORKS[name].batch(4)
    program = captured(name, 4)
    protections = [Ranger(profile_ranges(program, x)), Duplicate()]
    module = harden(program, protections, form=form, gradients=True)  # type: ignore[arg-type]
    for found, wanted in zip(gradients(module, x), gradients(model, x), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        assert equal_bits(module(x), harden(program, protections, form=form)(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [Clamp(), ToZero(), RandomInRange()], ids=lambda policy: policy.label)
@pytest.mark.parametrize("form", FORMS)
def test_outside_of_the_bounds_they_are_zero(form: str, policy: Policy) -> None:
    program = capture(Elementwise().eval(), torch.zeros(2, 4))
    ranges = Ranges({"act:relu": Bound(0.0, 2.0), ":tanh": Bound(-0.5, 0.5)})
    module = harden(program, [Ranger(ranges, policy=policy)], form=form, gradients=True)  # type: ignore[arg-type]
    x = torch.tensor([[-3.0, 0.25, 1.0, 3.0], [-0.25, 2.0, float("nan"), 0.5]], requires_grad=True)
    module(x).sum().backward()
    slope = 1 - torch.tanh(x.detach()) ** 2
    relu = torch.tensor([[0.0, 1, 1, 0], [0, 1, 0, 1]])
    tanh = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 1]])
    wanted = relu + (tanh * slope).nan_to_num(0.0)
    assert x.grad is not None
    ordinary = ~x.detach().isnan()  # a gradient of 0 through the tanh of a NaN is a NaN
    assert torch.allclose(x.grad[ordinary], wanted[ordinary])


def test_a_detector_lets_all_gradients_pass() -> None:
    program = capture(Elementwise().eval(), torch.zeros(2, 4))
    ranges = Ranges({"act:relu": Bound(0.0, 0.1), ":tanh": Bound(-0.1, 0.1)})
    module = harden(program, [Ranger(ranges, policy=Detect())], gradients=True)
    x = torch.ones(2, 4)
    for found, wanted in zip(gradients(module, x), gradients(Elementwise().eval(), x), strict=True):
        assert torch.allclose(found, wanted)


def test_gradients_are_asked_for() -> None:
    net = NETWORKS["mlp"]
    program = captured("mlp")
    protections = [Ranger(profile_ranges(program, net.batch(4)))]
    plain, asked = harden(program, protections), harden(program, protections, gradients=True)
    x = net.batch(2).requires_grad_()
    assert not plain(x).requires_grad
    assert asked(x).requires_grad
    assert copy.deepcopy(asked)(x).requires_grad
    with torch.no_grad():
        assert not asked(x).requires_grad
    eager = captured("mlp", 1, form="eager")
    with pytest.raises(HoplonError, match="expected an exported program for gradients, got Mlp in the eager form"):
        harden(eager, [Ranger(profile_ranges(eager, net.batch(4)))], gradients=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler about itself
def test_gradients_survive_the_compiler() -> None:
    net = NETWORKS["residual"]
    program, x = captured("residual"), net.batch(4)
    module = harden(program, [Ranger(profile_ranges(program, x))], gradients=True)
    torch.compiler.reset()
    given = x.clone().requires_grad_()
    torch.compile(module, backend="aot_eager")(given).square().sum().backward()
    assert given.grad is not None
    assert torch.allclose(given.grad, gradients(net.model(), x)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_compiled_module_counts_what_the_module_counts(backend: str, form: str) -> None:
    net = NETWORKS["concat"]
    program, x = captured("concat"), net.batch(8, seed=11)
    ranger = Ranger(Ranges({"relu:relu": Bound(0.0, 0.5), ":gelu": Bound(-0.01, 0.02)}))
    plain, module = (harden(program, [ranger], telemetry=True, form=form) for _ in range(2))  # type: ignore[arg-type]
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend)
    for _ in range(2):
        assert torch.allclose(compiled(x), plain(x), atol=1e-5)
    assert module.outside_counts == plain.outside_counts
    assert plain.outside_counts[":gelu"] > 0 < plain.outside_counts["relu:relu"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_models_in_half_precision_and_with_channels_last_strides(dtype: torch.dtype, memory: str) -> None:
    net = NETWORKS["residual"]
    strides = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[memory]
    model, x = net.model().to(dtype).to(memory_format=strides), net.batch(8).to(dtype).to(memory_format=strides)
    single = profile_ranges(captured("residual"), net.batch(8).to(dtype).float())
    program = capture(model, x[:2])
    ranges = profile_ranges(program, x)
    modules = [harden(program, [Ranger(ranges)], form=form) for form in FORMS]  # type: ignore[arg-type]
    with torch.inference_mode():
        assert all(equal_bits(module(x), model(x)) for module in modules)  # bounds are rounded outwards
        for name, bound in single.bounds.items():
            held = torch.tensor([bound.low, bound.high]).to(dtype)
            effect = Ranger(single.for_any_weights()).values(program)[name]
            assert equal_bits(effect(held.clone())[1:], held[1:])
        wrong = modules[0](x.clone().fill_(3e4))
    assert wrong.isfinite().all()
    replay = Replay(program, overlay(program, [Ranger(ranges)]), 8, ())
    assert equal_bits(replay.golden([x]).outputs[0], modules[0](x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_an_accelerator(dtype: torch.dtype, form: str) -> None:
    net = NETWORKS["concat"]
    model, x = net.model().to("cuda", dtype), net.batch(8).to("cuda", dtype)
    program = capture(model, x[:2])
    ranges = profile_ranges(program, x)
    module = harden(program, [Ranger(ranges), Duplicate()], form=form, telemetry=True)  # type: ignore[arg-type]
    with torch.inference_mode():
        assert equal_bits(module(x), model(x))
        assert module(x.clone().fill_(float("nan"))).isfinite().all()
    assert module.outside_counts[":gelu"] > 0
    tracked = harden(program, [Ranger(ranges)], form=form, gradients=True)  # type: ignore[arg-type]
    given = x.clone().requires_grad_()
    tracked(given).sum().backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
