"""Fingerprints of words: pinned, and which changes the checksum and the sampled words see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hoplon.protections.guards.known_bits.fingerprint import changed_samples, fingerprint_of, same_sum

POSITIONS = torch.arange(40_000)  # more than a chunk


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (torch.arange(1000, dtype=torch.int32), [255902425, 380862554]),
        ((POSITIONS * POSITIONS % 251).to(torch.uint8), [-2120859787, 1426265929]),
        (POSITIONS * 2654435761 - 2**44 * POSITIONS, [-8032468, 1083513442]),
    ],
)
def test_fingerprints_are_pinned(words: Tensor, expected: list[int]) -> None:
    assert fingerprint_of(words).tolist() == expected


def test_single_flips_and_pairs_of_opposite_ones_change_the_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**31), 2**31, (200,), generator=generator).to(torch.int32)
    before = fingerprint_of(words)
    for bit in range(32):
        flip = -(2**31) if bit == 31 else 1 << bit
        words[bit] ^= flip
        assert not same_sum(fingerprint_of(words), before)
        words[bit + 100] = words[bit + 100] & ~flip if words[bit] & flip else words[bit + 100] | flip
        assert not same_sum(fingerprint_of(words), before)
        words[bit + 100] ^= flip
        words[bit] ^= flip
        words[bit + 100] ^= flip
        before = fingerprint_of(words)


def test_samples_tell_many_changes_from_few() -> None:
    words = torch.arange(1000, dtype=torch.int32)
    before = fingerprint_of(words)
    changed = words.clone()
    changed[:10] += 1
    assert changed_samples(changed, before)[0] <= 1
    assert changed_samples(words + 1, before) == (8, 8)
    assert changed_samples(words[:3] + 1, fingerprint_of(words[:3])) == (3, 3)
