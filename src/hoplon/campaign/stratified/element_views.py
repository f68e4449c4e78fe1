"""Two views of struck elements of one site: in whole maps, or alone, side by side by channel."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.formats.dtypes import native
from hoplon.program.layout import BatchLayout
from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program
from hoplon.protections.base import ValueProtection

_PLAIN = BatchLayout(0)


def write_words(flat: Tensor, place: Tensor, words: Tensor) -> None:
    """Write words, int64, shape ``(n,)``, into a flat tensor at these places."""
    words = words.to(flat.device)
    zero = torch.zeros(len(words), dtype=flat.dtype, device=flat.device)
    flat[place.to(flat.device)] = native(flat.dtype).apply(zero, torch.zeros_like(words), words)


def samples_of(program: Program, step: int, value: Tensor) -> Tensor:
    """A step's value with its samples along the first axis; without a layout it is one sample."""
    layout = program.layouts.get(step)
    return value.unsqueeze(0) if layout is None else layout.samples_first(value)


def rows_by(key: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every value of a key, int64, shape ``(n,)``, in ascending order, and the rows that have it."""
    order = key.argsort()
    values, counts = key[order].unique_consecutive(return_counts=True)
    return zip(values.tolist(), order.split(counts.tolist()), strict=True)


@dataclass(frozen=True, eq=False)
class ElementView(ABC):
    """Struck elements and the steps behind their site, each of which makes an element of the same element.

    ``values``: fault-free values by step, under ``~start`` that of the site before its protection. ``index``: of each
    struck element in the flat value of the site, samples first, int64, shape ``(elements,)``.
    """

    program: Program
    start: int
    values: Mapping[int, Any]
    index: Tensor

    @abstractmethod
    def site(self, words: Tensor | None) -> Tensor:
        """A private value of the site, its elements changed to these words where there are any."""

    @abstractmethod
    def operand(self, value: Any) -> Any:
        """A fault-free value as the steps read it."""

    @abstractmethod
    def read(self, step: int, value: Tensor) -> Tensor:
        """The elements in a step's value, shape ``(elements,)``, on the CPU."""

    def fault_free(self, step: int) -> Tensor | None:
        """The elements in the fault-free value of a step, where this view has to be held against them."""
        return None


@final
class WholeMaps(ElementView):
    """Elements where they lie; no two of them may be one."""

    @override
    def site(self, words: Tensor | None) -> Tensor:
        value: Tensor = self.values[~self.start].clone()
        if words is not None:
            samples = samples_of(self.program, self.start, value)
            flat = samples.reshape(-1)
            write_words(flat, self.index, words)
            if flat.data_ptr() != samples.data_ptr():  # reshape made a copy
                samples.copy_(flat.view(samples.shape))
        return value

    @override
    def operand(self, value: Any) -> Any:
        return value

    @override
    def read(self, step: int, value: Tensor) -> Tensor:
        samples = samples_of(self.program, step, value)
        return samples.reshape(-1)[self.index.to(samples.device)].cpu()


@final
@dataclass(frozen=True, eq=False)
class ByChannel(ElementView):
    """Elements alone, side by side by channel, in values of shape ``(1, channels, n, 1, ...)``.

    Batch norm and protections know an element's channel as well, so channels keep their axis. ``place``: of each
    element in the flat value; ``table``: the index for every place, int64, shape ``(channels, n)``, 0 where a place
    holds none.
    """

    place: Tensor
    table: Tensor

    @classmethod
    def of(
        cls,
        program: Program,
        steps: Sequence[int],
        values: Mapping[int, Any],
        protections: Mapping[int, ValueProtection],
        index: Tensor,
    ) -> Self | None:
        """The view for the steps of a place, that of the site first; None where one of them needs whole maps."""
        maps = values[~steps[0]]
        if maps.ndim < 3 or not _dense(maps):
            return None
        for step in steps:
            if step in protections and not protections[step].local:
                return None
            if isinstance(values[step], Tensor) and program.layouts.get(step) != _PLAIN:
                return None
        if not all(_fits(program, step, steps, values, tuple(maps.shape)) for step in steps[1:]):
            return None
        channels = maps.shape[1]
        channel = index // maps[0, 0].numel() % channels
        order = channel.argsort(stable=True)
        counts = torch.bincount(channel, minlength=channels)
        rank = torch.empty_like(index)
        rank[order] = torch.arange(len(index)) - (counts.cumsum(0) - counts)[channel[order]]
        width = int(counts.max())
        place = channel * width + rank
        table = torch.zeros(channels * width, dtype=torch.int64)
        table[place] = index
        device = maps.device
        return cls(
            program, steps[0], values, index.to(device), place.to(device), table.view(channels, width).to(device)
        )

    @override
    def site(self, words: Tensor | None) -> Tensor:
        value = self._taken(self.values[~self.start])
        if words is not None:
            write_words(value.view(-1), self.place, words)
        return value

    @override
    def operand(self, value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.shape == self.values[~self.start].shape
        return self._taken(value) if whole else value

    @override
    def read(self, step: int, value: Tensor) -> Tensor:
        return value.reshape(-1)[self.place].cpu()

    @override
    def fault_free(self, step: int) -> Tensor | None:
        return self.values[step].reshape(-1)[self.index].cpu()  # type: ignore[no-any-return]

    def _taken(self, maps: Tensor) -> Tensor:
        channels, width = self.table.shape
        return maps.reshape(-1)[self.table].view(1, channels, width, *[1] * (maps.ndim - 3))


def _fits(
    program: Program, number: int, members: Sequence[int], values: Mapping[int, Any], shape: tuple[int, ...]
) -> bool:
    """True if a step gives an element the same value beside other elements of its channel."""
    step = program.steps[number]
    if step.op is operator.getitem or canonical_kind(step.op) == "batch_norm":
        return True
    return all(_spreads(values[read], shape) for read in step.reads if read not in members)


def _spreads(value: Any, shape: tuple[int, ...]) -> bool:
    """True if an operand is a map, or has one value per channel at most."""
    if not isinstance(value, Tensor) or value.ndim == 0 or tuple(value.shape) == shape:
        return not isinstance(value, Tensor) or value.ndim == 0 or _dense(value)
    axes = (1,) * (len(shape) - value.ndim) + tuple(value.shape)
    return len(axes) == len(shape) and all(size == 1 for axis, size in enumerate(axes) if axis != 1)


def _dense(value: Tensor) -> bool:
    """True if a value has no gaps in memory: in the order of its axes, or with channels last."""
    return value.is_contiguous() or (value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last))
