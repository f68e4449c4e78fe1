"""Replay by regions against forwards with hooks: random networks, faults of every size, many at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from hoplon import Campaign, Inputs, TopK, Values, capture
from hoplon.formats import equal_bits
from hoplon.injection.packing import packed
from hoplon.injection.replay import GoldenStack, Injections, RegionReplay
from hoplon.injection.replay.kernel_forms import _Trials
from hoplon.injection.replay.row_dependence import RowDependence
from hoplon.injection.replay.whole_maps import size_of_passes
from hoplon.program.program import Program
from hoplon.program.sites import ValueSite
from hoplon.protections.base import Overlay, ValueProtection
from hoplon.protections.values.clamp import BoundValue
from tests.support.oracles import naive_forward
from tests.support.strategies import BATCH, BITS, LAYERS, PHASES, SIZES, Layer, Random

ALL = (1 << 32) - 1
BATCHES = 2
# Words that are NaN or infinite, the largest, the smallest, and minus zero.
WORDS = (0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80000000)


@dataclass(frozen=True)
class Faults:
    sites: list[ValueSite]
    site: Tensor
    row: Tensor
    element: Tensor
    keep: Tensor
    flip: Tensor

    @classmethod
    def drawn(cls, sites: list[ValueSite], count: int, seed: int) -> Faults:
        generator = torch.Generator().manual_seed(seed)
        site = torch.randint(len(sites), (count,), generator=generator)
        sizes = torch.tensor([s.numel for s in sites])[site]
        element = (torch.rand(count, generator=generator, dtype=torch.float64) * sizes).long()
        row = torch.randint(BATCHES * BATCH, (count,), generator=generator)
        bits = 1 << torch.tensor(BITS)[torch.randint(len(BITS), (count,), generator=generator)]
        words = torch.tensor(WORDS)[torch.randint(len(WORDS), (count,), generator=generator)]
        flips = torch.rand(count, generator=generator) < 0.7
        return cls(sites, site, row, element, torch.where(flips, ALL, 0), torch.where(flips, bits, words))

    def hits(self) -> tuple[dict[str, Injections], dict[str, Tensor]]:
        hits, runs = {}, {}
        for number in self.site.unique().tolist():
            mine = (self.site == number).nonzero().flatten()
            name = self.sites[number].name
            hits[name] = Injections(self.row[mine], self.element[mine], self.keep[mine], self.flip[mine])
            runs[name] = mine
        return hits, runs


def naive(model: nn.Module, x: Tensor, faults: Faults, run: int, bounds: dict[str, ValueProtection]) -> Tensor:
    """A whole forward of its batch, every operator run, the fault put in where it belongs: that sample's output."""
    number, row = divmod(int(faults.row[run]), BATCH)
    struck, landed = faults.sites[int(faults.site[run])].name, []

    def change(site: str, value: Tensor) -> Tensor:
        if site == struck:
            value, landed[:] = value.clone(), [site]
            where = (row, *torch.unravel_index(faults.element[run], value.shape[1:]))
            word = (int(value.view(torch.int32)[where]) & ALL & int(faults.keep[run])) ^ int(faults.flip[run])
            value.view(torch.int32)[where] = word - (1 << 32) if word >> 31 else word
        return bounds[site](value) if site in bounds else value

    output = naive_forward(model, x.split(BATCH)[number], change)[row]
    assert landed, struck
    return output


@dataclass(frozen=True)
class Found:
    """What replay by regions and naive forwards gave for the same runs."""

    replayed: Tensor
    wanted: Tensor
    struck: int
    covered: int


def whole(program: Program, x: Tensor, faults: Faults, run: int, bounds: dict[str, ValueProtection]) -> Tensor:
    """As `naive`, of a program whose kernels are not the model's: every step of it is run."""
    number, row = divmod(int(faults.row[run]), BATCH)
    struck = program.site_steps[faults.sites[int(faults.site[run])].name]
    protections = {program.site_steps[name]: bound for name, bound in bounds.items()}

    def hook(step: int, value: Any) -> Any:
        if step == struck:
            value = value.clone()
            where = (row, *torch.unravel_index(faults.element[run], value.shape[1:]))
            word = (int(value.view(torch.int32)[where]) & ALL & int(faults.keep[run])) ^ int(faults.flip[run])
            value.view(torch.int32)[where] = word - (1 << 32) if word >> 31 else word
        return protections[step](value) if step in protections else value

    with torch.inference_mode():
        outputs: list[Tensor] = program.run([x.split(BATCH)[number]], hook=hook)
    return outputs[0][row]


def compared(
    model: nn.Module,
    x: Tensor,
    count: int,
    seed: int,
    *,
    bounded: bool = False,
    tight: bool = False,
    with_packed: bool = False,
) -> Found:
    plain = capture(model, x[:BATCH])
    program = packed(plain) if with_packed else plain
    limits = {s.name: BoundValue(0.0, 1.5) for s in program.value_sites if bounded and s.kind == "relu"}
    over = Overlay("bounds", limits)
    sites = list(program.value_sites)
    replay = RegionReplay(program, over, BATCH, sites, room=0 if tight else inf)
    golden = GoldenStack(BATCH, {number: replay.golden([part]) for number, part in enumerate(x.split(BATCH))})
    covered = [site for site in sites if replay.covers(site.name)]
    faults = Faults.drawn(covered, count, seed)
    outputs, struck = replay.strike_many(golden, *faults.hits(), count)
    again = packed(plain) if with_packed else None  # with weights that it packs itself
    wanted = torch.stack(
        [
            naive(model, x, faults, run, limits) if again is None else whole(again, x, faults, run, limits)
            for run in range(count)
        ]
    )
    return Found(outputs[0], wanted, sum(len(met.before) for met in struck.values()), len(covered))


FOUND = (
    # one pixel to a window, few products: kernels that sum in another order hide behind few values
    (("conv", (0,) * 6), ("conv", (0,) * 6), ("conv", (0,) * 6), ("conv", (0, 0, 0, 0, 1, 0)), (5, 5), 1),
    (
        *(("thin", (0, 2, 4, 1, 4, 1)), ("conv", (5, 3, 5, 0, 3, 3)), ("conv", (2, 2, 1, 0, 1, 2))),
        *(("thin", (0, 2, 4, 1, 4, 1)), ("conv", (2, 4, 4, 1, 4, 2)), (14, 6), 0),
    ),
    # an operator with several results just before a step that is tied to rows
    (
        *(("conv", (4, 1, 2, 3, 3, 3)), ("max", (1, 3, 2, 4, 1, 1)), ("max", (2, 3, 4, 2, 4, 1))),
        *(("norm", (2, 3, 0, 5, 5, 0)), ("conv", (5, 2, 1, 0, 3, 5)), ("relu", (1, 3, 2, 4, 1, 1)), (14, 7), 123),
    ),
    # maps of one pixel, which count as contiguous with any strides, and kernels go by strides
    (
        *(("conv", (5, 1, 2, 0, 4, 1)), ("norm", (1, 3, 2, 0, 4, 5)), ("norm", (1, 3, 2, 0, 4, 5))),
        *(("conv", (4, 5, 1, 3, 0, 1)), ("residual", (1, 1, 5, 3, 5, 3)), ("relu", (3, 0, 3, 1, 4, 3))),
        *(("relu", (5, 3, 2, 2, 1, 1)), ("relu", (3, 1, 4, 1, 1, 4)), (7, 10), 34),
    ),
)


@pytest.mark.parametrize("found", FOUND)
def test_networks_that_once_differed(found: tuple[Any, ...]) -> None:
    *layers, size, seed = found
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Random(tuple(Layer(*layer) for layer in layers), size).eval()
        x = torch.randn(BATCHES * BATCH, 4, *size)
    found = compared(model, x, 60, seed)
    assert equal_bits(found.replayed, found.wanted)
    assert found.struck == 60
    assert found.covered > 1


def of_random(
    layers: tuple[Layer, ...], size: tuple[int, int], seed: int, count: int, *, with_packed: bool, **how: bool
) -> Found:
    """The same of a random network; packed kernels need a convolution."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Random((Layer("conv", (2, 2, 1, 1, 1, 0)), *layers) if with_packed else layers, size).eval()
        x = torch.randn(BATCHES * BATCH, 4, *size)
    return compared(model, x, count, seed, with_packed=with_packed, **how)


KERNELS = pytest.mark.parametrize("with_packed", [False, True], ids=["exact", "packed"])


@KERNELS
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(LAYERS, SIZES, st.integers(0, 2**16), st.booleans(), st.booleans())
def test_regions_of_random_networks_equal_whole_forwards(
    with_packed: bool, layers: tuple[Layer, ...], size: tuple[int, int], seed: int, bounded: bool, tight: bool
) -> None:
    found = of_random(layers, size, seed, 24, with_packed=with_packed, bounded=bounded, tight=tight)
    assert equal_bits(found.replayed, found.wanted)
    assert found.struck == 24


@pytest.mark.slow
@KERNELS
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(LAYERS, SIZES, st.integers(0, 2**16), st.booleans(), st.booleans())
def test_regions_of_many_random_networks_equal_whole_forwards(
    with_packed: bool, layers: tuple[Layer, ...], size: tuple[int, int], seed: int, bounded: bool, tight: bool
) -> None:
    found = of_random(layers, size, seed, 60, with_packed=with_packed, bounded=bounded, tight=tight)
    assert equal_bits(found.replayed, found.wanted)
    assert found.struck == 60


class Shuffled(nn.Module):
    """Lists of halves, a folded batch, and norms of few values: what sits oddly in a pass of any rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.norm, self.last = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.first(x).chunk(2, 1)
        pair = torch.stack([kept, self.second(changed).relu()], 2).flatten(1, 2)
        return self.last(self.norm(self.head(pair.mean((2, 3)))).relu())


@KERNELS
@pytest.mark.parametrize(
    "tied", [(), (1, 2, 4), (1, 2, 4, BATCH)], ids=["examined", "tied to a whole batch", "tied to rows"]
)
def test_passes_of_any_rows_equal_whole_forwards(
    tied: tuple[int, ...], with_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = RowDependence._differs
    monkeypatch.setattr(
        RowDependence, "_differs", lambda self, step, size, *a: size in tied or examined(self, step, size, *a)
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Shuffled().eval(), torch.randn(BATCHES * BATCH, 4, 6, 6)
    for count in (200, 9):  # passes of whole batches, and smaller ones
        found = compared(model, x, count, 3, with_packed=with_packed)
        assert equal_bits(found.replayed, found.wanted)


def test_kernels_of_a_program_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    examined = RowDependence._differs
    monkeypatch.setattr(RowDependence, "_differs", lambda self, *a: (looks.append(a[0]), examined(self, *a))[1])
    tried = _Trials.agree
    monkeypatch.setattr(_Trials, "agree", lambda self, *a: (looks.append(-1), tried(self, *a))[1])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 5)
        model, x = nn.Sequential(*layers).eval(), torch.randn(8, 4, 16, 16)
    program = capture(model, x)
    campaign = Campaign(program, Inputs(x), sites=Values(), criterion=TopK(1), batch=4)
    campaign.run(count=40)
    assert len(looks) > looks.count(-1) > 0
    looks.clear()
    campaign.run(count=40)
    assert not looks
    campaign.run(count=40, threads=2)
    assert looks


@pytest.mark.parametrize(("runs", "batch", "size"), [(1, 64, 2), (9, 64, 2), (50, 32, 8), (1000, 32, 32), (5, 1, 1)])
def test_runs_are_spread_over_several_passes(runs: int, batch: int, size: int) -> None:
    assert size_of_passes(runs, batch) == size
