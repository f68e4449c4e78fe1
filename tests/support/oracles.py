"""Inputs that leave nothing out, and slow answers to compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def awkward(dtype: torch.dtype) -> Tensor:
    """Every 16-bit word, spread over the upper bits of the dtype, some low bits set: NaNs, zeros, subnormals."""
    words = torch.arange(2**16, dtype=torch.int64)
    shift = 8 * dtype.itemsize - 16
    words = (words << shift) | (words % 7 if shift else 0)
    bits = 8 * dtype.itemsize
    signed = words if bits == 64 else ((words + 2 ** (bits - 1)) % 2**bits) - 2 ** (bits - 1)
    return signed.to({16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]).view(dtype)


def outwards(bound: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    """The ends as values of the dtype, moved to the next one outwards where rounding went inwards."""
    limit = torch.finfo(dtype).max
    low, high = (torch.tensor(end, dtype=torch.float64).clamp(-limit, limit).to(dtype) for end in bound)
    if low.double() > max(bound[0], -limit):
        low = torch.nextafter(low, torch.tensor(-math.inf, dtype=dtype))
    if high.double() < min(bound[1], limit):
        high = torch.nextafter(high, torch.tensor(math.inf, dtype=dtype))
    return low.item(), high.item()


def snapshot(memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in memory.items()}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def changed(memory: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors whose bytes are others than before."""
    assert memory.keys() == before.keys()
    return [name for name, tensor in before.items() if not _bytes(memory[name]).equal(_bytes(tensor))]


def assert_same(memory: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """The same names and bytes."""
    assert not changed(memory, wanted)
