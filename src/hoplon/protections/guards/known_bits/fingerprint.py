"""A 64-bit fingerprint of a tensor's words.

A position-weighted 32-bit checksum, which every single bit flip changes, and 4-bit hashes of eight sampled words, which
tell a local change (a soft error) from a wholesale one (an optimizer step).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoplon.formats.base import signed

_MODULUS = (1 << 32) - 5  # prime: no factor and no power of two is a multiple of it, so every single flip is seen
_BASE = 0x6C8E9CF5  # what the sum of a chunk is multiplied by for each chunk after it
_CHUNK = 1 << 15
_SAMPLES = 8
_HASH = 13


def fingerprint_of(words: Tensor) -> Tensor:
    """Compute the checksum of words and the hashes of eight of them.

    Args:
        words: integers of 1, 2, 4 or 8 bytes on the CPU, shape ``(n,)``.
    Returns:
        int32, shape ``(2,)``: the checksum, and eight hashes of 4 bits.
    """
    return torch.tensor([signed(_sum(words), 32), signed(_hashes(words), 32)], dtype=torch.int32)


def same_sum(left: Tensor, right: Tensor) -> bool:
    """Return True if two fingerprints have the same checksum.

    Every flip of one bit changes it, any other change with a probability of 1 - 2^-32.
    """
    return bool(left[0] == right[0])


def changed_samples(words: Tensor, fingerprint: Tensor) -> tuple[int, int]:
    """Count the sampled words whose hashes differ from those in a fingerprint, and those that were sampled.

    A change of a sampled word shows in its hash with a probability of 12/13.
    """
    different = _hashes(words) ^ (int(fingerprint[1]) & 0xFFFFFFFF)
    changed = sum((different >> (4 * number)) & 15 != 0 for number in range(_SAMPLES))
    return changed, min(len(words), _SAMPLES)


def _sum(words: Tensor) -> int:
    """Sum all 32-bit parts of words, each times a factor of its own, modulo a prime."""
    row = words.contiguous().numpy()
    parts = row.view(np.uint32) if row.itemsize >= 4 else row.view(f"u{row.itemsize}")
    factors, total = _factors(), 0
    for start in range(0, len(parts), _CHUNK):
        part = parts[start : start + _CHUNK]
        products = part * factors[: len(part)]
        low, high = int((products & np.uint64(0xFFFFFFFF)).sum()), int((products >> np.uint64(32)).sum())
        total = (total * _BASE + low + (high << 32)) % _MODULUS
    return total


@functools.cache
def _factors() -> npt.NDArray[np.uint64]:
    """Irregular odd factors below 2^32, the same ones everywhere."""
    factors = np.arange(1, _CHUNK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    factors ^= factors >> np.uint64(29)
    factors *= np.uint64(0xBF58476D1CE4E5B9)
    return (factors >> np.uint64(32)) | np.uint64(1)


def _hashes(words: Tensor) -> int:
    """Hashes of eight words, 4 bits each, the first of them lowest."""
    count = len(words)
    places = range(count) if count < _SAMPLES else [(2 * k + 1) * count // (2 * _SAMPLES) for k in range(_SAMPLES)]
    return sum(int(words[place]) % _HASH << (4 * number) for number, place in enumerate(places))
