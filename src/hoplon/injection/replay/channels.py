"""Faults in memory that feed few channels of one feature map: those channels alone, up to where others read them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hoplon.formats.base import equal_bits
from hoplon.injection.replay.values import Protections, StepValues
from hoplon.program.layout import BatchLayout
from hoplon.program.operators import has
from hoplon.program.program import Program, Ref, Step

_aten: Any = torch.ops.aten
_CONVOLUTIONS = (_aten.conv2d.default, _aten.convolution.default)
_LINEAR = _aten.linear.default
_PRODUCTS = (*_CONVOLUTIONS, _LINEAR)
_BATCH_NORM = _aten._native_batch_norm_legit_no_training.default
# So many output channels of a convolution or linear layer are computed together: kernels work on blocks of them.
_BLOCKS = (16, 32, 64)
# Groups of a grouped convolution that are computed together.
_GROUPS = (1, 8, 16, 32)
_ENOUGH_VALUES = 4096


@dataclass(frozen=True)
class Chain:
    """A step that reads a changed tensor, and the steps after it that treat each channel alike and alone.

    ``steps``: in order, each with one reader, the next; ``end``: the last one, whose value others read.
    """

    name: str
    steps: tuple[Step, ...]

    @property
    def end(self) -> int:
        """The step whose value is put together again."""
        return self.steps[-1].index


def chains_of(program: Program, protections: Protections, names: Sequence[str]) -> dict[str, Chain]:
    """The chains of tensors that one convolution, linear layer or batch norm reads, by the name it reads them under."""
    found: dict[str, Chain] = {}
    for given, name in program.memory_steps.items():
        if name in names and len(readers := program.readers[given]) == 1:
            steps = _followed(program, protections, readers[0])
            if steps:
                found[name] = Chain(name, steps)
    return found


def _followed(program: Program, protections: Protections, first: int) -> tuple[Step, ...]:
    step = program.steps[first]
    plain = step.op in _PRODUCTS and not step.argument("transposed")
    if not plain and step.op is not _BATCH_NORM:
        return ()
    steps = [step]
    while step.index not in protections and len(program.readers[step.index]) == 1:
        step = program.steps[program.readers[step.index][0]]
        known = has(step.op, "exact") or step.op is _BATCH_NORM or (step.op is operator.getitem and step.args[1] == 0)
        own = [argument for argument in step.args if isinstance(argument, Ref) and argument.step == steps[-1].index]
        reads_memory = has(step.op, "exact") and any(read in program.memory_steps for read in step.reads)
        if not known or reads_memory or step.index in protections or len(own) != 1:
            break
        steps.append(step)
    while steps and (steps[-1].index in protections or program.layouts.get(steps[-1].index) != BatchLayout(0)):
        steps.pop()
    return tuple(steps)


@dataclass
class Channels:
    """Computes changed channels of the ends of chains, where they come out as they do among all channels.

    That is looked at on golden values: once for each shape of convolution and number of channels, once for each chain.
    """

    program: Program
    _blocks: dict[tuple[Any, ...], int | None] = field(default_factory=dict)
    _trusted: dict[int, bool] = field(default_factory=dict)

    def end(
        self, chain: Chain, golden: StepValues, memory: Mapping[str, Tensor], channels: Tensor, golden_end: Tensor
    ) -> Tensor | None:
        """The channels of the value at the end of a chain, under changed memory; None if they cannot be had alone.

        Args:
            golden: golden values by step.
            channels: shape ``(n,)``, int64, those that the changed words feed.
            golden_end: the golden value there.
        Returns:
            Shape ``(batch, n, ...)``.
        """
        first = chain.steps[0]
        block = None
        if first.op in _PRODUCTS:
            if first.op is _LINEAR and golden[first.args[0].step].dim() != 2:
                return None  # its channels are not the second axis
            block = self._block(first, golden)
            if block is None:
                return None
        if chain.end not in self._trusted:
            self._trusted[chain.end] = self._fits(chain, golden, golden_end) and equal_bits(
                self._run(chain, golden, self.program.memory(), channels, block), golden_end[:, channels].contiguous()
            )
        return self._run(chain, golden, memory, channels, block) if self._trusted[chain.end] else None

    def _fits(self, chain: Chain, golden: StepValues, golden_end: Tensor) -> bool:
        """Whether every other map that the chain reads has the channels of its end."""
        inside = {step.index for step in chain.steps} | set(self.program.memory_steps)
        first = chain.steps[0]
        given = {first.args[0].step} if first.op in _PRODUCTS else set()
        outer = {read for step in chain.steps for read in step.reads} - inside - given
        values = [golden[read] for read in outer]
        like = golden_end.shape[1], golden_end.dim()
        return all(isinstance(value, Tensor) and (*value.shape[1:2], value.dim()) == like for value in values)

    def _run(
        self, chain: Chain, golden: StepValues, memory: Mapping[str, Tensor], channels: Tensor, block: int | None
    ) -> Tensor:
        first = chain.steps[0]
        steps = chain.steps[block is not None :]
        values = StepValues(self.program, golden, own=_parts(golden, memory, channels, chain.steps, steps))
        if block is not None:
            values.own[first.index] = self._convolved(first, golden, memory, channels, block)
        for step in steps:
            values.own[step.index] = step.run(values)
        result: Tensor = values.own[chain.end]
        return result

    def _convolved(
        self, step: Step, golden: StepValues, memory: Mapping[str, Tensor], channels: Tensor, block: int
    ) -> Tensor:
        """These channels of a convolution's or linear layer's result, each computed in its block."""
        parts = []
        for number in (channels // block).unique().tolist():
            inside = channels[channels // block == number] - number * block
            wanted = torch.arange(number * block, (number + 1) * block)
            parts.append(_part(self.program, step, golden, memory, wanted)[:, inside])
        return torch.cat(parts, 1)

    def _block(self, step: Step, golden: StepValues) -> int | None:
        """How many channels to compute together; all of them where fewer give other bits; None for too few values.

        Of a plain convolution the first and the last block are looked at, of others all.
        """
        given: Tensor = golden[step.args[0].step]
        memory = self.program.memory()
        weight = memory[self.program.memory_steps[step.args[1].step]]
        numbers = tuple(str(step.argument(name)) for name in ("stride", "padding", "dilation", "groups"))
        key = (given.shape, given.stride(), weight.shape, weight.requires_grad, step.argument("bias") is None, *numbers)
        if key not in self._blocks:
            count = len(weight)
            whole = _part(self.program, step, golden, memory, torch.arange(count))
            self._blocks[key] = count if int(whole.count_nonzero()) >= _ENOUGH_VALUES else None
            groups = _groups_of(step)
            sizes = _BLOCKS if groups == 1 else [many * (count // groups) for many in _GROUPS]
            for block in sizes:
                if 2 * block > count or count % block or self._blocks[key] is None:
                    continue
                plain = step.op in _CONVOLUTIONS and groups == 1
                begins = [0, count - block] if plain else list(range(0, count, block))
                parts = [
                    _part(self.program, step, golden, memory, torch.arange(begin, begin + block)) for begin in begins
                ]
                same = [whole[:, begin : begin + block] for begin in begins]
                if equal_bits(torch.cat(parts, 1), torch.cat(same, 1)):
                    self._blocks[key] = block
                    break
        return self._blocks[key]


def _part(program: Program, step: Step, golden: StepValues, memory: Mapping[str, Tensor], channels: Tensor) -> Tensor:
    """Some output channels of a convolution or linear layer, in the order given; of a grouped one, whole groups."""
    given: Tensor = golden[step.args[0].step]
    groups = _groups_of(step)
    if groups > 1:
        outputs = len(memory[program.memory_steps[step.args[1].step]]) // groups
        inputs, first, many = given.shape[1] // groups, int(channels[0]) // outputs, len(channels) // outputs
        given = given[:, first * inputs : (first + many) * inputs].contiguous()
        step = _with_groups(step, many)
    own = _entries(program, memory, channels, step) | {step.args[0].step: given}
    result: Tensor = step.run(golden.replaced(own))
    return result


def _groups_of(step: Step) -> int:
    return 1 if step.op is _LINEAR else int(step.argument("groups"))


def _with_groups(step: Step, groups: int) -> Step:
    """The same call with another number of groups."""
    names = [argument.name for argument in step.op._schema.arguments]  # type: ignore[union-attr]
    position = names.index("groups")
    if position < len(step.args):
        return replace(step, args=(*step.args[:position], groups, *step.args[position + 1 :]))
    return replace(step, kwargs={**step.kwargs, "groups": groups})


def _entries(program: Program, memory: Mapping[str, Tensor], channels: Tensor, step: Step) -> dict[int, Tensor]:
    """The entries for these channels of the memory that a step reads, by the step of the memory."""
    entries = {}
    for read in step.reads:
        if (name := program.memory_steps.get(read)) is not None:
            tensor = memory[name]
            part = tensor.detach()[channels.to(tensor.device)]
            entries[read] = part.requires_grad_(tensor.requires_grad)
    return entries


def _parts(
    golden: StepValues, memory: Mapping[str, Tensor], channels: Tensor, inside: Sequence[Step], steps: Sequence[Step]
) -> dict[int, Tensor]:
    """These channels of what some steps of a chain read from outside of it."""
    numbers = {step.index for step in inside}
    own: dict[int, Tensor] = {}
    for step in steps:
        own |= _entries(golden.program, memory, channels, step)
        for read in set(step.reads) - numbers - own.keys():
            own[read] = golden[read][:, channels.to(golden[read].device)].contiguous()
    return own
