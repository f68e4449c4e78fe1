"""Files and folders that are there in full or as they were before."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

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


def json_as(schema: Any, content: str | bytes) -> Any:
    """Return the content of a JSON document that fits a schema: a ``TypedDict``, whose further keys are kept.

    Raises:
        ValueError: no JSON in UTF-8, a key twice, NaN or infinity, too deep, or what does not fit; on one line.
    """
    try:
        found = json.loads(content, object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("values inside values, too deep") from error
    try:
        return _adapter(schema).validate_python(found)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc'])) or 'document'}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(wrong[:3]) + (f"; {len(wrong) - 3} more" if len(wrong) > 3 else "")) from error


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema, config=None if hasattr(schema, "__pydantic_config__") else ConfigDict(strict=True))


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which JSON does not have")
