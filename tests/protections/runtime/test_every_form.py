"""Overlay, module (both forms), eager module and compiled module: finite, inside the bound, and equal on every word."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import capture
from hoplon.errors import HoplonWarning
from hoplon.formats import equal_bits
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.program.program import Program
from hoplon.protections.base import overlay
from hoplon.protections.export.formats import export_onnx
from hoplon.protections.ranges import Bound, Ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.clamp import BoundValue, rounded_outwards
from hoplon.protections.values.policy import Clamp, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Ranger
from tests.support.oracles import awkward

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


class All(nn.Module):
    """Every activation side by side on one input, each with a pool behind it."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool1d(function(x), 1) for function in ACTIVATIONS.values()]


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


def all_hardened(dtype: torch.dtype, form: str) -> tuple[HardenedModule, list[Bound]]:
    """Every activation bounded in one module, and the bound of each output of it."""
    eager = form == "eager"
    example = torch.randn(1 if eager else 2, 4, 256).to(dtype)
    program = capture(All().eval(), example, form="eager" if eager else "export")
    given = {site.name: BOUND for site in program.value_sites if site.kind in ACTIVATION_KINDS}
    assert len(given) == len(ACTIVATIONS)
    ranger = Ranger(Ranges(given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HoplonWarning)
        module = harden(program, [ranger], form="fused" if form == "fused" else "separate")
    pools = [entry.bound for entry in ranger.coverage(program) if ":max_pool" in entry.site]
    assert all(isinstance(bound, Bound) for bound in pools)
    return module, [bound for bound in pools if bound is not None]


def hostile(dtype: torch.dtype) -> Tensor:
    """All 65,536 upper halves of a word, NaN of both signs among them: shape (64, 4, 256)."""
    return awkward(dtype).view(64, 4, 256)


@pytest.mark.parametrize("form", ["separate", "fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_activation_stays_inside_its_bound_in_every_dtype(dtype: torch.dtype, form: str) -> None:
    module, bounds = all_hardened(dtype, form)
    parts = hostile(dtype).split(1)[::8] if form == "eager" else (hostile(dtype),)
    for part in parts:
        for output, bound in zip(module(part), bounds, strict=True):
            low, high = rounded_outwards(bound, dtype)
            assert output.dtype == dtype
            assert bool((output.isfinite() & (output >= low) & (output <= high)).all())


@pytest.mark.parametrize("form", ["separate", "fused"])
def test_every_activation_stays_inside_its_bound_in_onnx(form: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra hoplon[onnx]")
    module, bounds = all_hardened(torch.float32, form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, onnx and onnxscript about each other
        export_onnx(module, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for x in (hostile(torch.float32), torch.randn(64, 4, 256, generator=torch.Generator().manual_seed(0))):
        wanted = module(x)
        for found, own, bound in zip(session.run(None, {given.name: x.numpy()}), wanted, bounds, strict=True):
            low, high = rounded_outwards(bound, torch.float32)
            assert bool(((found >= low) & (found <= high)).all())  # NaN is not
            if x.isfinite().all():
                assert torch.allclose(torch.from_numpy(found), own, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
@pytest.mark.parametrize("form", ["separate", "fused"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_activation_stays_inside_its_bound_compiled(form: str) -> None:
    module, bounds = all_hardened(torch.float32, form)
    compiled = torch.compile(module.graph_module)
    for x in (hostile(torch.float32), torch.randn(64, 4, 256, generator=torch.Generator().manual_seed(0))):
        with torch.no_grad():
            found = compiled(x)
        for output, own, bound in zip(found, module(x), bounds, strict=True):
            low, high = rounded_outwards(bound, torch.float32)
            assert bool((output.isfinite() & (output >= low) & (output <= high)).all())
            if x.isfinite().all():
                assert torch.allclose(output, own, rtol=1e-4, atol=1e-5)
