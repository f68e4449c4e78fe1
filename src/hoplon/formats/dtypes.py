"""The bits of torch dtypes, as memory holds them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import Field, NumberFormat, integer_view, signed

_FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
QUANTISED = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}
"""The integer in which a tensor of torch's quantised dtypes holds a value."""
NATIVE_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, *QUANTISED)


@final
@checked
@dataclass(frozen=True)
class Native(NumberFormat):
    """The bits of a torch dtype, as memory holds them.

    Signed integers are two's complement words. A bool is a word of one bit.

    Source:
        IEEE 754-2019, section 3.4 (binary interchange formats); bfloat16: the upper half of binary32; float8: Open
        Compute Project, OFP8 1.0 (E4M3 has no infinity and one NaN of each sign, E5M2 has both as IEEE 754).
    Example:
        >>> one = torch.tensor([1.0])
        >>> hex(Native(torch.float32).words(one))
        '0x3f800000'
        >>> Native(torch.float32).apply(one, keep=0xFFFFFFFF, flip=1 << 31)
        tensor([-1.])
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in NATIVE_DTYPES:
            supported = ", ".join(map(str, NATIVE_DTYPES))
            raise HoplonError(f"expected a dtype whose bits can be struck ({supported}), got {self.dtype}")

    @property
    def name(self) -> str:
        """The dtype without its package: "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def bits(self) -> int:
        """Width of the dtype; 1 for bool."""
        return 1 if self.dtype == torch.bool else 8 * self.dtype.itemsize

    @classmethod
    def parse(cls, name: str) -> Native | None:
        """The native format whose dtype has this name."""
        return next((native(dtype) for dtype in NATIVE_DTYPES if native(dtype).name == name), None)

    def words(self, values: Tensor) -> Tensor:
        """The stored word of each value: int64, shape and device of `values`."""
        self._check(values)
        return integer_view(values).to(torch.int64) & self.all_ones

    def encode(self, numbers: Tensor) -> Tensor:
        """The word of each number, rounded to the dtype; integers saturate."""
        if self.dtype in QUANTISED:
            return native(QUANTISED[self.dtype]).encode(numbers)
        if not self.dtype.is_floating_point and self.dtype != torch.bool:
            limits = torch.iinfo(self.dtype)
            numbers = numbers.round().clamp(limits.min, limits.max)
        return self.words(numbers.to(self.dtype))

    def apply(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        """The values after ``(word & keep) ^ flip``; integer operations only, so NaN payloads survive."""
        self._check(values)
        before = integer_view(values)
        after = (before & self._narrow(keep, before)) ^ self._narrow(flip, before)
        if values.is_quantized:
            struck = values.detach().expand(after.shape).clone()
            integer_view(struck).copy_(after)
            return struck
        return after.view(self.dtype)

    def field(self, name: Field) -> tuple[int, ...]:
        """The positions of the sign, the exponent or the mantissa of a floating-point word."""
        if self.dtype not in _FLOATS:
            return super().field(name)
        mantissa = round(-math.log2(torch.finfo(self.dtype).eps))
        top = self.bits - 1
        return {
            "sign": (top,),
            "exponent": tuple(range(mantissa, top)),
            "mantissa": tuple(range(mantissa)),
        }[name]

    def _check(self, values: Tensor) -> None:
        if values.dtype != self.dtype:
            raise HoplonError(f"expected values of {self.dtype}, got {values.dtype}; use native({values.dtype})")

    def _narrow(self, word: Tensor | int, like: Tensor) -> Tensor:
        """Unsigned words as integers of the dtype of `like`: 0xFFFFFFFF becomes the int32 -1, explicitly."""
        mask = self._mask(word, like.device)
        if like.dtype in (torch.int64, torch.uint8):
            return mask.to(like.dtype)
        return signed(mask, self.bits).to(like.dtype)


@checked
@functools.cache
def native(dtype: torch.dtype) -> Native:
    """The format of the bits of `dtype`.

    Raises:
        HoplonError: a dtype that is not supported.
    Example:
        >>> native(torch.bfloat16).bits
        16
    """
    return Native(dtype)
