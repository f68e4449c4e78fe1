"""Eight bytes that tell whether words are what they were, and whether many of them changed or few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MODULUS = (1 << 32) - 5  # prime: every power of two leaves a remainder, so every single flip is seen
_WITNESSES = 8
_HASH = 13


def evidence_of(words: Tensor) -> Tensor:
    """The sum of words and a hash of eight of them, int32, shape ``(2,)``.

    Args:
        words: integers on the CPU, shape ``(n,)``.
    """
    hashes = sum(hash_ << (4 * number) for number, hash_ in enumerate(_hashes(words)))
    return torch.tensor([_signed(_sum(words) % _MODULUS), _signed(hashes)], dtype=torch.int32)


def same_sum(left: Tensor, right: Tensor) -> bool:
    """Whether two pieces of evidence have the same sum.

    Every change of one word of up to 32 bits and every two flips but opposite ones in one bit lane change it, any
    other change with a probability of 1 - 2^-32.
    """
    return bool(left[0] == right[0])


def changed_witnesses(left: Tensor, right: Tensor, count: int) -> tuple[int, int]:
    """How many of the hashed words differ, and how many were hashed, of ``count`` words; a change is seen by 12/13."""
    different = (int(left[1]) ^ int(right[1])) & 0xFFFFFFFF
    changed = sum((different >> (4 * number)) & 15 != 0 for number in range(_WITNESSES))
    return changed, min(count, _WITNESSES)


def _sum(words: Tensor) -> int:
    row = words.numpy()
    if words.dtype != torch.int64:
        return int(row.sum(dtype=np.int64))
    low, high = row.astype(np.uint64) & np.uint64(0xFFFFFFFF), row >> 32
    return int(low.sum()) + (int(high.sum()) << 32)


def _hashes(words: Tensor) -> list[int]:
    count = len(words)
    places = (
        range(count) if count < _WITNESSES else [(2 * k + 1) * count // (2 * _WITNESSES) for k in range(_WITNESSES)]
    )
    return [int(words[place]) % _HASH for place in places]


def _signed(word: int) -> int:
    """An unsigned 32-bit word in the range of int32."""
    return word - (1 << 32) if word >> 31 else word
