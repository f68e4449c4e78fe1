"""Digests of tensors and descriptions. Their values are stored in run directories and bundles: they never change."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LATER: Mapping[str, Any] = {"later": True}
"""Metadata of a field that its class got when digests of it were stored: at its default it is left out of them."""


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
    digest = hashlib.sha256()
    add_words(digest, tensor)
    return digest.hexdigest()


def add_words(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Feed a digest the words of one tensor in row-major order, whatever its strides and device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def content_digest(value: Any) -> str:
    """SHA-256 of a description (plain values, tensors, and dataclasses, mappings and sequences of them).

    Equal descriptions have equal digests in every process; objects of other classes count by their class alone.

    Example:
        >>> from hoplon.protections.ranges import Bound
        >>> content_digest([Bound(0, 1)]) == content_digest([Bound(0, 1)]) != content_digest([Bound(0, 2)])
        True
    """
    digest = hashlib.sha256()
    _add_content(digest, value)
    return digest.hexdigest()


def _add_content(digest: hashlib._Hash, value: Any) -> None:
    parts: list[Any] = []
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        add_words(digest, value)
    elif isinstance(value, Mapping):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for option in dataclasses.fields(value):
            part = getattr(value, option.name)
            if not option.metadata.get("later"):
                parts.append(part)
            elif part != option.default:
                parts += [option.name, part]
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        digest.update(repr(value).encode())
    digest.update(f"<{type(value).__qualname__} {len(parts)}>".encode())
    for part in parts:
        _add_content(digest, part)
