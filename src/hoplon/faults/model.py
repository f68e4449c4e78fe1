"""Fault models: how a fault changes the word it strikes."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats import NumberFormat, native

# Far above any count of bits, so that the remainder below is uniform to within 2**-56.
_RANDOM_HIGH = 2**62


@dataclass(frozen=True)
class FaultModel(ABC):
    """How a fault changes a word, whatever the site.

    Args:
        format: the bits that are struck; None: those of the value's own dtype.
    """

    format: NumberFormat | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """The model with the options that differ from their defaults, e.g. "BitFlip(count=2)"."""
        chosen = [
            f"{option.name}={getattr(self, option.name)}"
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != option.default
        ]
        return f"{type(self).__name__}({', '.join(chosen)})"

    def format_for(self, dtype: torch.dtype) -> NumberFormat:
        """The format struck in values of `dtype`."""
        return native(dtype) if self.format is None else self.format

    @abstractmethod
    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` independent changes of a word of `format`.

        Returns:
            ``keep`` and ``flip`` (int64, shape ``(count,)``, ``after = (before & keep) ^ flip``) and the
            probability of each draw (float64, shape ``(count,)``), on the device of the generator.
        Raises:
            HoplonError: the model does not fit the format.
        """


@final
@dataclass(frozen=True)
class BitFlip(FaultModel):
    """Inverts `count` different bits of one word, every set of positions equally likely.

    Args:
        count: bits inverted per word.
        bits: positions to choose from, 0 = least significant; None: all of the word.
    Raises:
        HoplonError: fewer positions than `count`, a position twice, or (in `draw`) outside the word.
    Example:
        >>> BitFlip(count=2, bits=(30, 31)).name
        'BitFlip(count=2, bits=(30, 31))'
        >>> keep, flip, probability = BitFlip(bits=(3,)).draw(
        ...     2, format=native(torch.float16), generator=torch.Generator().manual_seed(0))
        >>> flip, probability
        (tensor([8, 8]), tensor([1., 1.], dtype=torch.float64))
    """

    count: int = 1
    bits: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise HoplonError(f"expected count of at least 1 bit, got {self.count}")
        if self.bits is None:
            return
        object.__setattr__(self, "bits", tuple(self.bits))
        if len(set(self.bits)) != len(self.bits):
            raise HoplonError(f"expected different positions in bits, got {self.bits}")
        if len(self.bits) < self.count:
            raise HoplonError(f"expected at least count={self.count} positions in bits, got {self.bits}")

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` words of which the chosen bits are inverted; probability 1 / C(positions, bits flipped).

        The first n of a longer draw are the draw of n. Sets by Floyd's method (Bentley and
        Floyd, Communications of the ACM 30(9), 1987).
        """
        positions = self._positions(format)
        shape, device = (count, self.count), generator.device
        random = torch.randint(_RANDOM_HIGH, shape, generator=generator, device=device)
        # 1 << 63 as int64 is the lowest integer: the two's complement of the word.
        masks = torch.ones(len(positions), dtype=torch.int64, device=device) << torch.tensor(positions).to(device)
        flip = torch.zeros(count, dtype=torch.int64, device=device)
        for column, last in enumerate(range(len(positions) - self.count, len(positions))):
            chosen = masks[random[:, column] % (last + 1)]
            flip |= torch.where((flip & chosen) != 0, masks[last], chosen)
        keep = torch.full_like(flip, format.all_ones)
        share = 1 / math.comb(len(positions), self.count)
        return keep, flip, torch.full_like(flip, share, dtype=torch.float64)

    def _positions(self, format: NumberFormat) -> tuple[int, ...]:
        """The positions to choose from in this format."""
        positions = tuple(range(format.bits)) if self.bits is None else self.bits
        outside = [bit for bit in positions if not 0 <= bit < format.bits]
        if outside:
            raise HoplonError(f"expected bits in [0, {format.bits}) for {format.name}, got {outside[0]}")
        if len(positions) < self.count:
            raise HoplonError(f"expected count of at most {format.bits} for {format.name}, got {self.count}")
        return positions
