"""Memory faults along few channels against whole forwards with the same memory: random networks, all tensors."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from hoplon import capture
from hoplon.formats import equal_bits
from hoplon.injection.replay import Golden, Replay
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite
from hoplon.protections.base import Overlay
from hoplon.protections.values.clamp import BoundValue
from tests.support.networks import CHANNELS, Wide
from tests.support.oracles import naive_forward, with_flipped_bit
from tests.support.strategies import BATCH, BITS, LAYERS, PHASES, SIZES, Layer, Random


def struck(program: Program, site: MemorySite, element: int, bit: int) -> tuple[dict[str, Tensor], list[str]]:
    """The memory with one bit flipped, and all names of the tensor."""
    broken = program.memory()[site.name].detach().clone()
    index = torch.unravel_index(torch.tensor(element), broken.shape)
    broken.view(torch.int32)[index] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
    names = [site.name, *site.aliases]
    return {**program.memory(), **dict.fromkeys(names, broken)}, names


def outputs(program: Program, replay: Replay, golden: Golden, site: MemorySite, element: int, bit: int) -> Tensor:
    memory, names = struck(program, site, element, bit)
    entry = torch.tensor([element // (site.numel // site.shape[0])])
    found: Tensor = replay.strike_memory(golden, memory, dict.fromkeys(names, entry))[0]
    return found


def naive(
    model: nn.Module, x: Tensor, site: MemorySite, element: int, bit: int, bounds: Mapping[str, BoundValue]
) -> Tensor:
    """A whole forward of a copy of the model with the bit flipped."""

    def change(name: str, value: Tensor) -> Tensor:
        return bounds[name](value) if name in bounds else value

    return naive_forward(with_flipped_bit(model, site.name, element, bit), x, change)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(LAYERS, SIZES, st.integers(0, 2**16), st.booleans())
def test_memory_faults_in_random_networks_equal_whole_forwards(
    layers: tuple[Layer, ...], size: tuple[int, int], seed: int, bounded: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = Random(layers, size).eval(), torch.randn(BATCH, 4, *size)
    program = capture(model, x)
    limits = {s.name: BoundValue(0.0, 1.5) for s in program.value_sites if bounded and s.kind == "relu"}
    sites = [site for site in program.memory_sites if site.shape and site.dtype == torch.float32]
    replay = Replay(program, Overlay("bounds", limits), BATCH, sites)
    golden = replay.golden([x])
    for number, site in enumerate(sites * 2):
        element, bit = (seed * 31 + number * 7919) % site.numel, BITS[(seed + number) % len(BITS)]
        wanted = naive(model, x, site, element, bit, limits)
        assert equal_bits(outputs(program, replay, golden, site, element, bit), wanted), (site.name, element, bit)


def assert_struck_channel_by_channel(model: nn.Module, x: Tensor, name: str) -> None:
    """Bits as in whole forwards, and the operator that reads the struck memory does not run whole."""
    program = capture(model, x)
    site = program.memory_site(name)
    replay = Replay(program, Overlay(), 4, [site])
    golden = replay.golden([x])
    read = next(step for step, known in program.memory_steps.items() if known == name)
    for element, bit in ((0, 30), (site.numel - 1, 22), (site.numel // 2, 0), (site.numel // 3, 31)):
        wanted = naive(model, x, site, element, bit, {})
        before = replay.statistics.operators
        assert equal_bits(outputs(program, replay, golden, site, element, bit), wanted), (element, bit)
        assert replay.statistics.operators - before < program.descendants[read].bit_count()


@pytest.mark.parametrize(
    "name", ["first.weight", "first.bias", "second.weight", "norms.0.weight", "norms.1.running_var"]
)
def test_a_wide_network_is_struck_channel_by_channel(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Wide().eval(), torch.randn(4, 4, 9, 9)
    assert_struck_channel_by_channel(model, x, name)


def test_a_fault_that_no_channel_shows_runs_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Wide().eval(), torch.randn(4, 4, 9, 9)
        with torch.no_grad():
            model.norms[0].bias[5] = -1e6
    program = capture(model, x)
    site = program.memory_site("first.weight")
    replay = Replay(program, Overlay(), 4, [site])
    golden = replay.golden([x])
    assert equal_bits(outputs(program, replay, golden, site, 5 * 4 * 9 + 2, 23), golden.outputs[0])
    assert replay.statistics.operators == replay.statistics.passes == 0
    assert not equal_bits(outputs(program, replay, golden, site, 6 * 4 * 9 + 2, 30), golden.outputs[0])
    assert replay.statistics.passes == 1


class Separable(nn.Module):
    """A depthwise convolution, whose channels are not taken alone, a batch norm and a linear layer, whose are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2, groups=CHANNELS, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.hidden = nn.Linear(CHANNELS * 25, 2048)
        self.head = nn.Linear(2048, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.depthwise(self.stem(x).relu())).relu().flatten(1)
        return self.head(self.hidden(x).relu())


@pytest.mark.parametrize("name", ["hidden.weight", "hidden.bias", "norm.bias"])
def test_linear_layers_are_struck_channel_by_channel(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, x = Separable().eval(), torch.randn(4, 4, 9, 9)
    assert_struck_channel_by_channel(model, x, name)
