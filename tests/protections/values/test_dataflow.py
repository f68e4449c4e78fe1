"""What takes a bound over, what does not, and that the listing says so truly, in both forms of a model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import capture
from hoplon.errors import HoplonWarning
from hoplon.formats import equal_bits
from hoplon.program.program import Program
from hoplon.protections.ranges import Bound, Ranges, inherent_ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.dataflow import AnyBound
from hoplon.protections.values.ranger import Coverage, Ranger

RELU = Bound(0.0, 2.5)


class Behind(nn.Module):
    """Something behind a ReLU, then a max pool, a site that shows whether the bound arrived."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("order", torch.tensor([2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.function(F.relu(x), self.order), 1)


def listing(function: Callable[[Tensor, Tensor], Tensor], form: str) -> dict[str, Coverage]:
    program = capture(Behind(function).eval(), torch.randn(1 if form == "eager" else 2, 3, 4, 4), form=form)  # type: ignore[arg-type]
    return {entry.site: entry for entry in Ranger(Ranges({":relu": RELU})).coverage(program)}


KEEPING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], AnyBound]] = {
    "index_select": (lambda y, i: y.index_select(1, i), RELU),
    "index": (lambda y, i: y[:, i], RELU),
    "gather": (lambda y, i: y.gather(3, i.expand(y.shape[0], 3, 4, 2)), RELU),
    "sort": (lambda y, i: y.sort(1)[0], RELU),
    "topk": (lambda y, i: y.topk(2, 1).values, RELU),
    "max": (lambda y, i: y.max(1, keepdim=True).values, RELU),
    "tile": (lambda y, i: y.tile(1, 1, 2, 1), RELU),
    "repeat_interleave": (lambda y, i: y.repeat_interleave(2, 2), RELU),
    "cast": (lambda y, i: y.double().half().float(), RELU),
    "type_as": (lambda y, i: y.double().type_as(y), RELU),
    "hstack": (lambda y, i: torch.hstack([y, y.flip(1)]), RELU),
    "zeros": (lambda y, i: torch.cat([torch.zeros_like(y), y], 1), RELU),
    "full": (lambda y, i: torch.cat([y.new_full(y.shape, -7.0), y], 1), Bound(-7.0, 2.5)),
    "maximum": (lambda y, i: torch.maximum(y, torch.full_like(y, 3.0)), Bound(0.0, 3.0)),
    "masked_fill": (lambda y, i: y.masked_fill(y > 1, -4.0), Bound(-4.0, 2.5)),
    "where": (lambda y, i: torch.where(y > 1, y, 9.0), Bound(0.0, 9.0)),
}
ENDING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "masked_fill": (lambda y, i: y.masked_fill(y > 1, -math.inf), "masked_fill pads with -inf"),
    "where": (lambda y, i: torch.where(y > 1, y, y + 1), "where reads :add, which is not bounded"),
    "mul": (lambda y, i: y * 2, "mul is not known to keep the range of what it reads"),
    "index": (lambda y, i: (y + 1)[:, i], "index reads :add, which is not bounded"),
    "integer": (lambda y, i: torch.cat([y.int().float(), y], 1), "which is not bounded"),
    "attention": (
        lambda y, i: F.scaled_dot_product_attention(y, y, y),
        'attention has its softmax inside, out of reach; capture with decompose=["attention"]',
    ),
}


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("name", KEEPING)
def test_a_bound_arrives_behind_what_only_selects_repeats_or_fills(name: str, form: str) -> None:
    function, bound = KEEPING[name]
    found = listing(function, form)
    assert found[":max_pool"].bound == bound
    assert found[":max_pool"].why.startswith("follows ")


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("name", ENDING)
def test_a_bound_ends_and_the_listing_says_why(name: str, form: str) -> None:
    function, why = ENDING[name]
    found = listing(function, form)
    assert found[":max_pool"].bound is None
    assert any(why in entry.why for entry in found.values())


@pytest.mark.parametrize("name", ["index", "topk", "cast", "full", "masked_fill", "where"])
def test_a_module_of_such_operators_gives_what_the_model_gives_inside_its_bounds(name: str) -> None:
    function, bound = KEEPING[name]
    assert isinstance(bound, Bound)
    model, x = Behind(function).eval(), torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2.5
    module = harden(capture(model, x[:2]), [Ranger(Ranges({":relu": RELU}))])
    with torch.no_grad():
        assert equal_bits(module(x), model(x))
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, -math.inf
    found = module(x)
    assert bool(((found >= bound.low) & (found <= bound.high)).all())


CLAMPS: dict[str, tuple[Callable[[Tensor], Tensor], Bound]] = {
    "clamp": (lambda x: x.clamp(0, 6), Bound(0.0, 6.0)),
    "clamp_": (lambda x: x.mul(1.0).clamp_(0, 6), Bound(0.0, 6.0)),
    "clip": (lambda x: torch.clip(x, -1.5, 1), Bound(-1.5, 1.0)),
    "clamp_min": (lambda x: x.clamp_min(0), Bound(0.0, 5.0)),
    "min=0": (lambda x: x.clamp(min=0), Bound(0.0, 5.0)),
    "clamp_max": (lambda x: x.clamp_max(1.0), Bound(-5.0, 1.0)),
}


class Clamped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.function(x), 2)


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("name", CLAMPS)
def test_a_relu_written_as_a_clamp_is_an_activation(name: str, form: str) -> None:
    function, bound = CLAMPS[name]
    program: Program = capture(Clamped(function).eval(), torch.randn(1 if form == "eager" else 2, 3, 4, 4), form=form)  # type: ignore[arg-type]
    site = next(site for site in program.value_sites if site.kind.startswith("clamp"))
    two_ended = abs(bound.low) != 5 and bound.high != 5
    ranges = inherent_ranges(program) if two_ended else Ranges({site.name: Bound(-5.0, 5.0)})
    ranger = Ranger(ranges)
    found = {entry.site: entry.bound for entry in ranger.coverage(program)}
    assert found[site.name] == found[":max_pool"] == bound
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HoplonWarning)
        module = harden(program, [ranger])
    faulty = module(torch.full((1, 3, 4, 4), math.nan))  # which a clamp lets through
    assert bool(((faulty >= bound.low) & (faulty <= bound.high)).all())
