"""Files and folders that are there in full or as they were before."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hoplon.errors import HoplonError, StoreError

_WAY_OUT = "choose a writable folder"
_MOST_BYTES = 1 << 28  # of a document
_SEALED, _KIND = "seal", "sha256:"
_SEAL = re.compile(r'"[^"]*": "sha256:[0-9a-f]{64}"\s*\}\s*\Z')
_SEAL_LENGTH = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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


def read_bytes(path: str | os.PathLike[str], *, limit: int = _MOST_BYTES) -> bytes:
    """Return the content of a plain file of at most ``limit`` bytes.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: something else than a plain file, such as a folder or a pipe, or one that is too large.
    """
    file = Path(path)
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("no plain file")
    with file.open("rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return content


def write_json(path: str | os.PathLike[str], document: Mapping[str, Any], *, way_out: str = _WAY_OUT) -> None:
    """Write a JSON document and, under the key ``seal``, the SHA-256 by which it knows that it is damaged.

    Raises:
        StoreError: the folder is not writable, or the disk is full.
    """
    write_atomically(path, sealed(document), way_out=way_out)


def sealed(document: Mapping[str, Any]) -> str:
    """Return a document as JSON text that ends with a seal, the digest of all before it; :func:`json_as` checks it.

    Example:
        >>> json_as(dict[str, int], sealed({"faults": 3}))
        {'faults': 3}
        >>> json_as(dict[str, int], sealed({"faults": 3}).replace("3,", "7,"))
        Traceback (most recent call last):
        ValueError: content that is not as it was written: its seal is another (changed by hand? take the seal out)
    """
    content = json.loads(json.dumps(document, allow_nan=False))
    return json.dumps({**content, _SEALED: _digest(content)}, indent=1) + "\n"


def read_json(path: str | os.PathLike[str], schema: Any = dict[str, Any]) -> Any:
    """Return the document in a file, as :func:`json_as` does.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: as of :func:`json_as` and :func:`read_bytes`.
    """
    return json_as(schema, read_bytes(path))


def json_as(schema: Any, content: str | bytes, *, must_be_sealed: bool = False) -> Any:
    """Return the content of a JSON document that fits a schema: a ``TypedDict``, a dataclass, a type of plain values.

    A seal is checked and left out. Documents written by hand or by early versions have none.

    Args:
        must_be_sealed: refuse those.
    Raises:
        ValueError: no JSON in UTF-8, a key twice, NaN or infinity, too deep, what does not fit, or content that is not
            as it was written; on one line.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("values inside values, too deep") from error
    if isinstance(found, dict) and _SEALED in found:
        _require_digest(found.pop(_SEALED), found)
    elif must_be_sealed or _SEAL.search(text[-_SEAL_LENGTH:]):  # the latter: one bit of the key changed
        raise ValueError("content that is not as it was written: it has no seal")
    elif _SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()  # raises a ValueError at half a character
    try:
        return _adapter(schema).validate_python(found)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc'])) or 'document'}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(wrong[:3]) + (f"; {len(wrong) - 3} more" if len(wrong) > 3 else "")) from error


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    own = is_dataclass(schema) or hasattr(schema, "__pydantic_config__")
    return TypeAdapter(schema, config=None if own else ConfigDict(strict=True))


def _digest(document: Mapping[str, Any]) -> str:
    return _KIND + hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _require_digest(digest: Any, document: Mapping[str, Any]) -> None:
    if digest != _digest(document):
        raise ValueError(
            "content that is not as it was written: its seal is another (changed by hand? take the seal out)"
        )


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which JSON does not have")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]}, which is no finite number")
    return number
