"""Check bits inside int8 weights, at no cost in memory: encoded to be stored, decoded to be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked

_BLOCK = 8
_FREE = 6  # the bit that repeats the sign of a small weight
_CHECKS = 7


@final
@dataclass(frozen=True)
class Decoded:
    """Result of :func:`zero_space_decode`.

    Attributes:
        weights: int8, the shape of the encoded tensor.
        corrected: blocks of eight weights in which one flipped bit was repaired.
        uncorrectable: bool, one per block: two flipped bits, or more that look like it; its weights may be wrong.
    """

    weights: Tensor
    corrected: int
    uncorrectable: Tensor


@checked
def zero_space_encode(weights: Tensor) -> Tensor:
    """Put the seven check bits of a (64,57) code into every eight int8 weights, in place of what they repeat.

    A weight in [-64, 63] repeats its sign in bit 6. Seven of them free seven bits, which hold an extended Hamming code
    of the block: one flipped bit of 64 is repaired, two are detected. What comes out is no weight: decode it first.
    This is a way to store weights, not a guard of live ones, since a model would compute with the check bits.

    Args:
        weights: int8, any shape, a multiple of eight in all. Of each eight in row-major order, the first seven have
            to lie in [-64, 63]; the eighth may be anything.
    Returns:
        int8, the same shape.
    Raises:
        HoplonError: another dtype or count, or weights that are too large; says how many.
    Source:
        Guan et al., In-Place Zero-Space Memory Protection for CNN, NeurIPS 2019. Weights that do not fit are made to by
        training there; here they are refused.
    Example:
        >>> weights = torch.tensor([-64, 63, 0, 1, -1, 5, -7, 127], dtype=torch.int8)
        >>> stored = zero_space_encode(weights)
        >>> stored[3] ^= 16
        >>> bool((zero_space_decode(stored).weights == weights).all())
        True
    """
    bits = bits_of(_blocks(weights))
    large = int((bits[:, :_CHECKS, 7] != bits[:, :_CHECKS, _FREE]).sum())
    if large:
        raise HoplonError(
            f"expected the first seven of every eight weights in [-64, 63], got {large:,} others of "
            f"{weights.numel():,}; clamp or train them, or guard them by Parity"
        )
    bits[:, :_CHECKS, _FREE] = _checks(bits)
    return bytes_of(bits).view(torch.int8).view(weights.shape)


@checked
def zero_space_decode(stored: Tensor) -> Decoded:
    """The weights of :func:`zero_space_encode`, one flipped bit in every eight repaired.

    Args:
        stored: int8, any shape; not modified.
    Raises:
        HoplonError: another dtype, or a count that eight does not divide.
    """
    bits = bits_of(_blocks(stored))
    flat = bits.view(len(bits), 64)
    places = _places(flat.device)
    syndrome = (flat[:, :, None] & places).sum(1) & 1  # (blocks, 7): six of the Hamming code, then parity of all
    position = (syndrome[:, :6] << torch.arange(6, device=flat.device)).sum(1)
    odd = syndrome[:, 6].bool()
    codes = (places[:, :6] << torch.arange(6, device=flat.device)).sum(1)
    hit = (codes == position[:, None]) & odd[:, None]
    flat ^= hit
    bits[:, :_CHECKS, _FREE] = bits[:, :_CHECKS, 7]
    return Decoded(bytes_of(bits).view(torch.int8).view(stored.shape), int(odd.sum()), ~odd & (position != 0))


def _places(device: torch.device) -> Tensor:
    """For each of the 64 bits of a block the checks that cover it, int64, shape ``(64, 7)``: all different.

    Check c is bit 6 of weight c. The first six are at 1, 2, 4, ..., 32 of a Hamming code; the seventh, at 0, is the
    parity of all; data bits have the others.
    """
    checks = {8 * number + _FREE: 1 << number for number in range(6)} | {8 * 6 + _FREE: 0}
    free = (place for place in range(64) if place & (place - 1))
    codes = torch.tensor([checks[bit] if bit in checks else next(free) for bit in range(64)], device=device)
    return torch.cat([codes[:, None] >> torch.arange(6, device=device) & 1, torch.ones_like(codes)[:, None]], 1)


def _checks(bits: Tensor) -> Tensor:
    """The seven check bits of blocks; what stands in their places does not matter."""
    data = bits.clone()
    data[:, :_CHECKS, _FREE] = 0
    places = _places(bits.device)
    parities = (data.view(len(data), 64, 1) & places).sum(1) & 1
    parities[:, 6] ^= parities[:, :6].sum(1) & 1  # the parity of all covers the other checks
    return parities


def _blocks(words: Tensor) -> Tensor:
    if words.dtype != torch.int8 or words.numel() % _BLOCK or not words.numel():
        raise HoplonError(f"expected int8 weights, a multiple of eight of them, got {words.numel()} of {words.dtype}")
    return words.reshape(-1, _BLOCK)


def bits_of(blocks: Tensor) -> Tensor:
    """The bits of words of one byte: int64 zeros and ones, lowest first, ``(blocks, 8)`` to ``(blocks, 8, 8)``."""
    return blocks.to(torch.int64)[:, :, None] >> torch.arange(8, device=blocks.device) & 1


def bytes_of(bits: Tensor) -> Tensor:
    """The uint8 words of :func:`bits_of`, shape ``(blocks, 8)``."""
    return (bits.to(torch.int64) << torch.arange(8, device=bits.device)).sum(2).to(torch.uint8)
