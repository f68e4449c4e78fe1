"""The hardened module and the overlay are one thing: bit for bit, fault-free and under 200 sampled faults a net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from hoplon import Inputs, Memory, Values
from hoplon.faults import BitFlip, FaultTable, series_to_words
from hoplon.faults.sampling import ElementUniform, Population, draw_faults, unit_generator
from hoplon.formats import equal_bits, native
from hoplon.injection.replay import Injections, Replay
from hoplon.injection.working_memory import WorkingMemory, strike_word
from hoplon.program.program import Program
from hoplon.protections.base import Overlay, overlay
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges import profile_ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import GRAPHS, NETWORKS, captured

BATCH, FAULTS = 4, 100


class _Injecting(fx.Interpreter):
    """Runs the hardened module's graph and strikes one word in the output of one site, before its protection."""

    def __init__(self, module: fx.GraphModule, site: str, row: int, element: int, flip: int) -> None:
        super().__init__(module)
        self._site, self._row, self._element, self._flip = site, row, element, flip
        self.landed = False

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.meta.get("site") == self._site:
            sample = result[self._row]
            where = tuple(int(i) for i in torch.unravel_index(torch.tensor(self._element), sample.shape))
            sample[where] = native(sample.dtype).apply(sample[where], native(sample.dtype).all_ones, self._flip)
            self.landed = True
        return result


def _setting(name: str) -> tuple[Program, Tensor, Overlay, HardenedModule]:
    net = NETWORKS[name]
    program = captured(name)
    ranges = profile_ranges(program, Inputs(net.batch(8, seed=11)))  # few inputs: some golden values are bounded too
    over = overlay(program, [Ranger(ranges)])
    return program, net.batch(BATCH, seed=12), over, lower(program, over)


def _drawn(program: Program, sites: Values | Memory) -> FaultTable:
    inputs = torch.arange(BATCH) if isinstance(sites, Values) else None
    population = Population(sites.select(program), BitFlip(), inputs)
    return draw_faults(population, FAULTS, sampling=ElementUniform(), generator=unit_generator(6, 0))


@pytest.mark.parametrize("name", GRAPHS)
def test_module_equals_overlay_fault_free_and_under_value_faults(name: str) -> None:
    program, x, over, module = _setting(name)
    replay = Replay(program, over, BATCH, program.value_sites)
    golden = replay.golden([x])
    with torch.inference_mode():
        assert equal_bits(module(x), golden.outputs[0])
    table = _drawn(program, Values())
    flips = series_to_words(table.frame["flip"])
    for fault, flip in zip(table.frame.iter_rows(named=True), flips, strict=True):
        row, one = fault["input"], torch.ones(1, dtype=torch.int64)
        hit = Injections(one * row, one * fault["element"], one * native(torch.float32).all_ones, flip.view(1))
        outputs, _ = replay.strike_values(golden, {fault["site"]: hit})
        injecting = _Injecting(module.graph_module, fault["site"], row, fault["element"], int(flip))
        with torch.inference_mode():
            found = injecting.run(x.clone())
        assert injecting.landed
        assert equal_bits(found, outputs[0]), fault


@pytest.mark.parametrize("name", GRAPHS)
def test_module_equals_overlay_under_memory_faults(name: str) -> None:
    program, x, over, module = _setting(name)
    replay = Replay(program, over, BATCH, program.memory_sites)
    golden = replay.golden([x])
    table = _drawn(program, Memory())
    memory, live = WorkingMemory(program), module.memory()
    for fault, flip in zip(table.frame.iter_rows(named=True), series_to_words(table.frame["flip"]), strict=True):
        site, form = program.memory_site(fault["site"]), native(torch.float32)
        strike_word(memory.tensors[site.name], fault["element"], form=form, keep=form.all_ones, flip=int(flip))
        names = (site.name, *site.aliases)
        outputs = replay.strike_memory(golden, memory.tensors, dict.fromkeys(names))
        with torch.inference_mode():
            live[site.name].copy_(memory.tensors[site.name])
            assert equal_bits(module(x), outputs[0]), fault
            memory.restore([site.name])
            live[site.name].copy_(memory.tensors[site.name])
    with torch.inference_mode():
        assert equal_bits(module(x), golden.outputs[0])


@pytest.mark.parametrize("name", GRAPHS)
def test_a_guarded_module_repairs_what_its_overlay_repairs(name: str) -> None:
    net = NETWORKS[name]
    program, x = captured(name), net.batch(BATCH)
    module = lower(program, overlay(program, [TMR()]))
    with torch.inference_mode():
        wanted = module(x)
        for tensor in module.memory().values():
            if tensor.is_floating_point():
                tensor.data.view(-1)[-1] = float("nan")
        assert equal_bits(module(x), wanted)
    assert module.monitor.report.corrected > 0
    assert module.monitor.report.uncorrectable == 0
