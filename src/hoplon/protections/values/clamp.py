"""Keeping a value inside a bound, also when it is NaN or infinite."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ParamSpec, TypeVar, cast, final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.protections.base import ValueProtection
from hoplon.protections.ranges.bound import Bound

_P = ParamSpec("_P")
_R = TypeVar("_R")


@final
@dataclass(frozen=True)
class BoundValue(ValueProtection):
    """Keeps a floating-point value inside ``[low, high]``: what comes out is finite, whatever goes in.

    With ``low >= 0`` the order of IEEE values is the order of their bit patterns read as signed integers. So one
    integer clamp bounds the value and repairs NaN and infinity as well: +NaN and +Inf become ``high``; -NaN, -Inf and
    every other negative value become ``low``; with ``low == 0``, -0.0 becomes +0.0. Gradients do not pass this form.

    With ``low < 0`` it is a float clamp: a NaN of either sign becomes ``low``, infinities become the end of their sign.

    Ends that the value's dtype cannot hold are rounded outwards, never beyond its largest finite value: what was inside
    of the bound before the value was rounded is inside of it afterwards.

    Raises:
        HoplonError: ends that are not finite, or the lower one above the upper.
    Source:
        Chen et al., DSN 2021 (Ranger), section III-C, step 2, where every value is finite; the
        integer form is hoplon's.
    Example:
        >>> BoundValue(0.0, 6.0)(torch.tensor([-1.0, 2.0, 1e38, float("inf"), float("nan")]))
        tensor([0., 2., 6., 6., 6.])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        bound = Bound(self.low, self.high)
        object.__setattr__(self, "low", bound.low)
        object.__setattr__(self, "high", bound.high)

    local = True

    extra_bytes = 16  # two float64 numbers

    def __call__(self, value: Tensor) -> Tensor:
        """The bounded value as a new tensor."""
        if self.low >= 0:
            return clamp_words(value, self.low, self.high)
        low, high = _values(self.low, self.high, value.dtype)
        return torch.nan_to_num(value, nan=low, posinf=high, neginf=low).clamp_(low, high)

    def outside(self, value: Tensor) -> Tensor:
        """NaN, and what lies beyond the ends."""
        low, high = _values(self.low, self.high, value.dtype)
        return ~((value >= low) & (value <= high))

    def apply_(self, value: Tensor) -> Tensor:
        """Bound in place; bit-identical to calling."""
        if self.low >= 0:
            return clamp_words_(value, self.low, self.high)
        low, high = _values(self.low, self.high, value.dtype)
        return torch.nan_to_num_(value, nan=low, posinf=high, neginf=low).clamp_(low, high)


def clamp_words(value: Tensor, low: float, high: float) -> Tensor:
    """Apply a :class:`BoundValue` with ``low >= 0``, as a plain function, whose call in a graph costs the least."""
    integer, least, largest = _words(low, high, value.dtype)
    return value.detach().view(integer).clamp(least, largest).view(value.dtype)


def clamp_words_(value: Tensor, low: float, high: float) -> Tensor:
    """The same in place."""
    integer, least, largest = _words(low, high, value.dtype)
    value.detach().view(integer).clamp_(least, largest)
    return value


# For each dtype the struct codes of the float that holds it and of the integer of the same width, and the bits to drop.
_CODES = {
    torch.float16: ("e", "H", 0),
    torch.bfloat16: ("f", "I", 16),
    torch.float32: ("f", "I", 0),
    torch.float64: ("d", "Q", 0),
}


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rounded_outwards(bound: Bound | BoundValue, dtype: torch.dtype) -> tuple[float, float]:
    """The ends of a bound as finite values of a dtype, so that the bound does not shrink."""
    return _ends(bound.low, bound.high, dtype)[1]


@cache
def _ends(low: float, high: float, dtype: torch.dtype) -> tuple[tuple[torch.dtype, int, int], tuple[float, float]]:
    """A bound rounded outwards to finite values of ``dtype``: in words and their dtype, and in values.

    No tensors: also right while a graph is being traced.
    """
    if dtype not in _CODES:
        raise HoplonError(f"expected a value of {', '.join(map(str, _CODES))} to bound, got {dtype}")
    largest = torch.finfo(dtype).max
    if low > largest or high < -largest:
        raise HoplonError(f"expected a bound that holds a value of {dtype}, got ({low}, {high})")
    # the upper end is the lower end of the mirrored bound
    (first_sign, first), (last_sign, last) = _at_most(low, dtype), _at_most(-high, dtype)
    values = (first_sign * _value(first, dtype) + 0.0, -last_sign * _value(last, dtype) + 0.0)
    return (_INTEGERS[dtype.itemsize], first, last), values


def _constant(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function whose result the compiler may take for a constant, so that it does not look inside."""
    return cast("Callable[_P, _R]", torch.compiler.assume_constant_result(function))


@_constant
def _words(low: float, high: float, dtype: torch.dtype) -> tuple[torch.dtype, int, int]:
    """The integer dtype of the width of ``dtype``, and a bound in its words."""
    return _ends(low, high, dtype)[0]


@_constant
def _values(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """A bound in values of ``dtype``."""
    return _ends(low, high, dtype)[1]


def _at_most(end: float, dtype: torch.dtype) -> tuple[int, int]:
    """Sign and magnitude word of the largest finite value of ``dtype`` not above ``end``, else of the smallest."""
    magnitude = min(abs(end), torch.finfo(dtype).max)
    real, integer, dropped = _CODES[dtype]
    word: int = struct.unpack(f"<{integer}", struct.pack(f"<{real}", magnitude))[0] >> dropped
    if end >= 0:
        return 1, word - (_value(word, dtype) > magnitude)
    return -1, word + (_value(word, dtype) < magnitude)


def _value(word: int, dtype: torch.dtype) -> float:
    real, integer, dropped = _CODES[dtype]
    value: float = struct.unpack(f"<{real}", struct.pack(f"<{integer}", word << dropped))[0]
    return value
