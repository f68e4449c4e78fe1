"""Integers that a guard relies on, kept beside sums that find and repair a wrong one."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hoplon.formats.base import signed

_FEW = 1 << 10  # entries: what takes longer than to sum them is to call each operator


def power_sums(entries: Tensor) -> Tensor:
    """Sums of e, p e and p^2 e over entries e at positions p = 1, 2, ..., int64 modulo 2^64, shape ``(3,)``.

    A single wrong entry, off by d, moves them by d, p d and p^2 d, which tells p and d; two wrong entries never look
    like one; a single wrong sum is alone in being off. The entries have to have less than 64 bits.
    """
    wide = entries.to(torch.int64)
    if len(wide) <= _FEW and wide.device.type == "cpu":
        return torch.mv(_powers(len(wide)), wide)
    positions = torch.arange(1, len(wide) + 1, device=entries.device)
    first = positions * wide
    return torch.stack([wide.sum(), first.sum(), (positions * first).sum()])


@functools.lru_cache(maxsize=16)
def _powers(count: int) -> Tensor:
    """Positions from 1 to the powers 0, 1 and 2: int64, shape ``(3, count)``."""
    return torch.stack([torch.arange(1, count + 1) ** power for power in range(3)])


def mend_entry(entries: Tensor, sums: Tensor, low: int, high: int) -> int | None:
    """Repair a single wrong entry, or a single wrong sum, in place.

    Args:
        entries: integers that lie in ``range(low, high)`` when they are right.
        sums: of them, from :func:`power_sums`.
    Returns:
        The position of the mended entry from 0, or -1 for a sum; None if it is neither, and nothing was written.
    """
    off = [signed((int(now) - int(then)) % 2**64, 64) for now, then in zip(power_sums(entries), sums, strict=True)]
    if sum(gap != 0 for gap in off) == 1:
        if int(entries.min()) < low or int(entries.max()) >= high:
            return None
        sums.copy_(power_sums(entries))
        return -1
    if not off[0] or off[1] % off[0]:
        return None
    position = off[1] // off[0]
    if not 1 <= position <= len(entries) or signed(position * off[1] % 2**64, 64) != off[2]:
        return None
    entry = int(entries[position - 1]) - off[0]
    if not low <= entry < high:
        return None
    entries[position - 1] = entry
    return position - 1
