"""Digests of memory: the same words under the same names give the same one, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of(memory: Mapping[str, Tensor]) -> str:
    """A SHA-256 over names, dtypes, shapes and words, whatever the order of the names, strides and device.

    Example:
        >>> one = torch.tensor([1.0, 2.0])
        >>> digest_of({"a": one}) == digest_of({"a": one.clone()}), digest_of({"a": one}) == digest_of({"b": one})
        (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(memory.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{digest_of_words(tensor)}\n".encode())
    return digest.hexdigest()


def digest_of_words(tensor: Tensor) -> str:
    """A SHA-256 over the words of one tensor in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()
