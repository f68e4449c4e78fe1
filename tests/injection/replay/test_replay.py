"""Replay against the naive injector, fault by fault, bit for bit; the order of fault and protection at a site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hoplon import capture
from hoplon.formats import equal_bits
from hoplon.injection.replay import Injections, Placement, Replay
from hoplon.protections.base import Overlay, ValueProtection
from tests.reference.forward import faulty_memory_outputs, faulty_outputs
from tests.support.networks import GRAPHS, NETWORKS, captured

BATCH = 4
ALL = (1 << 32) - 1


@dataclass(frozen=True)
class _Shot:
    site: str
    row: int
    element: int
    positions: tuple[int, ...]


def _shots(sites: list[tuple[str, int]], per_site: int, seed: int) -> list[_Shot]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    shots = []
    for name, numel in sites:
        for number in range(per_site):
            count = 1 + number % 3
            positions = torch.randperm(32, generator=generator)[:count].tolist()
            element = numel - 1 if number == 0 else draw(numel)
            positions = [30] if number == 1 else positions
            shots.append(_Shot(name, draw(BATCH), element, tuple(positions)))
    return shots


def _hits(shots: list[_Shot]) -> dict[str, Injections]:
    grouped: dict[str, list[_Shot]] = {}
    for shot in shots:
        grouped.setdefault(shot.site, []).append(shot)
    return {
        site: Injections(
            rows=torch.tensor([shot.row for shot in members]),
            elements=torch.tensor([shot.element for shot in members]),
            keep=torch.full((len(members),), ALL),
            flip=torch.tensor([sum(1 << p for p in shot.positions) for shot in members]),
        )
        for site, members in grouped.items()
    }


def _passes(shots: list[_Shot]) -> list[list[_Shot]]:
    """Shots on different rows side by side, in an order that mixes sites."""
    order = torch.randperm(len(shots), generator=torch.Generator().manual_seed(4)).tolist()
    by_row = [[shots[i] for i in order if shots[i].row == row] for row in range(BATCH)]
    longest = max(len(row) for row in by_row)
    return [[row[turn] for row in by_row if turn < len(row)] for turn in range(longest)]


@pytest.mark.parametrize("name", GRAPHS)
def test_value_faults_equal_the_naive_injector(name: str) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(BATCH)
    program = capture(model, x)
    replay = Replay(program, Overlay(), BATCH, program.value_sites)
    golden = replay.golden([x])
    shots = _shots([(site.name, site.numel) for site in program.value_sites], per_site=9, seed=3)
    for chunk in _passes(shots):
        outputs, struck = replay.strike_values(golden, _hits(chunk))
        assert sum(len(met.before) for met in struck.values()) == len(chunk)
        assert all(bool((met.before != met.after).all()) for met in struck.values())
        for shot in chunk:
            wanted = faulty_outputs(model, x, shot.site, shot.row, [(shot.element, list(shot.positions))])
            assert equal_bits(outputs[0][shot.row], wanted[shot.row]), shot


@pytest.mark.parametrize("name", GRAPHS)
def test_several_words_of_one_fault_equal_the_naive_injector(name: str) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(BATCH)
    program = capture(model, x)
    site = max(program.value_sites, key=lambda s: s.numel)
    replay = Replay(program, Overlay(), BATCH, [site])
    hits = {
        site.name: Injections(
            rows=torch.tensor([1, 1, 1]),
            elements=torch.tensor([0, 1, site.numel - 1]),
            keep=torch.full((3,), ALL),
            flip=torch.tensor([1 << 30, 1 << 22, 1 << 31]),
        )
    }
    outputs, _ = replay.strike_values(replay.golden([x]), hits)
    changes = [(0, [30]), (1, [22]), (site.numel - 1, [31])]
    assert equal_bits(outputs[0][1], faulty_outputs(model, x, site.name, 1, changes)[1])


@pytest.mark.parametrize("name", GRAPHS)
def test_memory_faults_equal_the_naive_injector(name: str) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(BATCH)
    program = capture(model, x)
    replay = Replay(program, Overlay(), BATCH, program.memory_sites)
    golden = replay.golden([x])
    for shot in _shots([(site.name, site.numel) for site in program.memory_sites], per_site=6, seed=5):
        site = program.memory_site(shot.site)
        memory = program.memory()
        broken = memory[site.name].clone()
        flat = broken.view(torch.int32).view(-1)
        for position in shot.positions:
            flat[shot.element] ^= (1 << position) - (1 << 32 if position == 31 else 0)
        names = (site.name, *site.aliases)
        held = {**memory, **dict.fromkeys(names, broken)}
        outputs = replay.strike_memory(golden, held, dict.fromkeys(names))
        entry = torch.tensor([shot.element // max(1, site.numel // max(1, *site.shape[:1], 1))])
        alone = replay.strike_memory(golden, held, dict.fromkeys(names, entry if site.shape else None))
        assert equal_bits(alone[0], outputs[0]), shot
        wanted = faulty_memory_outputs(model, x, shot.site, shot.element, list(shot.positions))
        assert equal_bits(outputs[0], wanted), shot


@pytest.mark.parametrize("name", GRAPHS)
def test_no_flip_gives_the_golden_output(name: str) -> None:
    net = NETWORKS[name]
    x = net.batch(BATCH)
    program = capture(net.model(), x)
    replay = Replay(program, Overlay(), BATCH, program.value_sites)
    golden = replay.golden([x])
    nothing, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    for site in program.value_sites:
        hit = Injections(rows=one, elements=nothing, keep=one * ALL, flip=nothing)
        outputs, struck = replay.strike_values(golden, {site.name: hit})
        assert equal_bits(outputs[0], golden.outputs[0])
        assert not struck[site.name].reached.any()
    hit = Injections(rows=one, elements=nothing, keep=one * ALL, flip=one << 30)
    last = program.value_sites[-1].name
    outputs, struck = replay.strike_values(golden, {last: hit})
    assert struck[last].reached.all()
    assert not equal_bits(outputs[0][1], golden.outputs[0][1])
    assert equal_bits(outputs[0][0], golden.outputs[0][0])


@dataclass(frozen=True)
class _Cap(ValueProtection):
    """Nothing above the cap."""

    cap: float

    def __call__(self, value: Tensor) -> Tensor:
        return value.clamp(max=self.cap)

    def apply_(self, value: Tensor) -> Tensor:
        return value.clamp_(max=self.cap)


@pytest.mark.parametrize(("placement", "expected"), [("before", 0.5), ("after", math.inf)])
def test_placement_decides_who_is_last_at_a_site(placement: Placement, expected: float) -> None:
    net = NETWORKS["mlp"]
    program = captured("mlp", BATCH)
    over = Overlay("cap", {":relu": _Cap(0.5)})
    replay = Replay(program, over, BATCH, [program.value_site(":relu")], placement)
    golden = replay.golden([net.batch(BATCH)])
    assert float(golden.delivered[program.site_steps[":relu"]].max()) == 0.5
    infinity = 0x7F800000
    hit = Injections(torch.tensor([0]), torch.tensor([2]), keep=torch.tensor([0]), flip=torch.tensor([infinity]))
    outputs, struck = replay.strike_values(golden, {":relu": hit})
    assert int(struck[":relu"].after[0]) == infinity
    hidden = golden.delivered[program.site_steps[":relu"]][0].clone()
    hidden[2] = expected
    second = torch.tanh(hidden @ program.memory()["fc2.weight"].T + program.memory()["fc2.bias"])
    wanted = second @ program.memory()["fc3.weight"].T + program.memory()["fc3.bias"]
    assert torch.allclose(outputs[0][0], wanted, atol=1e-5)


def test_a_value_recomputed_after_an_earlier_fault_is_protected_before_a_later_strike() -> None:
    """Two words of one fault, the later site downstream of the earlier one, under placement "after"."""
    net = NETWORKS["mlp"]
    x = net.batch(BATCH)
    program = capture(net.model(), x)
    over = Overlay("cap", {":relu": _Cap(0.25), ":tanh": _Cap(0.25)})
    one, zero = torch.tensor([0]), torch.tensor([0])
    for placement in ("before", "after"):
        replay = Replay(program, over, BATCH, program.value_sites, placement)
        golden = replay.golden([x])
        hits = {
            "fc1:linear": Injections(one, zero, torch.tensor([ALL]), torch.tensor([1 << 30])),
            ":tanh": Injections(one, torch.tensor([1]), torch.tensor([ALL]), torch.tensor([1 << 31])),
        }
        outputs, struck = replay.strike_values(golden, hits)
        memory = program.memory()
        hidden = x @ memory["fc1.weight"].T + memory["fc1.bias"]
        hidden.view(torch.int32)[0, 0] ^= 1 << 30
        second = torch.tanh(hidden.relu().clamp(max=0.25) @ memory["fc2.weight"].T + memory["fc2.bias"])
        if placement == "before":
            second[0, 1] *= -1
            second = second.clamp(max=0.25)
        else:
            second = second.clamp(max=0.25)
            second[0, 1] *= -1
        wanted = second @ memory["fc3.weight"].T + memory["fc3.bias"]
        assert torch.allclose(outputs[0], wanted, atol=1e-5)
        assert equal_bits(outputs[0][1:], golden.outputs[0][1:])
        assert bool((struck[":tanh"].before ^ struck[":tanh"].after == 1 << 31).all())
