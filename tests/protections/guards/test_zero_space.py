"""Check bits inside int8 weights: all single and double flips of a block, enumerated."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import hoplon as hp


def weights(blocks: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-64, 64, (blocks, 8), generator=generator, dtype=torch.int8)
    values[:, 7] = torch.tensor([-128, 127, 100])[:blocks]
    return values


def flipped(stored: Tensor, *bits: int) -> Tensor:
    words = stored.clone().view(torch.uint8)
    for bit in bits:
        words[1, bit // 8] ^= 1 << bit % 8
    return words.view(torch.int8)


def test_weights_come_back_and_only_the_free_bits_changed() -> None:
    stored = hp.guards.zero_space_encode(weights())
    assert stored.shape == (3, 8)
    changed = (stored ^ weights()).view(torch.uint8)
    assert not (changed & 0b10111111).any()
    assert changed.any()
    decoded = hp.guards.zero_space_decode(stored)
    assert torch.equal(decoded.weights, weights())
    assert (decoded.corrected, decoded.uncorrectable.tolist()) == (0, [False, False, False])


def test_every_single_flip_is_repaired_and_every_double_one_is_reported() -> None:
    stored = hp.guards.zero_space_encode(weights())
    for bit in range(64):
        decoded = hp.guards.zero_space_decode(flipped(stored, bit))
        assert torch.equal(decoded.weights, weights()), bit
        assert (decoded.corrected, decoded.uncorrectable.tolist()) == (1, [False, False, False])
    for pair in itertools.combinations(range(64), 2):
        decoded = hp.guards.zero_space_decode(flipped(stored, *pair))
        assert (decoded.corrected, decoded.uncorrectable.tolist()) == (0, [False, True, False]), pair


def test_what_does_not_fit_is_refused() -> None:
    large = weights()
    large[2, 3] = 64
    large[0, 0] = -65
    with pytest.raises(hp.HoplonError, match=r"weights in \[-64, 63\], got 2 others of 24; clamp or train them"):
        hp.guards.zero_space_encode(large)
    with pytest.raises(
        hp.HoplonError, match="expected int8 weights, a multiple of eight of them, got 8 of torch.float"
    ):
        hp.guards.zero_space_encode(torch.zeros(8))
    with pytest.raises(hp.HoplonError, match="a multiple of eight of them, got 7 of torch.int8"):
        hp.guards.zero_space_decode(torch.zeros(7, dtype=torch.int8))
