"""Trained weights as files in the user's cache folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hoplon.errors import DataError
from hoplon.files import CACHE_VARIABLE, cache_folder
from hoplon.formats import tensor_files

__all__ = ["cache_folder", "load_tensors", "save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with notes beside them; a reader sees the whole file or none.

    Raises:
        DataError: the folder cannot be made or written to.
    """
    way_out = f"set {CACHE_VARIABLE} to a folder in which trained weights can be kept"
    tensor_files.save_tensors(path, tensors, metadata, refusal=DataError, way_out=way_out)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a file that :func:`save_tensors` wrote.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return tensor_files.load_tensors(path)
    except (OSError, ValueError) as error:
        raise DataError(f"expected whole trained weights in {path}, got {error}; remove the file") from error
