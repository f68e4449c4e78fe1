"""The members of a ``.pt2`` file as they lie on disk, and whether changes of it are confined to weights."""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

_LOCAL_HEADER = 30
_WEIGHTS = re.compile(r"[^/]+/data/(weights|constants)/[^/]*(?<!\.json)")


def members_of(path: Path) -> dict[str, str]:
    """The SHA-256 of the bytes of each member, by name, read whatever its checksum says.

    Raises:
        zipfile.BadZipFile, OSError: no archive, or one whose table of contents is damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        found = {}
        for entry in archive.infolist():
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER)
            if len(header) < _LOCAL_HEADER or entry.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"member {entry.filename} is cut off or compressed")
            name, extra = struct.unpack("<HH", header[26:])  # PKWARE APPNOTE.TXT, 4.3.7: lengths end the local header
            file.seek(entry.header_offset + _LOCAL_HEADER + name + extra)
            found[entry.filename] = hashlib.sha256(file.read(entry.file_size)).hexdigest()
    return found


def weight_members(path: Path, saved: Mapping[str, str]) -> list[str]:
    """The members that differ from the saved ones, if all of them are raw weights; none if others differ as well."""
    try:
        now = members_of(path)
    except (zipfile.BadZipFile, OSError, struct.error):
        return []
    changed = [name for name, digest in saved.items() if now.get(name) != digest]
    confined = now.keys() == saved.keys() and all(_WEIGHTS.fullmatch(name) for name in changed)
    return changed if confined else []
