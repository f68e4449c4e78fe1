"""Fixed point: the magnitude of a value in a fixed number of integer and fraction bits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import NumberFormat, integer_view

_NAME = re.compile(r"fixed\((\d+),(\d+)(,quirks)?\)")
# Words and their differences stay exact in float64.
_MOST_BITS = 53
# The two formats of Ranger's injector: magnitudes of 31 and 16 bits.
_ARTIFACT = ((21, 10), (14, 2))
_DECIMALS = 10**10


@final
@checked
@dataclass(frozen=True)
class FixedPoint(NumberFormat):
    """The magnitude of a value with `integer` bits before and `fraction` bits after the binary point.

    The word is ``min(floor(|value| * 2**fraction), 2**(integer + fraction) - 1)``; the sign is kept outside and never
    struck. A struck value is ``sign * (|value| + (after - before) * 2**-fraction)``: the residue below
    ``2**-fraction`` stays, unless the value was too large for the word, which then replaces it. The sum is exact and
    rounded once, to the dtype of the values: a dtype too coarse or too narrow for the result rounds it or overflows.
    NaN has the word 0 and infinity the largest; when their word is struck they become numbers. A value whose word a
    fault leaves as it was stays bit-identical, -0.0 included.

    Args:
        integer: bits before the point.
        fraction: bits after it; together 1 to 53.
        quirks: read the word as Ranger's published injector does, from the decimal string, for audits of its
            figures; (21, 10) and (14, 2) only. Magnitudes below 1e-4 print with an exponent, so their leading decimal
            digit is taken for the integer part; fraction bits come from a decimal of ten digits. (21, 10) does not
            saturate, bits above the word stay. What the injector cannot read (NaN, infinity, 1e16 and above, a
            magnitude of one digit below 1e-4; 2**14 and above for (14, 2)) is refused.
    Raises:
        HoplonError: widths out of range, or quirks of another format.
    Source:
        Chen, Li, Pattabiraman, DSN 2021 (Ranger): section IV-C (RQ4) has 14.2 for 16 bits; 21.10 for 32 is that of its
        published injector. Its fault adds or subtracts a power of two, other elements are not quantised; the sign is
        no target there either.
    Example:
        >>> FixedPoint(21, 10).apply(torch.tensor([-1.5]), 2**31 - 1, 1 << 30)
        tensor([-1048577.5000])
    """

    integer: int
    fraction: int
    quirks: bool = False

    def __post_init__(self) -> None:
        if self.integer < 0 or self.fraction < 0 or not 1 <= self.bits <= _MOST_BITS:
            raise HoplonError(
                f"expected integer and fraction bits of at least 0, together 1 to {_MOST_BITS}, "
                f"got {self.integer} and {self.fraction}"
            )
        if self.quirks and (self.integer, self.fraction) not in _ARTIFACT:
            raise HoplonError(f"expected (21, 10) or (14, 2) with quirks, got ({self.integer}, {self.fraction})")

    @property
    def name(self) -> str:
        """E.g. "fixed(21,10)" or "fixed(21,10,quirks)"."""
        return f"fixed({self.integer},{self.fraction}{',quirks' if self.quirks else ''})"

    @property
    def bits(self) -> int:
        """Width of the magnitude in bits."""
        return self.integer + self.fraction

    @classmethod
    @override
    def parse(cls, name: str) -> FixedPoint | None:
        found = _NAME.fullmatch(name)
        return None if found is None else cls(int(found[1]), int(found[2]), found[3] is not None)

    def words(self, values: Tensor) -> Tensor:
        """Return the magnitude of each value as an integer, int64; see the class."""
        if self.quirks:
            return self._as_read(values)
        scaled = _magnitude(values) * 2.0**self.fraction
        return scaled.clamp(max=self.all_ones).to(torch.int64)

    def encode(self, numbers: Tensor) -> Tensor:
        """Return the word of each number; none may be negative, for the sign is no part of the word."""
        if (numbers < 0).any():
            raise HoplonError(
                f"expected numbers of at least 0 for {self.name}, got {numbers.min()}; its sign is no bit"
            )
        return self.words(numbers)

    @override
    def apply(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        before = self.words(values)
        after = (before & self._mask(keep, values.device)) ^ self._mask(flip, values.device)
        before, after, values = torch.broadcast_tensors(before, after, values.detach())
        step = 2.0**-self.fraction
        magnitude = _magnitude(values)
        if not self.quirks:
            magnitude = torch.where(magnitude < 2.0**self.integer, magnitude, self.all_ones * step)
        elif self.integer == 14:
            magnitude = magnitude.clamp(max=self.all_ones * step)
        negative = integer_view(values) < 0 if values.dtype.itemsize > 1 else integer_view(values) >= 0x80
        changed = _signed_sum(magnitude, (after - before).double() * step, negative, values.dtype)
        return torch.where(after == before, integer_view(values), integer_view(changed)).view(values.dtype)

    def _as_read(self, values: Tensor) -> Tensor:
        """The word that Ranger's injector reads off the decimal string of each magnitude."""
        magnitude = _magnitude(values)
        limit = 1e16 if self.integer == 21 else 2.0**14
        exponent = magnitude.log10().floor()
        leading = magnitude * 10**-exponent
        exponent = exponent + (leading >= 10).double() - (leading < 1).double()
        leading = magnitude * 10**-exponent
        printed_small = (magnitude > 0) & (magnitude < 1e-4)
        one_digit = printed_small & (leading.round() / 10**-exponent == magnitude)
        refused = values.isnan() | (magnitude >= limit) | one_digit
        if refused.any():
            first = float(values[refused].flatten()[0])
            raise HoplonError(f"expected values that the injector of {self.name} can read, got {first}")
        integer = torch.where(printed_small, leading, magnitude).floor()
        rest = torch.where(printed_small, (leading - integer) * 10**exponent, magnitude - integer)
        word = integer.to(torch.int64)
        decimal = (2 * rest * _DECIMALS).round().to(torch.int64)
        for _ in range(self.fraction):
            # A digit 2, from 1.99999999995 and above, is no "1".
            word = (word << 1) | (decimal // _DECIMALS == 1)
            decimal = 2 * (decimal % _DECIMALS)
        return word & self.all_ones


def _magnitude(values: Tensor) -> Tensor:
    """|value| as float64, exactly; NaN as 0."""
    if not values.is_floating_point():
        raise HoplonError(f"expected floating-point values for a fixed-point word, got {values.dtype}")
    return values.detach().double().abs().nan_to_num(0.0, posinf=math.inf)


def _signed_sum(left: Tensor, right: Tensor, negative: Tensor, dtype: torch.dtype) -> Tensor:
    """``left + right``, negated where `negative`, rounded once to `dtype`.

    Args:
        left, right: float64, any shape.
    Source:
        Rounding to odd before the last rounding makes the two of them one: Boldo and Melquiond, IEEE Transactions on
        Computers 57(4), 2008. The error of the sum: Knuth, TAOCP 2, section 4.2.2, theorem B.
    """
    total = left + right
    virtual = total - left
    error = (left - (total - virtual)) + (right - virtual)
    if dtype == torch.float64:
        return torch.where(negative, -total, total)
    total = _to_odd(total, error)
    single = total.float()
    if dtype != torch.float32:
        single = _to_odd(single, total - single.double())
    return torch.where(negative, -single, single).to(dtype)


def _to_odd(rounded: Tensor, error: Tensor) -> Tensor:
    """A rounded number moved to its odd neighbour, on the side of the exact one, if it was not exact."""
    bits = integer_view(rounded)
    even = (error != 0) & (bits & 1 == 0)
    away = (error.sign() * rounded.sign()).to(bits.dtype)  # a larger word is a larger magnitude
    return torch.where(even, bits + away, bits).view(rounded.dtype)
