"""Number formats: how a value is held in bits, and what a fault in those bits makes of it.

A word travels as int64 holding its unsigned value; a 64-bit word as its two's complement.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NATIVE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def integer_view(values: Tensor) -> Tensor:
    """The bits of `values` as integers of the same width; shares memory, any strides.

    Raises:
        HoplonError: elements of more than 8 bytes.
    """
    integer = _INTEGER_OF_SIZE.get(values.dtype.itemsize)
    if integer is None:
        raise HoplonError(f"expected elements of at most 8 bytes, got {values.dtype}")
    return values.detach().view(integer)


def same_bits(left: Tensor, right: Tensor) -> Tensor:
    """Where two tensors hold the same bits: bool, broadcast shape.

    Unlike ``==``, a NaN equals itself and +0.0 differs from -0.0.

    Raises:
        HoplonError: two different dtypes.
    Example:
        >>> same_bits(torch.tensor([float("nan"), 0.0]), torch.tensor([float("nan"), -0.0]))
        tensor([ True, False])
    """
    if left.dtype != right.dtype:
        raise HoplonError(f"expected two tensors of one dtype, got {left.dtype} and {right.dtype}")
    return integer_view(left) == integer_view(right)


def equal_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have one shape and dtype and hold the same bits everywhere.

    Example:
        >>> equal_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
        True
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(same_bits(left, right).all())


@dataclass(frozen=True)
class NumberFormat(ABC):
    """How a value is held in bits.

    Every fault within one word is a pair (keep, flip): ``after = (before & keep) ^ flip``. A bit flip keeps
    all and flips its mask; stuck at 1 is ``(~mask, mask)``; stuck at 0 is ``(~mask, 0)``; zero is ``(0, 0)``.
    A new format is one subclass and one entry in `_FAMILIES`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name under which `format_named` finds the format again."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Width of the word, 1 to 64."""

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> NumberFormat | None:
        """The format of this class with this name, or None when the name is not one of them."""

    @abstractmethod
    def words(self, values: Tensor) -> Tensor:
        """The word that holds each value: int64, shape and device of `values`."""

    @abstractmethod
    def strike(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        """The values after ``(word & keep) ^ flip``: a new tensor, dtype and device of `values`.

        Args:
            values: any shape; not modified.
            keep: words, int64, broadcast against `values`.
            flip: words, likewise.
        Returns:
            The broadcast shape; may hold NaN or infinity. Outside autograd.
        Raises:
            HoplonError: a dtype this format does not hold, or a word wider than the format.
        """

    @property
    def all_ones(self) -> int:
        """The `keep` that keeps every bit, as int64 (-1 for 64-bit words)."""
        return -1 if self.bits == 64 else (1 << self.bits) - 1

    def __str__(self) -> str:
        return self.name

    def _mask(self, word: Tensor | int, device: torch.device) -> Tensor:
        """A `keep` or `flip` as int64 on `device`, checked to fit the word."""
        mask = torch.as_tensor(word)
        if mask.is_floating_point() or mask.dtype == torch.bool:
            raise HoplonError(f"expected words as int64, got {mask.dtype}")
        mask = mask.to(torch.int64)
        if self.bits < 64:
            outside = (mask < 0) | (mask > self.all_ones)
            if outside.any():
                first = int(mask[outside].flatten()[0])
                raise HoplonError(f"expected words in [0, 2**{self.bits}) for {self.name}, got {first}")
        return mask.to(device)


@final
@dataclass(frozen=True)
class Native(NumberFormat):
    """The bits of a torch dtype, as memory holds them.

    Source:
        IEEE 754-2019, section 3.4 (binary interchange formats); bfloat16: the upper half of binary32.
    Example:
        >>> one = torch.tensor([1.0])
        >>> hex(Native(torch.float32).words(one))
        '0x3f800000'
        >>> Native(torch.float32).strike(one, keep=0xFFFFFFFF, flip=1 << 31)
        tensor([-1.])
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in _NATIVE_DTYPES:
            supported = ", ".join(map(str, _NATIVE_DTYPES))
            raise HoplonError(f"expected a dtype whose bits can be struck ({supported}), got {self.dtype}")

    @property
    def name(self) -> str:
        """The dtype without its package: "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def bits(self) -> int:
        """Width of the dtype."""
        return 8 * self.dtype.itemsize

    @classmethod
    def parse(cls, name: str) -> Native | None:
        """The native format whose dtype has this name."""
        return next((native(dtype) for dtype in _NATIVE_DTYPES if native(dtype).name == name), None)

    def words(self, values: Tensor) -> Tensor:
        """The stored word of each value: int64, shape and device of `values`."""
        self._check(values)
        return integer_view(values).to(torch.int64) & self.all_ones

    def strike(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        """The values after ``(word & keep) ^ flip``; integer operations only, so NaN payloads survive."""
        self._check(values)
        before = integer_view(values)
        struck = (before & self._narrow(keep, before)) ^ self._narrow(flip, before)
        return struck.view(self.dtype)

    def _check(self, values: Tensor) -> None:
        if values.dtype != self.dtype:
            raise HoplonError(f"expected values of {self.dtype}, got {values.dtype}; use native({values.dtype})")

    def _narrow(self, word: Tensor | int, like: Tensor) -> Tensor:
        """Unsigned words as signed integers of the dtype of `like`: 0xFFFFFFFF becomes -1, explicitly."""
        mask = self._mask(word, like.device)
        if self.bits == 64:
            return mask
        sign = 1 << (self.bits - 1)
        return ((mask ^ sign) - sign).to(like.dtype)


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


_FAMILIES: tuple[type[NumberFormat], ...] = (Native,)


@functools.cache
def format_named(name: str) -> NumberFormat:
    """The format that carries this name, as stored in a fault table.

    Raises:
        HoplonError: no format has the name.
    Example:
        >>> format_named("float32") == native(torch.float32)
        True
    """
    for family in _FAMILIES:
        found = family.parse(name)
        if found is not None:
            return found
    known = ", ".join(native(dtype).name for dtype in _NATIVE_DTYPES)
    raise HoplonError(f"expected the name of a number format ({known}), got {name!r}")
