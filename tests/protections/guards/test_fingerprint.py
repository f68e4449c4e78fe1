"""Evidence about words: the sum against plain Python, and what it and the witnesses see."""

from __future__ import annotations

import pytest
import torch

from hoplon.protections.guards.known_bits import fingerprint as evidence
from hoplon.protections.guards.known_bits.fingerprint import changed_witnesses, evidence_of, same_sum


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_the_sum_is_that_of_plain_integers(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(info.min, info.max, (40_000,), generator=generator).to(dtype)
    parts = [word % (1 << 8 * dtype.itemsize) for word in words.tolist()]
    if dtype == torch.int64:
        parts = [part for word in parts for part in (word & 0xFFFFFFFF, word >> 32)]
    factors = [int(factor) for factor in evidence._factors()]
    total = 0
    for start in range(0, len(parts), len(factors)):
        chunk = sum(part * factor for part, factor in zip(parts[start:], factors, strict=False))
        total = (total * 0x6C8E9CF5 + chunk) % (2**32 - 5)
    assert int(evidence_of(words)[0]) % 2**32 == total


def test_single_flips_and_pairs_of_opposite_ones_change_the_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**31), 2**31, (200,), generator=generator).to(torch.int32)
    before = evidence_of(words)
    for bit in range(32):
        flip = -(2**31) if bit == 31 else 1 << bit
        words[bit] ^= flip
        assert not same_sum(evidence_of(words), before)
        words[bit + 100] = words[bit + 100] & ~flip if words[bit] & flip else words[bit + 100] | flip
        assert not same_sum(evidence_of(words), before)
        words[bit + 100] ^= flip
        words[bit] ^= flip
        words[bit + 100] ^= flip
        before = evidence_of(words)


def test_witnesses_tell_many_changes_from_few() -> None:
    words = torch.arange(1000, dtype=torch.int32)
    before = evidence_of(words)
    changed = words.clone()
    changed[:10] += 1
    assert changed_witnesses(evidence_of(changed), before, 1000)[0] <= 1
    assert changed_witnesses(evidence_of(words + 1), before, 1000) == (8, 8)
    assert changed_witnesses(evidence_of(words[:3] + 1), evidence_of(words[:3]), 3) == (3, 3)
