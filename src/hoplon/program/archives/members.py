"""The members of a zip archive as torch writes one: every byte in one of them, every one once, none of them packed."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping

_LOCAL = struct.Struct("<4s5H3I2H")  # PKWARE APPNOTE.TXT, 4.3.7
_END, _DESCRIPTOR = b"PK\x05\x06", b"PK\x07\x08"
_LENGTH_OF_END, _LENGTHS_OF_DESCRIPTOR = 22, (16, 24)
_UTF8_AND_DESCRIPTOR = 0x808


def members_of(content: bytes, known: re.Pattern[str]) -> dict[str, memoryview]:
    """The members by name, without the folder that holds all of them.

    Two readers of one zip file may see two files: one reads the table at its end, another the headers before each
    member, one takes the first of two equal names, another the last. So all of it must agree, without gaps.

    Args:
        known: names that the format has; others are refused.
    Raises:
        ValueError: any other file; says what is wrong, without its path.
    """
    if content[-_LENGTH_OF_END:][:4] != _END:
        raise ValueError("no zip archive, or one that is cut off or goes on after its end")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries, table = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, struct.error, OverflowError, NotImplementedError) as error:
        raise ValueError(f"a damaged archive ({error})") from error
    found: dict[str, memoryview] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name, member, end = _member(content, entry, end)
        folder, _, name = name.partition("/")
        if not known.fullmatch(name) or folder in ("", ".", "..") or folder != entries[0].filename.partition("/")[0]:
            raise ValueError(f"an unknown member {entry.filename!r}")
        if name in found:
            raise ValueError(f"the member {entry.filename!r} twice")
        found[name] = member
    if end != table:
        raise ValueError("bytes that belong to no member")
    return found


def _member(content: bytes, entry: zipfile.ZipInfo, start: int) -> tuple[str, memoryview, int]:
    """Name, content and end of a member that must start where the one before it ends."""
    name, view = entry.filename, memoryview(content)
    if entry.header_offset != start or start + _LOCAL.size > len(content):
        raise ValueError(f"the member {name!r} over or apart from another")
    signature, _, flags, method, *_, length, extra = _LOCAL.unpack_from(content, start)
    first = start + _LOCAL.size + length
    local = content[start + _LOCAL.size : first]
    if signature != b"PK\x03\x04" or local != name.encode() or name != entry.orig_filename:
        raise ValueError(f"the member {name!r} under another name where it begins")
    if method or entry.compress_type or entry.compress_size != entry.file_size:
        raise ValueError(f"the member {name!r} compressed")
    if (flags | entry.flag_bits) & ~_UTF8_AND_DESCRIPTOR:
        raise ValueError(f"the member {name!r} in a form that torch does not write")
    data = first + extra
    end = data + entry.file_size
    if end > len(content):
        raise ValueError(f"the member {name!r} cut off")
    return name, view[data:end], end + (_descriptor(content, end) if flags & 0x8 else 0)


def _descriptor(content: bytes, at: int) -> int:
    """Length of the record of sums and sizes after a member: of two forms, before another header or the table."""
    for length in _LENGTHS_OF_DESCRIPTOR:
        if content[at : at + 4] == _DESCRIPTOR and content[at + length : at + length + 2] == b"PK":
            return length
    return 0


def archive_of(members: Mapping[str, bytes | memoryview], *, folder: str) -> io.BytesIO:
    """A new archive that holds these members, and nothing that a reader could see in another way."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), member)
    written.seek(0)
    return written
