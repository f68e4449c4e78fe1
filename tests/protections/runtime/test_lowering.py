from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from hoplon.errors import HoplonError
from hoplon.formats import equal_bits, integer_view
from hoplon.importance import taylor
from hoplon.program.capturing import capture
from hoplon.program.eager import EagerProgram
from hoplon.program.program import Program
from hoplon.protections.base import Overlay, Protection, ValueProtection, overlay
from hoplon.protections.guards.aspis import Aspis, AspisGuard
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.memory_guard import GuardReport
from hoplon.protections.ranges import Bound, Ranges, profile_ranges
from hoplon.protections.runtime.graph import is_fresh, site_nodes
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import Form, harden, lower
from hoplon.protections.runtime.monitor import UncorrectableMemory
from hoplon.protections.values.clamp import BoundValue
from hoplon.protections.values.ranger import Coverage, Ranger
from tests.support.networks import NETWORKS, WIRINGS, captured


class Shift(Protection):
    """An effect on every value site that no reader can overlook."""

    label = "shift"

    def values(self, program: Program) -> Mapping[str, ValueProtection]:
        return {site.name: _Shifted() for site in program.value_sites if site.dtype.is_floating_point}


class _Shifted(ValueProtection):
    def __call__(self, value: Tensor) -> Tensor:
        return value + 0.125

    def apply_(self, value: Tensor) -> Tensor:
        return value.add_(0.125)


SampledFaults = Mapping[str, Callable[[Tensor], Tensor]]


def with_overlay(program: Program, over: Overlay, x: Tensor, strike: SampledFaults) -> Tensor:
    """The semantics: at each site operator, fault, protection, readers."""
    sites = {step: name for name, step in program.site_steps.items()}

    def hook(step: int, value: Tensor) -> Tensor:
        name = sites.get(step)
        if name in strike:
            value = strike[name](value)
        return over.values[name](value) if name in over.values else value

    with torch.inference_mode():
        outputs = program.run([x], hook=hook)
    assert isinstance(outputs[0], Tensor)
    return outputs[0]


def struck(module: HardenedModule, name: str, fault: Callable[[Tensor], Tensor]) -> HardenedModule:
    """The module, from now on with a fault written over an operator's own output."""
    graph = module.graph_module.graph
    node = next(node for node in graph.nodes if node.meta.get("site") == name)

    def write(value: Tensor) -> Tensor:
        return value.copy_(fault(value))

    with graph.inserting_after(node):
        hit = graph.call_function(write, (node,))
    node.replace_all_uses_with(hit, delete_user_cb=lambda user: user is not hit)
    module.graph_module.recompile()
    return module


def hashes(model: nn.Module) -> dict[str, list[int]]:
    return {name: integer_view(tensor).flatten().tolist() for name, tensor in model.state_dict().items()}


def protections(program: Program, x: Tensor) -> list[Protection]:
    ranges = profile_ranges(program, x[:2] * 0.5)  # tight: many fault-free values are bounded
    return [Ranger(ranges), TMR()]


def random_words(value: Tensor) -> Tensor:
    """NaN, infinities, huge and subnormal values among them."""
    generator = torch.Generator().manual_seed(4)
    words = torch.randint(-(2**31), 2**31, value.shape, generator=generator, dtype=torch.int64).to(torch.int32)
    return words.view(torch.float32)


@pytest.mark.parametrize("case", WIRINGS)
def test_without_protection_it_is_the_model(case: str) -> None:
    model, x = NETWORKS[case].model(), NETWORKS[case].batch(5)
    module = lower(captured(case, 5), Overlay())
    assert not any("_protection" in name for name, _ in module.named_modules())
    with torch.no_grad():
        for rows in (x, x[:2], x[:1]):
            assert equal_bits(module(rows), model(rows))
    assert equal_bits(module(x), module(x).detach())
    assert not module(x).requires_grad


@pytest.mark.parametrize("case", WIRINGS)
@pytest.mark.parametrize("make", [protections, lambda program, x: [Shift()]], ids=["ranger+tmr", "shift"])
def test_module_and_overlay_agree_bit_for_bit(case: str, make: Callable[..., list[Protection]]) -> None:
    model, x = NETWORKS[case].model(), NETWORKS[case].batch(5)
    before, given = hashes(model), x.clone()
    program = captured(case, 5)
    over = overlay(program, make(program, x))
    module = lower(program, over)
    wanted = with_overlay(program, over, x, {})
    with torch.inference_mode():
        assert equal_bits(module(x), wanted)
    assert equal_bits(module(x), wanted)
    assert not equal_bits(wanted, program(x))
    assert hashes(model) == before
    assert equal_bits(x, given)


@pytest.mark.parametrize("case", WIRINGS)
def test_every_operator_of_the_graph_is_named_like_the_site(case: str) -> None:
    program = captured(case, 5)
    module = harden(program, [])
    named = [node.meta["site"] for node in module.graph_module.graph.nodes if "site" in node.meta]
    assert sorted(named) == sorted(site.name for site in program.value_sites)


@pytest.mark.parametrize("case", WIRINGS)
def test_module_and_overlay_agree_under_faults(case: str) -> None:
    x = NETWORKS[case].batch(5)
    program = captured(case, 5)
    over = overlay(program, [Ranger(profile_ranges(program, x))])
    landed = 0
    for site in program.value_sites:
        if not site.dtype.is_floating_point:
            continue
        wanted = with_overlay(program, over, x, {site.name: random_words})
        found = struck(lower(program, over), site.name, random_words)(x)
        assert equal_bits(found.nan_to_num(nan=-77.0), wanted.nan_to_num(nan=-77.0)), site.name
        landed += not equal_bits(wanted, program(x))
    assert landed > 2


@pytest.mark.parametrize("case", ["in-place-sum", "branches", "views", "shared"])
def test_the_fused_form_gives_the_same_values_with_fewer_operators(case: str) -> None:
    x = NETWORKS[case].batch(5)
    program = captured(case, 5)
    given = protections(program, x)
    separate, fused = harden(program, given), harden(program, given, form="fused")
    assert equal_bits(separate(x), fused(x))

    def relus(module: HardenedModule) -> list[fx.Node]:
        return [node for node in module.graph_module.graph.nodes if "relu" in str(node.target)]

    assert relus(separate)
    assert not relus(fused)
    sites = {node.meta.get("site") for node in fused.graph_module.graph.nodes} - {None}
    assert sites == {node.meta.get("site") for node in separate.graph_module.graph.nodes} - {None}


def test_a_fault_in_a_fused_relu_comes_after_its_bound() -> None:
    x = NETWORKS["in-place-sum"].batch(5)
    program = captured("in-place-sum", 5)
    ranger = [Ranger(profile_ranges(program, x))]

    def huge(value: Tensor) -> Tensor:
        return torch.full_like(value, 1e6)

    separate = struck(harden(program, ranger), "relu:relu", huge)
    fused = struck(harden(program, ranger, form="fused"), "relu:relu", huge)
    over = overlay(program, ranger)
    assert equal_bits(separate(x), with_overlay(program, over, x, {"relu:relu": huge}))
    without = Overlay(values={name: effect for name, effect in over.values.items() if name != "relu:relu"})
    assert equal_bits(fused(x), with_overlay(program, without, x, {"relu:relu": huge}))


def test_its_state_has_the_users_names_and_ties() -> None:
    model = NETWORKS["shared"].model()
    program = capture(model, NETWORKS["shared"].batch(5))
    module = harden(program, [TMR()])
    assert set(module.state_dict()) == set(model.state_dict())
    assert module.get_parameter("a.weight") is module.get_parameter("b.weight")
    assert module.get_parameter("a.weight").data_ptr() != model.get_parameter("a.weight").data_ptr()
    words = 16 + 4 + 4 + 1 + 1  # weight once, two biases, gain, the constant
    assert module.check() == GuardReport(checked=words)
    assert module.monitor.extra_bytes == 2 * 4 * words
    assert module.memory().keys() >= {"a.weight", "b.weight", "gain"}
    assert [type(protection) for protection in module.protections] == [TMR]


def test_shared_memory_is_repaired_in_the_users_model() -> None:
    model = NETWORKS["in-place-sum"].model()
    before = hashes(model)
    x = NETWORKS["in-place-sum"].batch(5)
    program = capture(model, x)
    own, shared = harden(program, [TMR()]), harden(program, [TMR()], copy=False)
    wanted = own(x)
    with torch.no_grad():
        model.get_parameter("conv1.weight").data.view(-1)[5] = float("nan")
    assert equal_bits(own(x), wanted)
    assert own.monitor.report.detected == 0
    assert hashes(model) != before
    assert equal_bits(shared(x), wanted)
    assert shared.monitor.report.corrected == 1
    assert hashes(model) == before


def test_guards_check_before_each_forward_pass() -> None:
    x = NETWORKS["in-place-sum"].batch(5)
    program = captured("in-place-sum", 5)
    scores = taylor(program, (x, torch.zeros(len(x), dtype=torch.int64)), loss=F.cross_entropy)
    module = harden(program, [TMR(), Aspis(scores, 0.1)])
    wanted = module(x)
    with torch.no_grad():
        module.get_parameter("fc.bias").data[0] = 1e30
        module.get_buffer("bn.running_mean").data[1] = float("inf")
    assert equal_bits(module(x), wanted)
    assert (module.monitor.report.detected, module.monitor.report.corrected, module.monitor.report.uncorrectable) == (
        2,
        2,
        0,
    )
    assert set(module.monitor.report.where) == {"fc.bias", "bn.running_mean"}


def uncorrectable(module: HardenedModule) -> None:
    guard = module.monitor.guards[0]
    with torch.no_grad():
        module.get_parameter("conv1.weight").data.view(-1)[0] = 5.0
    guard.copies["conv1.weight#1"].view(-1)[0] = 6.0


def test_uncorrectable_memory_raises_or_calls_back() -> None:
    x = NETWORKS["in-place-sum"].batch(5)
    program = captured("in-place-sum", 5)
    module = harden(program, [TMR()])
    uncorrectable(module)
    with pytest.raises(UncorrectableMemory, match="got 1 uncorrectable words in conv1.weight") as info:
        module(x)
    assert info.value.report.uncorrectable == 1
    seen: list[GuardReport] = []
    module = harden(program, [TMR()], on_uncorrectable=seen.append)
    uncorrectable(module)
    assert module(x).shape == (5, 4)
    assert [report.uncorrectable for report in seen] == [1]


def test_loading_and_moving_arm_the_guards_anew() -> None:
    x = NETWORKS["in-place-sum"].batch(5)
    program = captured("in-place-sum", 5)
    other = NETWORKS["in-place-sum"].model(9)
    scores = taylor(program, (x, torch.zeros(len(x), dtype=torch.int64)), loss=F.cross_entropy)
    module = harden(program, [TMR(), Aspis(scores, 0.05)])
    uncorrectable(module)
    module.load_state_dict(other.state_dict())
    assert module.check().detected == 0
    with torch.no_grad():
        assert equal_bits(module(x), other(x))
    module.load_state_dict(other.state_dict(), assign=True)
    with torch.no_grad():
        module.get_parameter("fc.weight").data[0, 0] = 1.0
    assert module.check().corrected >= 1
    assert equal_bits(module.get_parameter("fc.weight"), other.get_parameter("fc.weight"))
    module.to(torch.float64)
    assert module.check().detected == 0
    assert isinstance(module.monitor.guards[1], AspisGuard)
    assert module.monitor.guards[0].copies["fc.weight#1"].dtype == torch.float64
    assert module(x.double()).dtype == torch.float64
    with torch.no_grad():
        module.get_parameter("fc.weight").add_(1.0)
    module.monitor.refresh()
    assert module.check().detected == 0


def test_constants_move_and_are_guarded_with_the_rest() -> None:
    x = NETWORKS["shared"].batch(5)
    module = harden(captured("shared", 5), [TMR()])
    constant = next(name for name in module.memory() if "lifted" in name)
    assert constant not in module.state_dict()
    wanted = module(x)
    module.get_buffer(constant).data.fill_(3.0)
    assert equal_bits(module(x), wanted)
    module.to(torch.float64)
    assert module.get_buffer(constant).dtype == torch.float64
    assert module(x.double()).dtype == torch.float64


def test_train_mode_is_refused_and_eval_is_not() -> None:
    module = harden(captured("in-place-sum", 5), [TMR()])
    assert module.eval() is module
    assert not module.training
    with pytest.raises(HoplonError, match=r"expected a hardened module to stay in eval mode, got train\(\)"):
        module.train()
    with pytest.raises(HoplonError, match="got pickling; save its state_dict"):
        copy.copy(module)


def test_a_deep_copy_is_on_its_own() -> None:
    x = NETWORKS["shared"].batch(5)
    module = harden(captured("shared", 5), [TMR()])
    twin = copy.deepcopy(module)
    assert twin.state_dict().keys() == module.state_dict().keys()
    wanted = module(x)
    with torch.no_grad():
        twin.get_parameter("b.bias").add_(1.0)
    twin.monitor.refresh()
    assert equal_bits(module(x), wanted)
    assert not equal_bits(twin(x), wanted)


def test_where_the_untouched_form_calls_an_operator_once_more_the_functional_form_is_taken() -> None:
    x = NETWORKS["in-place-sum"].batch(5)
    program = captured("in-place-sum", 5)
    over = overlay(program, [Ranger(profile_ranges(program, x[:2] * 0.5))])
    wanted = with_overlay(program, over, x, {})
    graph = program.exported.graph
    first = next(node for node in graph.nodes if "relu" in str(node.target))
    with graph.inserting_before(first):
        extra = graph.call_function(torch.ops.aten.relu.default, (first.args[0],))  # nobody reads it
    extra.meta = dict(first.meta)
    assert site_nodes(program, graph).keys() == {site.name for site in program.value_sites if site.owner != "relu"}
    module = lower(program, over)
    assert not any("relu_" in str(node.target) for node in module.graph_module.graph.nodes)
    assert equal_bits(module(x), wanted)


class Aliases(nn.Module):
    """In the untouched form, operators that look like new values and are views."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2.0
        return torch.einsum("bij->bji", y).type_as(x) + y


def test_a_result_that_shares_memory_is_told_from_a_fresh_one() -> None:
    x = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    program = capture(Aliases().eval(), x)
    fresh = {str(node.target): is_fresh(node) for node in program.exported.graph.nodes if node.op == "call_function"}
    assert fresh == {
        "aten.mul.Tensor": True,
        "aten.einsum.default": False,
        "aten.type_as.default": False,
        "aten.add.Tensor": True,
    }
    sites = {node.meta.get("site") for node in harden(program, []).graph_module.graph.nodes} - {None}
    assert sites == {site.name for site in program.value_sites}


def test_unknown_forms_and_foreign_overlays_are_refused() -> None:
    program = captured("in-place-sum", 5)
    form: Form = "melted"  # type: ignore[assignment]
    with pytest.raises(HoplonError, match="expected form of harden to be 'separate' or 'fused', got 'melted'"):
        harden(program, [], form=form)
    with pytest.raises(HoplonError, match="operator outputs of InPlaceSum, got one of 'relu9:relu'"):
        lower(program, Overlay(values={"relu9:relu": BoundValue(0.0, 1.0)}))
    listing = Ranger(Ranges({"relu:relu": Bound(0.0, 1.0)})).coverage(program)
    assert Coverage("relu:relu", Bound(0.0, 1.0), "profiled") in listing


@pytest.mark.parametrize("form", ["separate", "fused"])
def test_the_compiler_sees_one_graph_without_a_warning(form: Form) -> None:
    x = NETWORKS["branches"].batch(5)
    program = captured("branches", 5)
    module = harden(program, [Ranger(profile_ranges(program, x[:2] * 0.5, batch=2))], form=form)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert equal_bits(compiled(x), module(x))
    assert not equal_bits(module(x), program(x))


def test_bounds_from_zero_are_plain_functions_in_the_graph() -> None:
    x = NETWORKS["in-place-sum"].batch(5)
    program = captured("in-place-sum", 5)
    module = harden(program, [Ranger(profile_ranges(program, x))], form="fused")
    bounds = [node for node in module.graph_module.graph.nodes if "effect" in node.meta]
    assert [node.meta["effect"] for node in bounds] == list(module.overlay.values.values())
    assert {node.op for node in bounds} == {"call_function"}


@pytest.mark.parametrize("chosen", [[], [Shift()]], ids=["bare", "with effects"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_direct_form_gives_the_bits_of_the_graph(name: str, chosen: list[Protection]) -> None:
    program, x = captured(name, 5), NETWORKS[name].batch(5)
    if isinstance(program, EagerProgram):
        pytest.skip("has no graph")
    module = harden(program, chosen)
    leaves = zip(pytree.tree_leaves(module(x)), pytree.tree_leaves(module.graph_module(x)), strict=True)
    for one, other in leaves:
        assert equal_bits(one, other)


def test_the_direct_form_reads_what_the_module_holds_now() -> None:
    program, x = captured("in-place-sum", 5), NETWORKS["in-place-sum"].batch(5)
    module = harden(program, [])
    before = module(x)
    assert module._direct is not None
    for path, owner in module.graph_module.named_modules():
        for key, weight in owner._parameters.items():
            assert weight is not None, path
            owner._parameters[key] = nn.Parameter(weight.detach() * 2)
    assert equal_bits(module(x), module.graph_module(x))
    assert not equal_bits(module(x), before)
    for node in module.graph_module.graph.nodes:
        if node.target == torch.ops.aten.relu.default:
            node.target = torch.ops.aten.sigmoid.default
    changed = module.graph_module(x)
    assert equal_bits(module(x), changed)
    module.graph_module.recompile()
    assert equal_bits(module(x), module.graph_module(x))


def test_the_direct_form_takes_what_the_graph_takes() -> None:
    program, x = captured("in-place-sum", 5), NETWORKS["in-place-sum"].batch(5)
    module = harden(program, [])
    assert equal_bits(module(x=x), module(x))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        module()
