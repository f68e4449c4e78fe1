"""Files and folders that are there in full or as they were before."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hoplon.errors import HoplonError, StoreError

_WAY_OUT = "choose a writable folder"


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, refusal: type[HoplonError] = StoreError, way_out: str = _WAY_OUT
) -> Iterator[Path]:
    """Yield a path to write to; the file or folder made there replaces ``path`` once the scope ends without an error.

    It lies in a hidden folder beside ``path`` and has its name, since some formats store the name they are written to.
    The hidden folder is removed in any case, unless the process is killed.

    Args:
        path: of the file or folder; missing folders on the way are made.
        refusal: class of the error if that fails.
        way_out: ends its message.
    Raises:
        HoplonError: of class ``refusal``: the folder is not writable, or the disk is full.
    """
    target = Path(path)
    folder = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True)
        new = folder / target.name
        yield new
        if new.is_file():
            with new.open("rb+") as file:
                os.fsync(file.fileno())
        elif target.exists():
            shutil.rmtree(target)
        new.replace(target)
    except OSError as error:
        raise refusal(f"expected to write {target}, got {error.strerror or error}; {way_out}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, way_out: str = _WAY_OUT) -> None:
    """Write a file so that it is there in full or as it was before: see :func:`replacing`.

    Raises:
        StoreError: the folder is not writable, or the disk is full.
    """
    with replacing(path, way_out=way_out) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
