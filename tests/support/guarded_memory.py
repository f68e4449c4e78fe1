"""Faults that change bits of live tensors through numpy: unseen by torch, as a particle would."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]


def bytes_of(tensor: Tensor) -> Bytes:
    """Live bytes of a dense tensor, in memory order: shape ``(bytes,)``."""
    if not tensor.numel():
        return np.zeros(0, dtype=np.uint8)
    flat = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return np.asarray(flat.numpy())


def flip(tensor: Tensor, bit: int) -> None:
    """Invert one bit of a dense tensor, counted from the lowest of its first byte in memory."""
    bytes_of(tensor)[bit // 8] ^= np.uint8(1 << bit % 8)
