"""Tensors by name with notes in a safetensors file that knows when it is damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hoplon.errors import HoplonError, StoreError, said
from hoplon.files import replacing
from hoplon.formats.digest import content_digest, digest_of

_SEAL, _KIND = "seal", "sha256:"
_WAY_OUT = "choose a writable folder"


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, str],
    *,
    refusal: type[HoplonError] = StoreError,
    way_out: str = _WAY_OUT,
) -> None:
    """Write tensors, and in the header notes and a digest of all of it; a reader sees the whole file or none.

    Raises:
        HoplonError: of class ``refusal``: the folder is not writable, or the disk is full.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, refusal=refusal, way_out=way_out) as new:
        write_tensors(new, whole, {**notes, _SEAL: _digest(whole, notes)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file without a seal.

    Raises:
        OSError: the disk is full, for which safetensors has an error of its own.
    """
    try:
        save_file(dict(tensors), path, None if notes is None else dict(notes))
    except SafetensorError as error:
        raise OSError(said(error)) from error


def load_tensors(
    path: str | os.PathLike[str], *, must_be_sealed: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and notes of a file of :func:`save_tensors`, or of one without a digest, such as another program's.

    Args:
        must_be_sealed: refuse files without a digest.
    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: another format, or content that is not as it was written; on one line.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("no plain file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
            notes = dict(file.metadata() or {})
    except (SafetensorError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(f"no whole safetensors file ({said(error)})") from error
    digest = notes.pop(_SEAL, None)
    renamed = any(note.startswith(_KIND) for note in notes.values())  # a changed bit in the name of the note
    if digest is None and must_be_sealed:
        raise ValueError("content of which nothing is known: it has no seal")
    if renamed or (digest is not None and digest != _digest(tensors, notes)):
        raise ValueError("content that is not as it was written: its seal is another")
    return tensors, notes


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    texts = sorted((name, str(note)) for name, note in notes.items())
    return _KIND + content_digest([digest_of(tensors), *texts])
