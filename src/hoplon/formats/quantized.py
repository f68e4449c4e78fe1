"""Integers with a scale and a zero point, standing for the values of a floating-point tensor."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar, final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import NumberFormat, signed
from hoplon.formats.dtypes import native

_N = TypeVar("_N", int, float)
_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)
_NAME = re.compile(r"quantized\((\w+),([^,)]+),([^,)]+)(?:,axis=(\d+))?\)")


@dataclass(frozen=True)
class _Affine(NumberFormat):
    """value = (word - zero point) x scale, in the arithmetic of torch; a subclass knows scale and zero point."""

    dtype: torch.dtype

    @abstractmethod
    def _scale_and_zero(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (float64) and zero point (int64), broadcast against `values`."""

    @property
    def bits(self) -> int:
        """Width of the integer."""
        return 8 * self.dtype.itemsize

    def words(self, values: Tensor) -> Tensor:
        """The integer nearest to each value, halves to even, as an unsigned word; saturates; NaN as zero."""
        scale, zero = self._scale_and_zero(_checked(values))
        limits = torch.iinfo(self.dtype)
        steps = (values.detach().double().nan_to_num(0.0, math.inf, -math.inf) / scale).round() + zero
        return steps.clamp(limits.min, limits.max).to(torch.int64) & self.all_ones

    def apply(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        """Dequantises the integer after ``(word & keep) ^ flip``; a value whose word stays is left alone."""
        before = self.words(values)
        after = (before & self._mask(keep, values.device)) ^ self._mask(flip, values.device)
        before, after, values = torch.broadcast_tensors(before, after, values.detach())
        return torch.where(after == before, values, self._dequantised(after, values))

    def _dequantised(self, words: Tensor, like: Tensor) -> Tensor:
        scale, zero = self._scale_and_zero(like)
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        steps = words if self.dtype == torch.uint8 else signed(words, self.bits)
        return ((steps - zero).to(exact) * scale.to(exact)).to(like.dtype)


@final
@checked
@dataclass(frozen=True)
class Quantized(_Affine):
    """Integers of `dtype` with scale and zero point, per tensor or per channel; the values stay floating point.

    The word is the quantised integer: ``clamp(round(value / scale) + zero_point)``, halves to even, NaN as zero.
    A struck value becomes its struck word dequantised, ``(word - zero_point) * scale``, as in hardware that stores
    integers, so it also loses what rounding to the grid takes; values of a quantised model lie on the grid. All other
    values, and those whose word a fault leaves as it was, stay bit-identical. Values of fewer significant bits than the
    word, e.g. int32 in float32, round the result.

    Args:
        dtype: torch.int8, uint8, int16 or int32.
        scale: positive; or one per channel.
        zero_point: the integer that stands for 0; or one per channel.
        axis: of the channels, in the tensor (memory) or in one sample (values, batch axis left out); None: per tensor.
    Raises:
        HoplonError: another dtype, a scale that is not positive and finite, a zero point that the dtype cannot hold, or
            channels without an axis.
    Source:
        Jacob et al., CVPR 2018 (arXiv:1712.05877), equation 1; rounding as ``torch.quantize_per_tensor``.
    Example:
        >>> form = Quantized(torch.int8, 0.5, 0)
        >>> form.apply(torch.tensor([1.0, 1.0]), form.all_ones, torch.tensor([1 << 7, 0]))
        tensor([-63.,   1.])
    """

    scale: float | tuple[float, ...]
    zero_point: int | tuple[int, ...] = 0
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise HoplonError(f"expected one of {', '.join(map(str, _DTYPES))}, got {self.dtype}")
        scales, zeros = _as_tuple(self.scale, float), _as_tuple(self.zero_point, int)
        counts = len(scales), len(zeros)
        per_channel = isinstance(self.scale, Sequence) or isinstance(self.zero_point, Sequence)
        if per_channel != (self.axis is not None) or len({*counts} - {1}) > 1 or 0 in counts:
            raise HoplonError(
                "expected one scale and one zero point, or as many as channels and their axis, "
                f"got {counts[0]} scales, {counts[1]} zero points, axis {self.axis}"
            )
        if per_channel:
            object.__setattr__(self, "scale", scales * (max(counts) // counts[0]))
            object.__setattr__(self, "zero_point", zeros * (max(counts) // counts[1]))
        else:
            object.__setattr__(self, "scale", scales[0])
        limits = torch.iinfo(self.dtype)
        for scale in self.scales:
            if not 0 < scale < math.inf:
                raise HoplonError(f"expected a scale that is positive and finite, got {scale}")
        for zero in self.zero_points:
            if not limits.min <= zero <= limits.max:
                raise HoplonError(f"expected a zero point in [{limits.min}, {limits.max}], got {zero}")

    @classmethod
    def fitted(cls, values: Tensor, dtype: torch.dtype = torch.int8, *, axis: int | None = None) -> Self:
        """The symmetric format that holds the largest finite magnitude of `values`, per tensor or per channel.

        Scale = largest magnitude / largest integer (1 where all values are zero); zero point 0, or 128 for uint8.

        Example:
            >>> Quantized.fitted(torch.tensor([[1.0, -2.0], [0.0, 0.5]]), axis=0).axis
            0
        """
        zero = 128 if dtype == torch.uint8 else 0
        sizes = values.detach().double().abs()
        sizes = torch.where(sizes.isfinite(), sizes, 0.0)
        largest = sizes.max().reshape(1) if axis is None else sizes.movedim(axis, 0).flatten(1).amax(1)
        scales = torch.where(largest > 0, largest / (torch.iinfo(dtype).max - zero), 1.0).float().tolist()
        return cls(dtype, scales[0] if axis is None else tuple(scales), zero, axis)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales as a tuple."""
        return _as_tuple(self.scale, float)

    @property
    def zero_points(self) -> tuple[int, ...]:
        """The zero points as a tuple."""
        return _as_tuple(self.zero_point, int)

    @property
    def channels(self) -> int | None:
        """Number of channels; None: per tensor."""
        return None if self.axis is None else len(self.scales)

    @property
    @override
    def varies(self) -> bool:
        return self.axis is not None

    @property
    def name(self) -> str:
        """E.g. "quantized(int8,0.05,0)", channels parted by ";" as in "quantized(int8,0.5;0.25,0;0,axis=0)"."""
        scales, zeros = (";".join(map(repr, numbers)) for numbers in (self.scales, self.zero_points))
        axis = "" if self.axis is None else f",axis={self.axis}"
        return f"quantized({native(self.dtype).name},{scales},{zeros}{axis})"

    @classmethod
    def parse(cls, name: str) -> Quantized | None:
        """The format with this name."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        dtype, scales, zeros, axis = found.groups()
        known = {native(d).name: d for d in _DTYPES}
        try:
            scale, zero = tuple(map(float, scales.split(";"))), tuple(map(int, zeros.split(";")))
        except ValueError:
            return None
        if dtype not in known:
            return None
        if axis is None:
            return cls(known[dtype], scale[0], zero[0]) if len(scale) == len(zero) == 1 else None
        return cls(known[dtype], scale, zero, int(axis))

    def at(self, elements: Tensor, shape: Sequence[int]) -> NumberFormat:
        """The scale and zero point of each element's channel."""
        if self.axis is None:
            return self
        self._check_axis(shape)
        channel = torch.unravel_index(elements, tuple(shape))[self.axis]
        scale, zero = (part.to(elements.device) for part in self._per_channel())
        return _QuantizedAt(self.dtype, scale[channel], zero[channel], self.name)

    def _scale_and_zero(self, values: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = (part.to(values.device) for part in self._per_channel())
        if self.axis is None:
            return scale[0], zero[0]
        self._check_axis(values.shape)
        shape = [-1 if axis == self.axis else 1 for axis in range(values.dim())]
        return scale.view(shape), zero.view(shape)

    def _per_channel(self) -> tuple[Tensor, Tensor]:
        # float32, the precision in which torch multiplies by a scale
        return torch.tensor(self.scales, dtype=torch.float32).double(), torch.tensor(self.zero_points)

    def _check_axis(self, shape: Sequence[int]) -> None:
        axis = self.axis or 0
        if axis >= len(shape) or shape[axis] != self.channels:
            raise HoplonError(f"expected {self.channels} channels at axis {axis}, got shape {tuple(shape)}")


@final
@dataclass(frozen=True, eq=False)
class _QuantizedAt(_Affine):
    """Values of shape ``(n,)`` that each have their own scale and zero point; named after the whole."""

    scale: Tensor
    zero: Tensor
    name: str = ""

    @classmethod
    def parse(cls, name: str) -> None:
        return None

    def _scale_and_zero(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero


def _as_tuple(value: _N | Sequence[_N], kind: Callable[[_N], _N]) -> tuple[_N, ...]:
    return tuple(map(kind, value)) if isinstance(value, Sequence) else (kind(value),)


def _checked(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise HoplonError(f"expected floating-point values, which a quantised integer stands for, got {values.dtype}")
    return values
