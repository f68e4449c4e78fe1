"""Operators that run twice: replay, module and watched model are one thing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import BitFlip, Campaign, Inputs, Memory, Program, Values, capture, compare
from hoplon.comparison.costs.flops import count_flops
from hoplon.errors import HoplonError, HoplonWarning, SiteError
from hoplon.faults import series_to_words
from hoplon.faults.sampling import ElementUniform, Population, draw_faults, unit_generator
from hoplon.formats import equal_bits, native
from hoplon.injection.replay import Injections, Replay
from hoplon.program.sites import ValueSite
from hoplon.protections.base import Chain, overlay
from hoplon.protections.export.formats import export_pt2
from hoplon.protections.ranges import profile_ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.duplicate import Duplicate, RepeatedOperator, agreed
from hoplon.protections.values.exceedance import exceedances
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import GRAPHS, NETWORKS, captured

BATCH = 4


def program_of(name: str, form: str = "export") -> Program:
    return captured(name, form=form)


def repeated(module: HardenedModule) -> list[RepeatedOperator]:
    return [child for child in module.graph_module.children() if isinstance(child, RepeatedOperator)]


def strikes(operator: Callable[..., Tensor], runs: tuple[int, ...], where: tuple[int, ...], flip: int) -> Any:
    """The operator, one word of its result struck in these runs of it."""
    done = iter(range(1_000))

    def run(*args: Any, **kwargs: Any) -> Tensor:
        result = operator(*args, **kwargs)
        if next(done) in runs:
            result[where] = native(result.dtype).apply(result[where], native(result.dtype).all_ones, flip)
        return result

    return run


def test_two_runs_that_differ_are_settled_by_a_third() -> None:
    right = torch.tensor([1.0, -0.0, math.nan, 4.0])
    for wrong_run in (0, 1):
        runs = [right, right, right]
        runs[wrong_run] = torch.tensor([1.0, 0.0, math.nan, math.inf])
        again = iter(runs[1:])
        assert equal_bits(agreed(runs[0], lambda again=again: next(again)), right)  # type: ignore[misc]
    assert agreed(right, lambda: right) is right
    three = iter([torch.tensor([2.0]), torch.tensor([3.0])])
    assert agreed(torch.tensor([1.0]), lambda: next(three)).tolist() == [1.0]


@pytest.mark.parametrize("with_bounds", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_module_equals_overlay_under_faults_in_every_run_and_before_it(name: str, with_bounds: bool) -> None:
    program, x = program_of(name), NETWORKS[name].batch(BATCH, seed=12)
    ranges = profile_ranges(program, NETWORKS[name].batch(8, seed=11), sites=Values())
    bounds = [Ranger(ranges, last_linear=True)] if with_bounds else []
    over = overlay(program, [*bounds, Duplicate()])
    (site,) = (name for name, effect in over.values.items() if effect.repeats)
    assert isinstance(over.values[site], Chain) == with_bounds
    module = harden(program, over.protections, telemetry=True)
    replay = Replay(program, over, BATCH, program.value_sites)
    golden = replay.golden([x])
    assert equal_bits(module(x), golden.outputs[0])
    assert with_bounds or module.outside_counts[site] == 0
    (place,) = repeated(module)
    plain = place.operator
    population = Population((program.value_site(site),), BitFlip(), torch.arange(BATCH))
    table = draw_faults(population, 20, sampling=ElementUniform(), generator=unit_generator(6, 0))
    one = torch.ones(1, dtype=torch.int64)
    for fault, flip in zip(table.frame.iter_rows(named=True), series_to_words(table.frame["flip"]), strict=True):
        row, element = fault["input"], fault["element"]
        hit = Injections(one * row, one * element, one * native(torch.float32).all_ones, flip.view(1))
        outputs, struck = replay.strike_values(golden, {site: hit})
        assert replay.outvoted.tolist() == [number == row for number in range(BATCH)]
        assert not struck[site].reached.any()
        assert struck[site].before != struck[site].after
        assert equal_bits(outputs[0], golden.outputs[0])
        where = (row, *torch.unravel_index(torch.tensor(element), program.value_site(site).shape))
        for run in (0, 1):
            module.reset_counts()
            place.operator = strikes(plain, (run,), where, int(flip))  # type: ignore[arg-type]
            assert equal_bits(module(x), outputs[0])
            assert module.outside_counts[site] >= 1
        place.operator = strikes(plain, (0, 1), where, int(flip))  # type: ignore[arg-type]  # what both read wrongly
        wrong = module(x)
        place.operator = plain
        after = Replay(program, overlay(program, bounds), BATCH, program.value_sites)
        assert equal_bits(wrong, after.strike_values(after.golden([x]), {site: hit})[0][0])


def test_a_fault_before_or_after_the_two_runs_passes_unseen() -> None:
    program, x = program_of("mlp"), NETWORKS["mlp"].batch(BATCH)
    all_ones, one = native(torch.float32).all_ones, torch.ones(1, dtype=torch.int64)
    hit = Injections(one, one, one * all_ones, one << 30)
    plain, over = overlay(program, []), overlay(program, [Duplicate()])
    for site, placement in ((":tanh", "before"), ("fc3:linear", "after")):
        outputs = []
        for each in (plain, over):
            replay = Replay(program, each, BATCH, program.value_sites, placement)  # type: ignore[arg-type]
            outputs.append(replay.strike_values(replay.golden([x]), {site: hit})[0][0])
            assert not replay.outvoted.any()
        assert equal_bits(*outputs)
        assert not equal_bits(outputs[0], program(x))
    module = harden(program, [Duplicate()], telemetry=True)
    with torch.no_grad():
        module.get_parameter("fc3.weight")[0, 0] = 1e30
    assert not equal_bits(module(x), program(x))
    assert module.outside_counts == {"fc3:linear": 0}


@pytest.mark.parametrize("form", ["export", "eager"])
def test_a_campaign_calls_such_faults_detected_and_corrected(form: str) -> None:
    program, x = program_of("concat", form), NETWORKS["concat"].batch(12)
    table = Campaign(program, Inputs(x), sites=Values(kind="linear"), fault_model=BitFlip(bits=(30, 31))).draw(
        count=40, seed=0
    )
    found = compare(program, Inputs(x), arms={"none": [], "twice": [Duplicate()]}, faults=table, latency=False)
    none, twice = (found[arm, "values"].results.runs for arm in ("none", "twice"))
    assert none["top-1"].is_in(["sdc", "nonfinite"]).any()
    assert set(twice["top-1"].unique()) == {"identical"}
    assert twice["detected"].all()
    assert twice["corrected"].all()
    assert not twice["reached"].any()
    memory = Campaign(program, Inputs(x), sites=Memory(kind="linear"), fault_model=BitFlip(bits=(30,))).draw(
        count=5, seed=0
    )
    both = compare(program, Inputs(x), arms={"none": [], "twice": [Duplicate()]}, faults=memory, latency=False)
    left, right = (both[arm, "memory"].results.runs for arm in ("none", "twice"))
    assert left["top-1"].equals(right["top-1"])


def test_a_watched_model_runs_the_operator_twice_too() -> None:
    program, x = program_of("concat", "eager"), NETWORKS["concat"].batch(1)
    with pytest.warns(HoplonWarning, match="every operator passes through Python"):
        module = harden(program, [Duplicate()], telemetry=True)
    watched: Any = module._runner
    protect = watched._protect

    def strike(call: Any) -> None:
        for identity, output in call.outputs():
            if ValueSite(identity.owner, identity.kind, identity.call, identity.output).name == "head:linear":
                output[0, 0] = 1e30
        protect(call)

    object.__setattr__(watched, "_protect", strike)
    assert equal_bits(module(x), program(x))
    assert module.outside_counts == {"head:linear": 1}


def test_flops_count_the_operator_once_more() -> None:
    program = program_of("concat")
    for convention in ("tensorflow", "fused"):
        found = count_flops(program, [Duplicate()], convention=convention)  # type: ignore[arg-type]
        linear = next(entry for entry in found.operators if entry.name == "head:linear")
        assert linear.flops > 0
        assert found.protection == linear.protection == linear.flops + 4


def test_a_copy_counts_on_its_own_and_the_compiler_keeps_both_runs() -> None:
    program, x = program_of("mlp"), NETWORKS["mlp"].batch(2)
    module = harden(program, [Duplicate(("fc1:linear", "fc3:linear"))], telemetry=True)
    twin = copy.deepcopy(module)
    for place in repeated(twin):
        place.operator = strikes(place.operator, (0,), (0, 0), 1 << 30)
    torch.compiler.reset()
    compiled = torch.compile(twin, backend="aot_eager")
    assert equal_bits(compiled(x), program(x))
    assert twin.outside_counts == {"fc1:linear": 1, "fc3:linear": 1}
    assert module.outside_counts == {"fc1:linear": 0, "fc3:linear": 0}


class Several(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values, places = F.max_pool1d(x, 2, return_indices=True)
        return (values + places).relu_()


def test_what_cannot_run_twice_is_refused(tmp_path: Path) -> None:
    program = program_of("concat")
    with pytest.raises(
        HoplonError, match=r"expected sites of Duplicate to be a sequence \(each a text\) or None, got 'head:linear'"
    ):
        Duplicate("head:linear")  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="expected a value site of Concat, got 'nobody:linear'"):
        overlay(program, [Duplicate(("nobody:linear",))])
    several = capture(Several().eval(), torch.randn(2, 3, 4))
    with pytest.raises(HoplonError, match="expected a linear layer in Several to duplicate, got none"):
        overlay(several, [Duplicate()])
    with pytest.raises(HoplonError, match="can run twice at :max_pool, got max_pool, which has several outputs"):
        overlay(several, [Duplicate((":max_pool",))])
    with pytest.raises(
        HoplonError, match=r"can run twice at :relu, got aten.relu_.default, which writes over its input"
    ):
        harden(several, [Duplicate((":relu",))])
    with pytest.raises(HoplonError, match="writes over its input"):
        overlay(capture(Several().eval(), torch.randn(2, 3, 4), form="eager"), [Duplicate((":relu",))])
    with pytest.raises(HoplonError, match="a module that runs each operator once, got duplicate: .* merges equal"):
        export_pt2(harden(program, [Duplicate()]), tmp_path / "twice.pt2")
    with pytest.raises(HoplonError, match="expected a protection that bounds values, got none"):
        exceedances(program, [Duplicate()], NETWORKS["concat"].batch(2))
