"""Faults of a single word."""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from annotated_types import Ge
from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError, Natural, checked
from hoplon.faults.model import RANDOM_HIGH, WordModel, distinct
from hoplon.formats.base import Field, NumberFormat
from hoplon.registry import Shorthand, register

_MOST_PATTERNS = 2**16


@checked
@dataclass(frozen=True)
class _SomeBits(WordModel):
    """Strikes `count` different bits of one word, every set of positions equally likely."""

    count: Annotated[int, Ge(1), Shorthand("flips")] = 1
    bits: tuple[Natural, ...] | None = dataclasses.field(default=None, kw_only=True)
    field: Field | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.bits is None:
            return
        if self.field is not None:
            raise HoplonError(f"expected bits or a field, got both: {self.bits} and {self.field!r}")
        if len(set(self.bits)) != len(self.bits):
            raise HoplonError(f"expected different positions in bits, got {self.bits}")
        if len(self.bits) < self.count:
            raise HoplonError(f"expected at least count={self.count} positions in bits, got {self.bits}")

    @abstractmethod
    def _changed(self, mask: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
        """``keep`` and ``flip`` that do to the bits of `mask` what the model does."""

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` words of which the chosen bits are struck; probability 1 / C(positions, bits struck).

        The first n of a longer draw are the draw of n.
        """
        positions = self._positions(format)
        chosen = distinct(len(positions), count, self.count, generator=generator)
        mask = (1 << torch.tensor(positions).to(chosen.device)[chosen]).sum(1)
        keep, flip = self._changed(mask, format)
        share = 1 / math.comb(len(positions), self.count)
        return keep, flip, torch.full_like(flip, share, dtype=torch.float64)

    def patterns(self, format: NumberFormat) -> tuple[Tensor, Tensor, Tensor]:
        """List every set of positions, in ascending order of the lists of positions."""
        positions = self._positions(format)
        number = math.comb(len(positions), self.count)
        if number > _MOST_PATTERNS:
            raise HoplonError(f"expected at most {_MOST_PATTERNS} sets of positions to list, got {number}; draw them")
        chosen = torch.tensor(list(itertools.combinations(sorted(positions), self.count)))
        keep, flip = self._changed((1 << chosen).sum(1), format)
        return keep, flip, torch.full((number,), 1 / number, dtype=torch.float64)

    def _positions(self, format: NumberFormat) -> tuple[int, ...]:
        """Return the positions to choose from in this format."""
        if self.field is not None:
            positions = format.field(self.field)
        else:
            positions = tuple(range(format.bits)) if self.bits is None else self.bits
        outside = [bit for bit in positions if not 0 <= bit < format.bits]
        if outside:
            raise HoplonError(f"expected bits in [0, {format.bits}) for {format.name}, got {outside[0]}")
        if len(positions) < self.count:
            raise HoplonError(f"expected count of at most {len(positions)} for {format.name}, got {self.count}")
        return positions


@register("fault", "bitflip")
@final
@checked
@dataclass(frozen=True)
class BitFlip(_SomeBits):
    """Inverts `count` different bits of one word, every set of positions equally likely.

    Args:
        count: bits inverted per word.
        bits: positions to choose from, 0 = least significant; None: all of the word.
        field: choose from the "sign", "exponent" or "mantissa" of a floating-point format instead.
    Raises:
        HoplonError: fewer positions than `count`, a position twice, or (when drawn) outside the word, or a field of
            a format that has none.
    Example:
        >>> BitFlip(count=2, bits=(30, 31)).name
        'BitFlip(count=2, bits=(30, 31))'
        >>> from hoplon.formats.dtypes import native
        >>> keep, flip, probability = BitFlip(bits=(3,)).draw(
        ...     2, format=native(torch.float16), generator=torch.Generator().manual_seed(0))
        >>> flip, probability
        (tensor([8, 8]), tensor([1., 1.], dtype=torch.float64))
    """

    def _changed(self, mask: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
        return torch.full_like(mask, format.all_ones), mask


@register("fault", "stuck-at")
@final
@checked
@dataclass(frozen=True)
class StuckAt(_SomeBits):
    """Sets `count` different bits of one word to `value`; a bit that has it already stays, and nothing changes.

    Args:
        value: 0 or 1.
        count: bits set per word.
        bits: positions to choose from; None: all of the word.
        field: choose from the "sign", "exponent" or "mantissa" of a floating-point format instead.
    Raises:
        HoplonError: another value; and as `BitFlip`.
    Example:
        >>> StuckAt(1, bits=(30,)).name
        'StuckAt(bits=(30,), value=1)'
    """

    count: Annotated[int, Ge(1), Shorthand("flips")] = dataclasses.field(default=1, kw_only=True)
    value: Annotated[Literal[0, 1], Shorthand("stuck_value")]

    def _changed(self, mask: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
        return format.all_ones & ~mask, mask * self.value


@register("fault", "adjacent-bits")
@final
@checked
@dataclass(frozen=True)
class AdjacentBits(WordModel):
    """Inverts `count` neighbouring bits of one word; every place of the run in the word equally likely.

    Args:
        count: bits inverted per word.
    Raises:
        HoplonError: a count below 1 or (when drawn) above the width of the word.
    """

    count: Annotated[int, Ge(1), Shorthand("flips")] = 2

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` words with a run of inverted bits; probability 1 / places of the run."""
        keep, flip, probability = self.patterns(format)
        random = torch.randint(RANDOM_HIGH, (count,), generator=generator, device=generator.device)
        chosen = (random % len(flip)).to(flip.device)
        return keep[chosen], flip[chosen], probability[chosen]

    def patterns(self, format: NumberFormat) -> tuple[Tensor, Tensor, Tensor]:
        """List every place of the run, lowest first."""
        places = format.bits - self.count + 1
        if places < 1:
            raise HoplonError(f"expected count of at most {format.bits} for {format.name}, got {self.count}")
        run = -1 if self.count == 64 else (1 << self.count) - 1
        flip = torch.tensor(run) << torch.arange(places)
        return torch.full_like(flip, format.all_ones), flip, torch.full((places,), 1 / places, dtype=torch.float64)


@register("fault", "zero")
@final
@checked
@dataclass(frozen=True)
class Zero(WordModel):
    """The word becomes that of zero: the number 0, and in quantised formats the zero point.

    In `FixedPoint` the sign and the residue below the last bit are no part of the word and stay; in quantised formats a
    value that rounds to zero stays as it is.
    """

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` words of zero; probability 1."""
        flip = format.encode(torch.zeros(count, dtype=torch.float64))
        return torch.zeros_like(flip), flip, torch.ones(count, dtype=torch.float64)

    @override
    def patterns(self, format: NumberFormat) -> tuple[Tensor, Tensor, Tensor]:
        if format.varies:
            raise HoplonError(f"expected one word for zero to list, got one per channel in {format.name}; draw them")
        return self.draw(1, format=format, generator=torch.Generator())


@register("fault", "random-value")
@final
@checked
@dataclass(frozen=True)
class RandomValue(WordModel):
    """The word is replaced: by that of a number drawn uniformly from [low, high), or by uniformly random bits.

    Args:
        low: of the numbers; with `high`.
        high: of the numbers; None for both: random bits, which in floating point may be NaN or infinity.
    Raises:
        HoplonError: one of the two, not finite, or not in order.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise HoplonError(f"expected low and high, or neither, got {self.low} and {self.high}")
        if self.low is not None and self.high is not None and not self.low < self.high < self.low + math.inf:
            raise HoplonError(f"expected finite low < high, got {self.low} and {self.high}")

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` random words; the probability of a number is NaN, since it has a density."""
        device = generator.device
        if self.low is None or self.high is None:
            halves = torch.randint(2**32, (count, 2), generator=generator, device=device)
            flip = (halves[:, 0] | halves[:, 1] << 32) & format.all_ones
            probability = torch.full((count,), 2.0**-format.bits, dtype=torch.float64, device=device)
        else:
            unit = torch.rand(count, dtype=torch.float64, generator=generator, device=device)
            flip = format.encode(self.low + unit * (self.high - self.low))
            probability = torch.full((count,), math.nan, dtype=torch.float64, device=device)
        return torch.zeros_like(flip), flip, probability


def single_bits(keep: Iterable[int], flip: Iterable[int], all_ones: int) -> list[int | None]:
    """For every change the position of the one bit that it can touch; None: no bit, or several."""
    touched = ((~k | f) & all_ones for k, f in zip(keep, flip, strict=True))
    return [bits.bit_length() - 1 if bits.bit_count() == 1 else None for bits in (t % 2**64 for t in touched)]
