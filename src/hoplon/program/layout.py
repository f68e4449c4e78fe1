"""Where the samples of a batch lie in a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.formats.base import equal_bits

# Relative to values near 1, far above rounding in any order of summation, far below what other samples differ by.
_ROUNDING = 1e-4


@final
@dataclass(frozen=True)
class BatchLayout:
    """Samples along one axis, which may hold more than the batch: its entries are ``outer x batch x fold``.

    ``fold`` > 1: each sample holds neighbouring entries (heads folded behind the batch); ``outer`` > 1: samples recur
    (the batch folded behind the heads).
    """

    axis: int
    fold: int = 1
    outer: int = 1

    def take(self, value: Tensor, rows: Tensor) -> Tensor:
        """The given samples of a batch value, as a new batch of ``len(rows)`` samples in the same layout.

        Args:
            value: a batch value; not modified, not aliased.
            rows: shape ``(n,)``, int64, sample numbers.
        """
        if self.fold == self.outer == 1:
            if self.axis == 0 and channels_last(value):
                return value.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
            return value.index_select(self.axis, rows)
        split: Tensor = value.unflatten(self.axis, (self.outer, -1, self.fold))
        return split.index_select(self.axis + 1, rows).flatten(self.axis, self.axis + 2)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """One batch value with the samples of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        if self.fold == self.outer == 1:
            return torch.cat(list(parts), self.axis)
        split = [part.unflatten(self.axis, (self.outer, -1, self.fold)) for part in parts]
        return torch.cat(split, self.axis + 1).flatten(self.axis, self.axis + 2)

    def samples_first(self, value: Tensor) -> Tensor:
        """A view of shape ``(batch, *sample shape)``; what is folded with the batch stays in place."""
        if self.fold == self.outer == 1:
            return value.movedim(self.axis, 0)
        split: Tensor = value.unflatten(self.axis, (self.outer, -1, self.fold)).movedim(self.axis + 1, 0)
        ones = [axis + 1 for axis, size in ((self.axis, self.outer), (self.axis + 1, self.fold)) if size == 1]
        return split.squeeze(ones)

    def sample_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one sample, given that of the batch value: the axis gives way to what it was folded with."""
        middle = tuple(size for size in (self.outer, self.fold) if size > 1)
        return (*shape[: self.axis], *middle, *shape[self.axis + 1 :])


@final
@dataclass(frozen=True)
class WholeLayout:
    """The whole value is the one sample of the pass.

    ``dropped`` is an axis of size 1, the batch's, that the shape of its site leaves out; None where it leaves out none.
    """

    dropped: int | None = None

    def take(self, value: Tensor, rows: Tensor) -> Tensor:
        """A copy; the only sample there is has number 0."""
        assert rows.tolist() == [0], "a pass without a batch axis holds one sample"
        return value.clone()

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The only value there is."""
        (value,) = parts
        return value

    def samples_first(self, value: Tensor) -> Tensor:
        """A view with a batch axis of one."""
        return value.unsqueeze(0)

    def sample_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one sample: all of it."""
        return tuple(shape)


Layout = BatchLayout | WholeLayout
"""How samples are taken out of a batch value. An element of a sample is its row-major index in the sample."""


def in_order(value: Tensor) -> bool:
    """True if the elements of a tensor lie in memory in the order of its axes, gaps allowed."""
    if value.is_contiguous():
        return True
    strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    return strides == sorted(strides, reverse=True)


def channels_last(value: Tensor) -> bool:
    """True if the channels of each pixel of ``(batch, channels, height, width)`` lie side by side in memory."""
    return value.dim() == 4 and not in_order(value) and in_order(value.movedim(1, -1))


def folds(axis: int, ratio: int) -> Iterator[BatchLayout]:
    """The layouts of an axis that holds ``ratio`` entries per sample; sample-major first."""
    for outer in range(1, ratio + 1):
        if ratio % outer == 0:
            yield BatchLayout(axis, fold=ratio // outer, outer=outer)


def trial_layouts(shape: Sequence[int], batch: int) -> Iterator[BatchLayout]:
    """The layouts that a value of this shape could have for a batch of this size, plain ones first."""
    fitting = [axis for axis, size in enumerate(shape) if size and size % batch == 0]
    for axis in sorted(fitting, key=lambda axis: shape[axis] != batch):
        yield from folds(axis, shape[axis] // batch)


def moves_with(layout: Layout, plain: Tensor, moved: Tensor, order: Tensor) -> bool:
    """Whether reordering the batch reorders the samples that this layout takes.

    Up to rounding: some kernels compute the same sample to other last bits in another row (a vector's tail).
    """
    expected = layout.take(plain, order.to(plain.device))
    same = equal_bits(expected, moved)
    if same or not moved.is_floating_point():
        return same
    return torch.allclose(expected.double(), moved.double(), rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)
