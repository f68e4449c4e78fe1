"""Activations written out in several operators are bounded at their value, and gates where their function ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hoplon as hp
from hoplon.protections.ranges import activations

WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    "tanh gelu, factored": lambda x: 0.5 * (x * (1 + torch.tanh(x * 0.79788456 * (1 + 0.044715 * x * x)))),
    "tanh gelu, as a sum": lambda x: 0.5 * x + 0.5 * x * torch.tanh(0.79788 * (x + 0.044715 * x.pow(3))),
    "erf gelu": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "silu": lambda x: x * torch.sigmoid(x),
    "silu, half format": lambda x: (x.bfloat16() * torch.sigmoid(x.bfloat16())).float(),
    "silu, as a quotient": lambda x: x / (1 + torch.exp(-x)),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish, relu6": lambda x: x * F.relu6(x + 3) / 6,
    "hardswish, clamp": lambda x: x * (torch.clamp(x + 3, 0, 6) / 6),
    "hardswish, hardtanh": lambda x: x * F.hardtanh(x + 3, 0.0, 6.0) * (1 / 6),
}


class Inline(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(8, 16), nn.Linear(width, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))  # type: ignore[no-any-return]


def samples(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_out_activation_is_bounded_at_its_value_alone(name: str, form: str) -> None:
    program = hp.capture(Inline(WRITTEN[name]).eval(), samples(4), form=form)  # type: ignore[arg-type]
    last = [site.name for site in program.value_sites if not site.name.startswith("last")][-1]
    ranger = hp.Ranger(hp.profile_ranges(program, samples(64)))
    assert list(activations(program).sites) == list(ranger.ranges.bounds) == list(ranger.values(program)) == [last]
    inside = [entry for entry in ranger.coverage(program) if "inside of the activation" in entry.why]
    assert inside
    assert all(entry.bound is None and entry.why.endswith(last) for entry in inside)


@pytest.mark.parametrize(("written", "whole"), [("tanh gelu", nn.GELU("tanh")), ("silu", nn.SiLU())])
def test_it_is_protected_as_the_operator_is(written: str, whole: nn.Module) -> None:
    """Bounds inside would let ends pass that no fault-free value reaches: nearly every fault then fails."""
    rates = []
    for function in (WRITTEN[written], whole):
        program = hp.capture(Inline(function).eval(), samples(4))
        ranges = hp.profile_ranges(program, samples(256))
        campaign = hp.Campaign(
            program,
            samples(32, 2),
            sites=hp.Values("first*"),
            fault_model=hp.BitFlip(bits=(30,)),
            protections=(hp.Ranger(ranges),),
        )
        rates.append(campaign.run(count=200, seed=0).summary()[0].failure.estimate)
    assert rates[0] == pytest.approx(rates[1], abs=0.02)


@pytest.mark.parametrize(
    ("module", "value"), [(lambda x: torch.relu(x) ** 2, "1:pow"), (lambda x: torch.tanh(0.5 * x) * 2 + 1, "1:add")]
)
def test_a_module_of_one_value_counts_as_one_activation(module: Callable[[Tensor], Tensor], value: str) -> None:
    class Function(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return module(x)

    program = hp.capture(nn.Sequential(nn.Linear(8, 16), Function(), nn.BatchNorm1d(16)).eval(), samples(4))
    assert list(activations(program).sites) == [value]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :8], x[:, 8:]


GATES: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "linear unit": (lambda x: halves(x)[0] * halves(x)[1].sigmoid(), 8, ":sigmoid"),
    "squeeze and excite": (lambda x: x * x.mean(1, keepdim=True).sigmoid(), 16, ":sigmoid"),
    "hard": (lambda x: halves(x)[0] * (F.relu6(halves(x)[1] + 3) / 6), 8, ":hardtanh"),
    "closing": (lambda x: halves(x)[0] * (1 - halves(x)[1].tanh()), 8, ":tanh"),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_of_an_unbounded_value_is_left_alone_and_the_product_bounded(name: str) -> None:
    """A bound of the gate would keep it open on a huge value that it masks."""
    function, width, gate = GATES[name]
    program = hp.capture(Inline(function, width).eval(), samples(4))
    ranger = hp.Ranger(hp.profile_ranges(program, samples(64)))
    assert list(ranger.values(program)) == list(ranger.ranges.bounds) == [":mul"]
    (found,) = [entry for entry in ranger.coverage(program) if entry.site == gate]
    assert found.why == "inside of the activation :mul"


def test_a_written_out_gate_in_a_module_is_known_by_its_ends() -> None:
    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu6(x + 3) / 6

    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(8, 8), Hard()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate(self.layer(x))  # type: ignore[no-any-return]

    program = hp.capture(nn.Sequential(nn.Linear(8, 8), Excite(), nn.Linear(8, 2)).eval(), samples(4))
    assert list(activations(program).sites) == ["1:mul"]


def test_a_gate_of_a_bounded_value_keeps_its_own_bound() -> None:
    program = hp.capture(Inline(lambda x: halves(x)[0].tanh() * halves(x)[1].sigmoid(), 8).eval(), samples(4))
    ranges = hp.profile_ranges(program, samples(64))
    found = {e.site: e.bound for e in hp.Ranger(ranges).coverage(program) if e.bound}
    assert found[":sigmoid"].low > 0
    assert found[":sigmoid"].high < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calibration_data_pass_at_other_batch_sizes(dtype: torch.dtype) -> None:
    """The bounds have slack for the last bits of other kernels, and for no more."""
    program = hp.capture(Inline(torch.tanh).eval().to(dtype), samples(4).to(dtype))
    ranges = hp.profile_ranges(program, samples(64).to(dtype))
    bound = next(e.bound for e in hp.Ranger(ranges).coverage(program) if e.site == ":tanh")
    seen, last = ranges[":tanh"], max(2**-16, 4 * torch.finfo(dtype).eps)
    assert bound is not None
    assert (bound.low, bound.high) == pytest.approx((seen.low - last, seen.high + last), abs=0.05 * last)


def test_a_written_out_activation_has_no_range_without_data() -> None:
    program = hp.capture(Inline(lambda x: (x * torch.sigmoid(x)).tanh()).eval(), samples(4))
    assert list(hp.ranges.inherent_ranges(program).bounds) == [":tanh"]
