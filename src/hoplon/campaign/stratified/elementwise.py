"""Operators that treat each element by itself, on some elements of feature maps instead of whole maps."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from hoplon.program.layout import BatchLayout
from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program
from hoplon.protections.base import ValueProtection

_PLAIN = BatchLayout(0)


@dataclass(frozen=True, eq=False)
class Slots:
    """Where elements of maps lie side by side, by channel: in a value of shape ``(1, channels, n, 1, ...)``.

    ``index``: of each element in the flat maps, int64, shape ``(elements,)``; ``place``: in the flat value, likewise;
    ``table``: the index for every place, int64, shape ``(channels, n)``, 0 where a place holds none.
    """

    index: Tensor
    place: Tensor
    table: Tensor
    dims: int

    def taken(self, maps: Tensor) -> Tensor:
        """The elements of some maps in their places."""
        channels, width = self.table.shape
        return maps.reshape(-1)[self.table].view(1, channels, width, *[1] * (self.dims - 3))


@dataclass(frozen=True, eq=False)
class Elements:
    """Some steps behind a site, each of which makes an element of the same element of what it reads.

    Batch norm and protections know an element's channel as well, so channels keep their axis.
    """

    program: Program
    inner: tuple[int, ...]
    start: int
    values: Mapping[int, Any]
    protections: Mapping[int, ValueProtection]
    shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        program: Program,
        start: int,
        inner: tuple[int, ...],
        values: Mapping[int, Any],
        protections: Mapping[int, ValueProtection],
    ) -> Self | None:
        """The steps on these fault-free values; None where a step or a protection needs whole maps."""
        maps = values[~start]
        if maps.ndim < 3 or not maps.is_contiguous():
            return None
        found = cls(program, inner, start, values, protections, tuple(maps.shape))
        members = {start, *inner}
        for step in members:
            protection = protections.get(step)
            if protection is not None and not protection.local:
                return None
            if isinstance(values[step], Tensor) and program.layouts.get(step) != _PLAIN:
                return None
        return found if all(found._fits(step, members) for step in inner) else None

    def slots(self, index: Tensor) -> Slots:
        """Places for elements of the flat maps: int64, shape ``(elements,)``."""
        channels = self.shape[1]
        channel = index // (self._numel // channels) % channels
        order = channel.argsort(stable=True)
        counts = torch.bincount(channel, minlength=channels)
        rank = torch.empty_like(index)
        rank[order] = torch.arange(len(index)) - (counts.cumsum(0) - counts)[channel[order]]
        width = int(counts.max())
        place = channel * width + rank
        table = torch.zeros(channels * width, dtype=torch.int64)
        table[place] = index
        device = self.values[~self.start].device
        return Slots(index.to(device), place.to(device), table.view(channels, width).to(device), len(self.shape))

    def follow(self, slots: Slots, start: Tensor) -> dict[int, Any]:
        """The value of every step, given that of the site, as readers get it."""
        found: dict[int, Any] = {self.start: start}
        members = {self.start, *self.inner}
        for number in self.inner:
            step = self.program.steps[number]
            for read in step.reads:
                if read not in members and read not in found:
                    value = self.values[read]
                    whole = isinstance(value, Tensor) and tuple(value.shape) == self.shape
                    found[read] = slots.taken(value) if whole else value
            value = step.run(found)  # type: ignore[arg-type]
            protection = self.protections.get(number)
            found[number] = value if protection is None else protection(value)
        return found

    @property
    def _numel(self) -> int:
        """Elements of one sample."""
        return int(torch.Size(self.shape[1:]).numel())

    def _fits(self, number: int, members: set[int]) -> bool:
        """True if a step gives an element the same value beside other elements of its channel."""
        step = self.program.steps[number]
        if step.op is operator.getitem or canonical_kind(step.op) == "batch_norm":
            return True
        return all(self._spreads(self.values[read]) for read in step.reads if read not in members)

    def _spreads(self, value: Any) -> bool:
        """True if an operand is a map, or has one value per channel at most."""
        if not isinstance(value, Tensor) or value.ndim == 0 or tuple(value.shape) == self.shape:
            return not isinstance(value, Tensor) or value.ndim == 0 or value.is_contiguous()
        axes = (1,) * (len(self.shape) - value.ndim) + tuple(value.shape)
        return len(axes) == len(self.shape) and all(size == 1 for axis, size in enumerate(axes) if axis != 1)
