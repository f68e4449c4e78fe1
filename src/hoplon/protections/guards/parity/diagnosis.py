"""Two independent sums of a block of memory, and which blocks of a parity group they prove to be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_HALF = 0xFFFFFFFF  # words are summed as two unsigned halves: no flip can leave the sum by overflow
_MOST_ASSIGNMENTS = 4096  # ways to share out wrong columns among wrong blocks that are tried
_PLACE_BITS = 16
_AT_ONCE = 8  # blocks: intermediate results stay in the cache


def weights(columns: int, device: torch.device) -> Tensor:
    """The factors of the second sum: int64, shape ``(columns, 2)``, one for each half of a word.

    The low 16 bits are the half's place, so that two factors differ modulo 2^16; the bits above are those of a hash of
    it, so that no factors lie on a line: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), its shifts
    arithmetic.
    """
    place = torch.arange(1, 2 * columns + 1, device=device)
    mixed = place * -7046029254386353131  # 0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return ((mixed << _PLACE_BITS) | place).view(columns, 2)


def block_sums(blocks: Tensor) -> Tensor:
    """Both sums of each block: int64, shape ``(blocks, columns)`` to ``(blocks, 2)``.

    The first is the exact sum of the unsigned 32-bit halves, the second that of half times factor (:func:`weights`),
    modulo 2^64. Any one or two flipped bits change them: two that leave the first are the same bit of two halves, in
    opposite directions, and move the second by 2^bit times a difference that 2^16 does not divide.
    """
    factors = weights(blocks.shape[-1], blocks.device).T.contiguous()
    found = []
    for some in blocks.split(_AT_ONCE):
        low, high = some & _HALF, (some >> 32) & _HALF
        second = (low * factors[0]).sum(-1) + (high * factors[1]).sum(-1)
        found.append(torch.stack([low.sum(-1) + high.sum(-1), second], -1))
    return torch.cat(found)


def _terms(words: Tensor, factors: Tensor) -> Tensor:
    """Compute what words add to both sums: ``(..., columns)``, factors ``(columns, 2)`` to ``(..., columns, 2)``."""
    low, high = words & _HALF, (words >> 32) & _HALF
    return torch.stack([low + high, low * factors[:, 0] + high * factors[:, 1]], -1)


@dataclass(frozen=True)
class Diagnosis:
    """Wrong blocks of a group, and the group as it should be.

    Attributes:
        blocks: the group as it should be, int64, shape ``(rows + 1, columns)``, the parity row last; None if it cannot
            be known.
        sums: of these blocks, shape ``(rows + 1, 2)``; of the blocks as they are if they cannot be repaired.
        wrong: rows whose sums do not fit.
        gap: int64, shape ``(columns,)``: how far the blocks are from adding up to the parity row.
    """

    blocks: Tensor | None
    sums: Tensor
    wrong: list[int]
    gap: Tensor


def diagnose(blocks: Tensor, known: Tensor) -> Diagnosis:
    """Find and rebuild what is wrong in a group.

    A rebuilt block is accepted only if its own sums fit; with several wrong blocks, only if there is one single way to
    share out the wrong columns among them after which all fit.

    Args:
        blocks: int64, shape ``(rows + 1, columns)``, the parity row last: the sum of the others modulo 2^64.
        known: int64, shape ``(2, rows + 1, 2)``: two copies of the sums of each block; either one may be right.
    """
    gap = blocks[:-1].sum(0) - blocks[-1]
    sums = block_sums(blocks)
    wrong = (~_fit(sums, known)).nonzero()[:, 0]
    columns = gap.nonzero()[:, 0]
    rebuilt: Tensor | None = None
    if not len(columns):
        # A single wrong block would show in the columns: its sums are what is wrong.
        rebuilt = blocks if len(wrong) <= 1 else None
    elif len(wrong):
        change = -gap[columns].expand(len(wrong), -1).clone()
        change[wrong == len(blocks) - 1] *= -1
        owners = _owners(blocks[wrong][:, columns], change, weights(len(gap), gap.device)[columns], known - sums, wrong)
        if owners is not None:
            rebuilt = blocks.clone()
            rebuilt[wrong[owners], columns] += change.gather(0, owners[None])[0]
            sums[wrong] = block_sums(rebuilt[wrong])
    return Diagnosis(rebuilt, sums, wrong.tolist(), gap)


def _fit(sums: Tensor, known: Tensor) -> Tensor:
    """Return a mask of blocks both of whose sums are known, each from either copy; the last axis goes."""
    return torch.eq(sums, known).any(0).all(-1)


def _owners(words: Tensor, change: Tensor, factors: Tensor, missing: Tensor, wrong: Tensor) -> Tensor | None:
    """To which wrong block each wrong column belongs: shape ``(columns,)``; None if that is not certain.

    Args:
        words: of the wrong blocks in the wrong columns, shape ``(blocks, columns)``.
        change: what would right the column, if this block were the wrong one; the same shape.
        factors: of the wrong columns.
        missing: known sums less those now, shape ``(2, rows + 1, 2)``.
        wrong: rows of the wrong blocks.
    """
    count, columns = words.shape
    gains = _terms(words + change, factors) - _terms(words, factors)  # (blocks, columns, 2)
    if count == 1:
        choices = torch.zeros(1, columns, dtype=torch.int64, device=words.device)
    elif columns <= _MOST_ASSIGNMENTS.bit_length() and count**columns <= _MOST_ASSIGNMENTS:
        digits = torch.arange(count**columns, device=words.device)
        choices = torch.stack([digits // count**column % count for column in range(columns)], 1)
    elif count == 2:
        return _cut(gains, missing[:, wrong])
    else:
        return None
    gained = torch.stack([((choices == block)[..., None] * gains[block]).sum(1) for block in range(count)], 1)
    found = _fit(gained, missing[:, None, wrong]).all(-1).nonzero()[:, 0]
    return choices[found[0]] if len(found) == 1 else None


def _cut(gains: Tensor, missing: Tensor) -> Tensor | None:
    """Owners if the columns up to some cut belong to one of two blocks, the rest to the other: a burst over an edge."""
    columns = gains.shape[1]
    left = torch.cat([torch.zeros_like(gains[:, :1]), gains.cumsum(1)], 1).transpose(0, 1)  # (cuts, blocks, 2)
    right = left[-1] - left
    found = []
    for first in (0, 1):  # the block that owns the columns before the cut
        gained = torch.stack([left[:, 0], right[:, 1]] if first == 0 else [right[:, 0], left[:, 1]], 1)
        cuts = _fit(gained, missing[:, None]).all(-1).nonzero()[:, 0].tolist()
        found += [(first, cut) for cut in cuts if first == 0 or 0 < cut < columns]
    if len(found) != 1:
        return None
    first, cut = found[0]
    after: Tensor = torch.arange(columns, device=gains.device) >= cut
    return after.long() if first == 0 else (~after).long()
