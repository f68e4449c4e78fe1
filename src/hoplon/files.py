"""Files and folders that are there in full or as they were before."""

from __future__ import annotations

import contextlib
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

from hoplon.errors import DataError, HoplonError, StoreError

CACHE_VARIABLE = "HOPLON_CACHE"

_WAY_OUT = "choose a writable folder"
_MOST_BYTES = 1 << 28  # of a document
_SEALED, _KIND = "seal", "sha256:"
_SEAL = re.compile(r'"[^"]*": "sha256:[0-9a-f]{64}"\s*\}\s*\Z')
_SEAL_LENGTH = 100
_NOTHING = re.compile(r"(?!)")
_HEX = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{32}(/.*)?")  # of writes that were stopped
_BEFORE = ".before"
_ATTEMPTS = 10
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    *,
    ours: re.Pattern[str] = _NOTHING,
    refusal: type[HoplonError] = StoreError,
    way_out: str = _WAY_OUT,
) -> Iterator[Path]:
    """Yield a path to write to; the file or folder made there replaces ``path`` once the scope ends without an error.

    It lies in a hidden folder beside ``path`` and has its name, since some formats store the name they are written to.
    A folder that is replaced lies there until the new one stands. The hidden folder is removed in any case, unless the
    process is killed; then the next write of ``path`` does so, or :func:`bring_back`.

    A link at ``path`` is replaced by the file; what it points at stays as it is. A folder never replaces a link.

    Args:
        path: of the file or folder; missing folders on the way are made.
        ours: what a folder may hold in order to be replaced, as in :func:`stranger`; nothing by default.
        refusal: class of the error if that fails.
        way_out: ends its message.
    Raises:
        HoplonError: of class ``refusal``: the folder is not writable, the disk is full, or something else is there.
    """
    target = Path(path)
    try:
        with _hidden_beside(target, ours) as folder:
            new = folder / target.name
            yield new
            if new.is_dir():
                _put_folder(new, target, folder, ours)
            else:
                _sync(new)
                new.replace(target)
                _sync_folder(target.parent)
    except OSError as error:
        raise refusal(f"expected to write {target}, got {error.strerror or error}; {way_out}") from error


def replace_folder(new: Path, path: Path, *, ours: re.Pattern[str]) -> None:
    """Put a folder that is there in the place of another, which is removed once it stands; see :func:`replacing`.

    Raises:
        StoreError: it cannot be moved there, or something else than ``ours`` is there; both are as they were.
    """
    try:
        with _hidden_beside(path, ours) as folder:
            _put_folder(new, path, folder, ours)
    except OSError as error:
        raise StoreError(f"expected to move {new} to {path}, got {error.strerror or error}; {_WAY_OUT}") from error


def stranger(folder: Path, ours: re.Pattern[str]) -> Path | None:
    """The first entry of a folder, at any depth, that is not ours; the folder itself if it is none, or a link to one.

    Args:
        ours: matches paths inside of the folder with "/" between names, and at the end of those of folders. Links
            and anything but plain files and folders are not ours, whatever their names; what killed writes left is.
    """
    if folder.is_symlink() or not folder.is_dir():
        return folder
    for place, folders, names in os.walk(folder):
        for entry in (Path(place, name) for name in sorted([*folders, *names])):
            plain = not entry.is_symlink() and (entry.is_dir() or entry.is_file())
            inside = entry.relative_to(folder).as_posix() + "/" * entry.is_dir()
            if not plain or not (ours.fullmatch(inside) or _LEFT.fullmatch(inside)):
                return entry
    return None


def remove_folder(folder: Path, ours: re.Pattern[str]) -> None:
    """Remove a folder, file by file, in which nothing but what is ours lies; one that is missing is no error.

    Raises:
        OSError: something else lies in it, which stays; says what.
    """
    if not os.path.lexists(folder):
        return
    if (other := stranger(folder, ours)) is not None:
        raise FileExistsError(f"{other}, which hoplon did not write")
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            Path(place, name).unlink()
        for name in folders:
            Path(place, name).rmdir()
    folder.rmdir()


def bring_back(path: str | os.PathLike[str], ours: re.Pattern[str] = _NOTHING) -> None:
    """Clean up after processes that were killed while they wrote ``path``: a folder they had put aside is put back.

    Args:
        ours: what may be removed of a folder whose successor stands.
    Raises:
        OSError: the folder is not writable.
    """
    target = Path(path)
    for leftover in _leftovers(target):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if leftover.is_file():  # of early versions
                leftover.unlink()
                continue
            with locked(leftover) as free:
                before = leftover / (target.name + _BEFORE)
                if free is False or not all(entry.name.startswith(target.name) for entry in leftover.iterdir()):
                    continue
                if before.exists() and not os.path.lexists(target):
                    before.replace(target)
                if free and stranger(before, ours) is None:
                    remove_folder(before, ours)
                if free:
                    _discard(leftover, but=before)


@contextmanager
def locked(folder: Path) -> Iterator[bool | None]:
    """Hold a folder against other processes: False if one of them has it, None where the file system cannot tell.

    The lock goes with the process, also when it is killed.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError:
            held = None
        yield held
    finally:
        os.close(descriptor)


def _leftovers(target: Path) -> list[Path]:
    """Hidden files and folders of writes of ``target``, of live processes among them."""
    begin = f".{target.name}."
    try:
        found = [entry for entry in target.parent.iterdir() if entry.name.startswith(begin)]
    except FileNotFoundError:
        return []
    return [one for one in found if _HEX.fullmatch(one.name.removeprefix(begin)) and not one.is_symlink()]


@contextmanager
def _hidden_beside(target: Path, ours: re.Pattern[str]) -> Iterator[Path]:
    """A new hidden folder beside a target, gone afterwards."""
    bring_back(target, ours)
    with contextlib.ExitStack() as stack:
        for _ in range(_ATTEMPTS):
            folder = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            folder.mkdir(parents=True)
            with contextlib.suppress(FileNotFoundError):  # another process took it for a dead one's
                if stack.enter_context(locked(folder)) is not False and folder.exists():
                    break
        else:
            raise OSError("other processes that write it as well")
        try:
            yield folder
        finally:
            _discard(folder, but=folder / (target.name + _BEFORE))


def _discard(folder: Path, *, but: Path) -> None:
    """Remove a hidden folder and what was to become new; with what was there before in it, it stays."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink() and entry != but:
                shutil.rmtree(entry)
            elif entry != but:
                entry.unlink()
        folder.rmdir()


def _put_folder(new: Path, target: Path, folder: Path, ours: re.Pattern[str]) -> None:
    """Move a new folder to its place; what was there lies in the hidden folder meanwhile."""
    for file in new.rglob("*"):
        if file.is_file():
            _sync(file)
    before = folder / (target.name + _BEFORE)
    if os.path.lexists(target):
        if (other := stranger(target, ours)) is not None:
            raise FileExistsError(f"{other}, which hoplon did not write")
        target.replace(before)
    try:
        new.replace(target)
    except BaseException:
        if before.exists():  # where this fails, the next write does it
            before.replace(target)
        raise
    _sync_folder(target.parent)
    if before.exists() and (other := stranger(before, ours)) is not None:
        raise FileExistsError(f"{other}, which hoplon did not write and leaves there")
    with contextlib.suppress(OSError):  # else the next write removes it
        remove_folder(before, ours)


def _sync(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Let a new name reach the disk; some file systems cannot, and the content is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder() -> Path:
    """The folder for weights and captures, safe to delete: ``HOPLON_CACHE``, or ``hoplon`` in the user's cache folder.

    That is ``XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``LOCALAPPDATA``. It need not
    exist yet.

    Raises:
        DataError: there is something else than a folder.
    """
    import platformdirs

    setting = os.environ.get(CACHE_VARIABLE)
    default = platformdirs.user_cache_path("hoplon", appauthor=False, opinion=False)
    folder = Path(setting).expanduser() if setting else default
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"expected a folder for trained weights, got the file {folder}; set {CACHE_VARIABLE} to another"
        )
    return folder


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
    there = file.stat()
    if not stat.S_ISREG(there.st_mode):
        raise ValueError("no plain file")
    if there.st_size > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return file.read_bytes()


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


def is_sealed(content: bytes) -> bool:
    """True if a document ends with a seal, whether it fits or not."""
    return _SEAL.search(content[-_SEAL_LENGTH:].decode(errors="replace")) is not None


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
