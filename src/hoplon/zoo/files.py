"""Finding and reading the data files of the zoo, without unpickling anything."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hoplon.errors import DataError, said
from hoplon.program.archives.tensors import plain_tensors

_VARIABLE = "HOPLON_DATA"
_WAY_OUT = f"set {_VARIABLE} to the folder that holds it (README of the data folder lists the files)"


def data_file(name: str) -> Path:
    """The path of a data file in the folder that the environment variable ``HOPLON_DATA`` names.

    Raises:
        DataError: ``HOPLON_DATA`` is not set or is no folder, or the folder lacks the file.
    """
    setting = os.environ.get(_VARIABLE)
    if not setting:
        raise DataError(f"expected {name} in {_VARIABLE}, which is not set; {_WAY_OUT}")
    folder = Path(setting).expanduser()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"expected {_VARIABLE} to be a folder with {name}, got {folder}, which {problem}; {_WAY_OUT}")
    path = folder / name
    if not path.is_file():
        raise DataError(f"expected {name} in {_VARIABLE} = {folder}, which has no such file; {_WAY_OUT}")
    return path


def read_arrays(
    path: Path, wanted: Sequence[str] | Callable[[Sequence[str]], Sequence[str]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of an ``.npz`` file by name.

    Args:
        wanted: their names; or a function that gives them, called with the names in the file.
    Raises:
        DataError: the file is missing, is no whole ``.npz`` file, lacks a wanted array, or holds Python objects,
            which only unpickling could read.
    """
    choose = wanted if callable(wanted) else lambda names: wanted
    required = choose(())
    others = (RuntimeError, TypeError, AttributeError, tokenize.TokenError, MemoryError, NotImplementedError)
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"expected an .npz file with {', '.join(required)}, got {path}, which is no plain file")
        with path.open("rb") as stream:  # opened here, since numpy leaves a damaged file open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"expected an .npz file with {', '.join(required)}, got the single array {path}")
            required = choose(archive.files)
            _check_present(required, archive.files, path)
            if len(set(archive.files)) < len(archive.files):
                raise DataError(f"expected each array once in {path}, got one twice; save it again")
            arrays: dict[str, Any] = {name: archive[name] for name in required}
            if foreign := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
                raise DataError(f"expected arrays in {path}, got other bytes as {foreign[0]}; save it again")
            return arrays
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"expected an .npz file with {', '.join(required)}, got {path}, which does not exist") from None
    except ValueError as error:  # what numpy says to Python objects, and to a file of another kind
        raise DataError(
            f"expected arrays of numbers or text, readable without pickle, in {path}, got: {error}; "
            f"save plain arrays with numpy.savez"
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, *others) as error:
        raise DataError(f"expected a whole .npz file, got {path}: {said(error)}; copy or download it again") from error


def _check_present(required: Sequence[str], present: Sequence[str], path: Path) -> None:
    if not set(required) <= set(present):
        raise DataError(
            f"expected the arrays {', '.join(required)} in {path}, got {', '.join(present) or 'none'}; "
            f"save them with numpy.savez"
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a file written by ``torch.save`` of a state dict.

    Raises:
        DataError: the file is truncated, or holds anything but tensors by name.
    """
    try:
        content = plain_tensors(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"expected a whole state dict, got {path}: {said(error)}; copy or download it again") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise DataError(f"expected a state dict (tensors by name) in {path}, got a {type(content).__name__}")
    return content
