"""Replay of memory faults that change few channels of one feature map: only those channels are computed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
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
# Numbers of output channels of a convolution or linear layer that are computed together: kernels work on such blocks.
_BLOCKS = (16, 32, 64)
_ENOUGH_VALUES = 4096


@dataclass(frozen=True)
class Chain:
    """A step that reads a struck tensor, and the channel-wise steps that follow it.

    ``steps``: in order, each with one reader, the next one; ``end``: the last one, whose value others read.
    """

    steps: tuple[Step, ...]

    @property
    def end(self) -> int:
        """The step at which the changed channels join the golden ones."""
        return self.steps[-1].index


def chains_of(program: Program, protections: Protections, names: Sequence[str]) -> dict[str, Chain]:
    """Return the chains of tensors that one ungrouped convolution, linear layer or batch norm reads, by tensor name."""
    chains: dict[str, Chain] = {}
    for memory_step, name in program.memory_steps.items():
        if name in names and len(readers := program.readers[memory_step]) == 1:
            steps = _channelwise_steps(program, protections, readers[0])
            if steps:
                chains[name] = Chain(steps)
    return chains


def _channelwise_steps(program: Program, protections: Protections, first: int) -> tuple[Step, ...]:
    """Return the steps of the chain that begins at ``first``; none if it cannot be taken by channels."""
    step = program.steps[first]
    ungrouped = not step.argument("transposed") and step.argument("groups") in (None, 1)
    if step.op is not _BATCH_NORM and not (step.op in _PRODUCTS and ungrouped):
        return ()
    given = [step.argument(name) for name in ("weight", "bias")] if step.op in _PRODUCTS else []
    if any(isinstance(argument, Ref) and argument.step not in program.memory_steps for argument in given):
        return ()  # computed, or seen from another side: its entries are not those of a channel
    steps = [step]
    while step.index not in protections and len(program.readers[step.index]) == 1:
        step = program.steps[program.readers[step.index][0]]
        channelwise = has(step.op, "exact") or step.op is _BATCH_NORM
        channelwise |= step.op is operator.getitem and step.args[1] == 0
        previous = [part for part in step.args if isinstance(part, Ref) and part.step == steps[-1].index]
        reads_memory = has(step.op, "exact") and any(read in program.memory_steps for read in step.reads)
        if not channelwise or reads_memory or step.index in protections or len(previous) != 1:
            break
        steps.append(step)
    while steps and (steps[-1].index in protections or program.layouts.get(steps[-1].index) != BatchLayout(0)):
        steps.pop()
    return tuple(steps)


@dataclass
class Channels:
    """Computes channels at the ends of chains, where they get the bits that they have among all channels.

    Golden values show whether they do: they are looked at once for each shape of convolution or linear layer, and once
    for each chain.
    """

    program: Program
    _block_sizes: dict[tuple[Any, ...], int | None] = field(default_factory=dict)
    _trusted: dict[int, bool] = field(default_factory=dict)

    def end(
        self, chain: Chain, golden: StepValues, struck: StepValues, channels: Tensor, golden_end: Tensor
    ) -> Tensor | None:
        """Compute channels of the value at the end of a chain under changed memory.

        Args:
            golden: golden values by step, over the memory of the program.
            struck: the same over changed memory.
            channels: shape ``(n,)``, int64, those that the changed words feed.
            golden_end: the golden value there, shape ``(batch, channels, ...)``.
        Returns:
            Shape ``(batch, n, ...)``; None if the channels do not keep their bits alone.
        """
        first = chain.steps[0]
        block = None
        if first.op in _PRODUCTS:
            if first.op is _LINEAR and golden[first.args[0].step].dim() != 2:
                return None  # its channels are not the second axis
            block = self._block_size(first, golden)
            if block is None:
                return None
        if chain.end not in self._trusted:
            self._trusted[chain.end] = self._fits(chain, golden, golden_end) and equal_bits(
                _run(chain, golden, channels, block), golden_end[:, channels].contiguous()
            )
        return _run(chain, struck, channels, block) if self._trusted[chain.end] else None

    def _fits(self, chain: Chain, golden: StepValues, golden_end: Tensor) -> bool:
        """True if every other map that the chain reads has as many channels as its end."""
        inside = {step.index for step in chain.steps} | set(self.program.memory_steps)
        first = chain.steps[0]
        operand = {first.args[0].step} if first.op in _PRODUCTS else set()
        outer = {read for step in chain.steps for read in step.reads} - inside - operand
        values = [golden[read] for read in outer]
        like = golden_end.shape[1], golden_end.dim()
        return all(isinstance(value, Tensor) and (*value.shape[1:2], value.dim()) == like for value in values)

    def _block_size(self, step: Step, golden: StepValues) -> int | None:
        """Return how many channels to compute together; all where fewer give other bits; None for too few values.

        Of a convolution the first and the last block are looked at, of a linear layer all.
        """
        operand: Tensor = golden[step.args[0].step]
        weight: Tensor = golden[step.args[1].step]
        numbers = tuple(str(step.argument(name)) for name in ("stride", "padding", "dilation"))
        no_bias = step.argument("bias") is None
        key = (operand.shape, operand.stride(), weight.shape, weight.requires_grad, no_bias, *numbers)
        if key not in self._block_sizes:
            count = len(weight)
            whole = _part(step, golden, torch.arange(count))
            enough = int(whole.count_nonzero()) >= _ENOUGH_VALUES
            usable = (size for size in _BLOCKS if 2 * size <= count and count % size == 0)
            agreeing = (size for size in usable if _agrees(step, golden, whole, size))
            self._block_sizes[key] = next(agreeing, count) if enough else None
        return self._block_sizes[key]


def _run(chain: Chain, values: StepValues, channels: Tensor, block: int | None) -> Tensor:
    """Return channels at the end of a chain; those of its product each in its block, where there is one."""
    first, steps = chain.steps[0], chain.steps[block is not None :]
    parts = values.replaced(_operands(chain, steps, values, channels))
    if block is not None:
        parts.own[first.index] = _in_blocks(first, values, channels, block)
    for step in steps:
        parts.own[step.index] = step.run(parts)
    result: Tensor = parts.own[chain.end]
    return result


def _agrees(step: Step, golden: StepValues, whole: Tensor, size: int) -> bool:
    """True if blocks of output channels, each computed alone, have the bits of the whole result."""
    count = whole.shape[1]
    begins = [0, count - size] if step.op in _CONVOLUTIONS else range(0, count, size)
    parts = [_part(step, golden, torch.arange(begin, begin + size)) for begin in begins]
    return equal_bits(torch.cat(parts, 1), torch.cat([whole[:, begin : begin + size] for begin in begins], 1))


def _in_blocks(step: Step, values: StepValues, channels: Tensor, block: int) -> Tensor:
    """Return output channels of a convolution or linear layer, each computed in its block."""
    parts = []
    for number in (channels // block).unique().tolist():
        inside = channels[channels // block == number] - number * block
        whole_block = torch.arange(number * block, (number + 1) * block)
        parts.append(_part(step, values, whole_block)[:, inside])
    return torch.cat(parts, 1)


def _part(step: Step, values: StepValues, channels: Tensor) -> Tensor:
    """Return some output channels of a convolution or linear layer, in the order given."""
    result: Tensor = step.run(values.replaced(_memory_entries(step, values, channels)))
    return result


def _memory_entries(step: Step, values: StepValues, channels: Tensor) -> dict[int, Tensor]:
    """Return the entries for these channels of all memory that a step reads, by the step that stands for it."""
    entries = {}
    for read in step.reads:
        if read in values.program.memory_steps:
            tensor: Tensor = values[read]
            part = tensor.detach()[channels.to(tensor.device)]
            entries[read] = part.requires_grad_(tensor.requires_grad)
    return entries


def _operands(chain: Chain, steps: Sequence[Step], values: StepValues, channels: Tensor) -> dict[int, Tensor]:
    """Return these channels of all that some steps of a chain read from outside of it, by step."""
    inside = {step.index for step in chain.steps}
    operands: dict[int, Tensor] = {}
    for step in steps:
        operands |= _memory_entries(step, values, channels)
        for read in set(step.reads) - inside - operands.keys():
            value = values[read]
            operands[read] = value[:, channels.to(value.device)].contiguous()
    return operands
