"""Counts of values in bins of guaranteed relative width: quantiles of any amount of data in constant memory."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Annotated, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PlainValidator
from torch import Tensor

from hoplon.errors import DataError, checked

# A bin holds the float32 values that share sign, exponent and this many bits of the mantissa.
_MANTISSA = 7
_DROPPED = 23 - _MANTISSA
_HALF = 1 << (31 - _DROPPED)

RELATIVE_ERROR = 2.0**-_MANTISSA
"""How far a quantile may lie outside of the exact one, relative to it."""


def _integers(listed: object) -> NDArray[np.int64]:
    if not isinstance(listed, list) or not all(type(one) is int and abs(one) < 2**63 for one in listed):
        raise ValueError("expected a list of integers of 64 bits")
    return np.array(listed, dtype=np.int64)


_Integers = Annotated[NDArray[np.int64], PlainValidator(_integers)]


@final
@checked
@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values by bin; a sum of histograms is the histogram of all their values.

    The bins are fixed: float32 values with equal upper 16 bits share one. There are 65,536, and only those that
    hold a value are stored, in increasing order of value. So histograms of any data merge without loss.

    Source:
        The guarantee is that of Masson, Rim, Lee, DDSketch, VLDB 2019, section 2; the bins are those of the number
        format instead of powers of one base, so that finding a bin is one shift.
    """

    bins: _Integers
    counts: _Integers

    def __post_init__(self) -> None:
        if self.bins.shape != self.counts.shape or (np.diff(self.bins) <= 0).any() or (self.counts < 0).any():
            raise ValueError("a histogram whose bins do not increase or do not match its counts")

    @classmethod
    def empty(cls) -> Self:
        """No values."""
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """The histogram of finite floating-point values of any shape; beyond float32 they count as its largest."""
        limit = torch.finfo(torch.float32).max
        words = values.detach().double().clamp(-limit, limit) if values.dtype == torch.float64 else values.detach()
        words = words.float().reshape(-1).view(torch.int32)
        magnitude = (words & 0x7FFFFFFF) >> _DROPPED
        dense = torch.bincount(torch.where(words < 0, ~magnitude, magnitude) + _HALF, minlength=2 * _HALF)
        filled = dense.nonzero().flatten()
        return cls((filled - _HALF).cpu().numpy(), dense[filled].cpu().numpy())

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        bins, place = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Histogram(bins, counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return np.array_equal(self.bins, other.bins) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def at_least(self, share: float) -> float:
        """A value that at least this share of the values does not exceed.

        Never below the exact quantile (nearest rank), and above it by at most :data:`RELATIVE_ERROR` of its magnitude
        (normal numbers; 2^-133 absolute below them).

        Raises:
            DataError: no values, or a share outside of (0, 1].
        """
        return _largest(self._bin(share))

    def at_most(self, share: float) -> float:
        """A value that at least this share of the values does not fall below; the mirror image of `at_least`."""
        mirrored = Histogram(~self.bins[::-1], self.counts[::-1])
        return -_largest(mirrored._bin(share))

    def _bin(self, share: float) -> int:
        if not 0 < share <= 1:
            raise DataError(f"expected a quantile in (0, 1], got {share}")
        if not self.total:
            raise DataError("expected values to take a quantile of, got none; profile with quantiles=True")
        rank = math.ceil(share * self.total * (1 - 1e-15))
        return int(self.bins[np.searchsorted(np.cumsum(self.counts), max(rank, 1))])

    def to_plain(self) -> dict[str, list[int]]:
        """Bins and counts as lists, for JSON."""
        return {"bins": self.bins.tolist(), "counts": self.counts.tolist()}


def _largest(bin_: int) -> float:
    """The largest value of a bin; bins below zero count downwards from -1."""
    word = ((bin_ + 1) << _DROPPED) - 1 if bin_ >= 0 else (~bin_) << _DROPPED
    magnitude: float = struct.unpack("<f", struct.pack("<I", word))[0]
    return magnitude if bin_ >= 0 else -magnitude
