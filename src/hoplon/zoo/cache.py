"""The folder for trained weights: one of the user, outside any repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs
from torch import Tensor

from hoplon.errors import DataError
from hoplon.formats import tensor_files

_VARIABLE = "HOPLON_CACHE"


def cache_folder() -> Path:
    """The folder for trained weights: ``HOPLON_CACHE``, or ``hoplon`` in the user's cache folder.

    That is ``XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``LOCALAPPDATA``. It need not
    exist yet.

    Raises:
        DataError: there is something else than a folder.
    """
    setting = os.environ.get(_VARIABLE)
    default = platformdirs.user_cache_path("hoplon", appauthor=False, opinion=False)
    folder = Path(setting).expanduser() if setting else default
    if folder.exists() and not folder.is_dir():
        raise DataError(f"expected a folder for trained weights, got the file {folder}; set {_VARIABLE} to another")
    return folder


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with notes beside them; a reader sees the whole file or none.

    Raises:
        DataError: the folder cannot be made or written to.
    """
    way_out = f"set {_VARIABLE} to a folder in which trained weights can be kept"
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
