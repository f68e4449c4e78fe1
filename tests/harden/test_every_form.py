"""Overlay, module (both forms), eager module and compiled module: finite, inside the bound, and equal on every word."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import capture
from hoplon.formats import equal_bits
from hoplon.harden import BoundValue, Clamp, HardenedModule, Policy, RandomInRange, Ranger, ToZero, harden
from hoplon.overlay import overlay
from hoplon.program import Program
from hoplon.ranges import Bound, Ranges
from tests.harden.test_bound import awkward

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_": lambda x: F.relu(x.clone(), inplace=True),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
}
BOUND = Bound(-0.25, 0.75)
POLICIES: list[Policy] = [Clamp(), ToZero(), RandomInRange()]


class Activated(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool1d(self.function(x), 1)


def words() -> Tensor:
    """NaN of both signs, infinities, zeros, subnormals and all exponents: shape (64, 4, 256)."""
    values = awkward(torch.float32)
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-45, -1e-45, 1e-39, -3e38])
    values[: len(special)] = special
    values[len(special)] = -special[0]
    assert values.isnan().any()
    assert (values.isnan() & values.signbit()).any()
    return values.view(64, 4, 256)


def program_of(name: str, form: str = "export") -> tuple[Program, str]:
    program = capture(Activated(ACTIVATIONS[name]).eval(), torch.randn(2, 4, 256), form=form)
    return program, next(site.name for site in program.value_sites if "max_pool" not in site.name)


def inside(value: Tensor, effect: object) -> bool:
    low, high = BoundValue(effect.low, effect.high)(torch.tensor([-torch.inf, torch.inf]))  # type: ignore[attr-defined]
    return bool((value.isfinite() & (value >= low) & (value <= high)).all())


def struck(module: HardenedModule, site: str, value: Tensor) -> Tensor:
    """What a module gives if its activation gives this value: the graph, with the node of the site replaced."""
    graph_module = module.graph_module
    graph = graph_module.graph
    node = next(node for node in graph.nodes if node.meta.get("site") == site)
    if node.op == "call_module":  # the bound in the place of its relu: what it reads is what is struck
        module.graph_module.get_submodule(str(node.target))
        reads = node.args[0]
        with graph.inserting_before(node):
            given = graph.call_function(lambda _: value.clone(), (reads,))
        node.args = (given,)
    else:
        with graph.inserting_after(node):
            given = graph.call_function(lambda _: value.clone(), (node,))
        node.replace_all_uses_with(given, delete_user_cb=lambda user: user is not given)
    graph_module.recompile()
    return module(torch.zeros(64, 4, 256))  # type: ignore[no-any-return]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_word_at_every_bounded_operator_ends_finite_inside_the_bound_in_every_form(
    name: str, policy: Policy
) -> None:
    program, site = program_of(name)
    ranger = Ranger(Ranges({site: BOUND}), policy=policy)
    effects = overlay(program, [ranger]).values
    limits = {entry.site: entry.bound for entry in ranger.coverage(program)}[site]
    assert len(effects) == 2  # the activation and the pool behind it
    step, value = program.site_steps[site], words()

    def strike(index: int, result: Tensor) -> Tensor:
        names = [known for known, number in program.site_steps.items() if number == index]
        result = value.clone() if index == step else result
        return effects[names[0]](result) if names and names[0] in effects else result

    with torch.inference_mode():
        of_overlay = program.run([torch.zeros(64, 4, 256)], hook=strike)[0]
    assert inside(of_overlay, limits)
    assert equal_bits(struck(harden(program, [ranger]), site, value), of_overlay)
    if name == "relu" and policy == Clamp():
        of_fused = struck(harden(program, [ranger], form="fused"), site, value)
        assert equal_bits(of_fused, of_overlay)
    program, site = program_of(name, "eager")
    with pytest.warns(UserWarning, match="every operator"):
        module = harden(program, [ranger])
    found = effects[site](words()[:1])
    assert inside(found, limits)
    assert inside(module(words()[:1]), limits)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_faulty_inputs_come_out_finite(name: str) -> None:
    """The operators compute on the faulty words themselves."""
    program, site = program_of(name)
    ranger = Ranger(Ranges({site: BOUND}))
    limits = {entry.site: entry.bound for entry in ranger.coverage(program)}[site]
    found = [harden(program, [ranger], form=form)(words()) for form in ("separate", "fused")]  # type: ignore[arg-type]
    assert all(inside(each, limits) for each in found)
    ordinary = ~words().isnan()
    assert equal_bits(found[0][ordinary], found[1][ordinary])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
@pytest.mark.parametrize("form", ["separate", "fused"])
@pytest.mark.parametrize("name", ["relu", "gelu"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_compiled_module_does_the_same(name: str, form: str) -> None:
    program, site = program_of(name)
    ranger = Ranger(Ranges({site: BOUND}))
    module = harden(program, [ranger], form=form)  # type: ignore[arg-type]
    limits = {entry.site: entry.bound for entry in ranger.coverage(program)}[site]
    compiled = torch.compile(module.graph_module)
    with torch.no_grad():
        found = compiled(words())
        wanted = module(words())
    assert inside(found, limits)
    finite = words().isfinite()
    assert torch.allclose(found[finite], wanted[finite], rtol=1e-5, atol=1e-5)
