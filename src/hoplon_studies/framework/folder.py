"""The folder in which a study keeps its findings: a manifest, a file per finished part, run directories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.errors import StoreError
from hoplon.files import bring_back, read_json, write_json
from hoplon_studies.framework.findings import Findings

FORMAT = 1
_MANIFEST, _PARTS, _WAY_OUT = "study.json", "parts", "free space or permit writing there, and run the study again"
_KEPT = "kept"


class StudyManifest(TypedDict):
    """``study.json``."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    format: Literal[1]
    identity: dict[str, Any]
    begun: str
    command: str
    machine: dict[str, Any]


@final
@dataclass(frozen=True)
class StudyFolder:
    """``OUT/study-runs/NAME``: ``study.json``, and ``parts/PART.json`` and ``runs/PART`` of the parts."""

    path: Path

    def begin(self, identity: Mapping[str, Any], circumstances: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest: that of the study begun here before, or a new one.

        Args:
            identity: what makes it this study and no other: name, profile, counts, seed, model, versions.
            circumstances: of the beginning: date, command, machine. They stay those of the first time.
        Raises:
            StoreError: the folder holds another study, or something else, or cannot be written.
        """
        file = self.path / _MANIFEST
        wanted = json.loads(json.dumps(identity))
        with suppress(OSError):
            bring_back(file)
        if not file.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise StoreError(f"expected a study or nothing in {self.path}, got other files; choose another --out")
            manifest = {"format": FORMAT, "identity": wanted, **circumstances}
            write_json(file, manifest, way_out=_WAY_OUT)
        manifest = cast("dict[str, Any]", _read(file, StudyManifest, "choose another --out"))
        there = manifest["identity"]
        different = [
            f"{key}: {_short(there.get(key))} there, {_short(wanted.get(key))} here"
            for key in dict.fromkeys([*there, *wanted])
            if there.get(key) != wanted.get(key)
        ]
        if different:
            raise StoreError(
                f"expected the study of {self.path}, got another one ({'; '.join(different)}); "
                "go on with the same settings or choose another --out"
            )
        return manifest

    def runs_of(self, part: str) -> Path:
        """The folder for what a part runs."""
        return self.path / "runs" / part

    def finished(self, part: str) -> Findings | None:
        """Findings of a part; None where it has not finished.

        Raises:
            StoreError: a damaged file.
        """
        file = self._file(part)
        if not file.exists():
            return None
        found: Findings = _read(file, Findings, "delete it and run the study again")
        if found.study not in ("", self._digest()):
            raise StoreError(f"expected findings of the study in {self.path}, got another's in {file}; delete it")
        return found

    def keep(self, part: str, findings: Findings) -> None:
        """Write what a part found, whole or not at all."""
        write_json(self._file(part), {**findings.stored(), "study": self._digest()}, way_out=_WAY_OUT)

    def _digest(self) -> str:
        return hashlib.sha256((self.path / _MANIFEST).read_bytes()).hexdigest()

    def forget(self, part: str) -> None:
        """Remove what a part found and what it kept, such as times.

        Run directories stay: what their seeds give is the same again, and resuming them refuses where it is not. So
        does what :func:`keep_value` did not write, under another name.
        """
        self._file(part).unlink(missing_ok=True)
        folder = self.runs_of(part)
        for file in sorted(folder.rglob("*.json")):
            inside = file.relative_to(folder).parents
            if not file.is_symlink() and not any((folder / parent / "manifest.json").exists() for parent in inside):
                try:
                    read_json(file, _Kept)
                    file.unlink()
                except ValueError:
                    file.replace(file.with_name(f"{file.name}.before"))

    def _file(self, part: str) -> Path:
        return self.path / _PARTS / f"{part}.json"


class _Kept(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    kept: Any


def keep_value(file: Path, value: Any) -> None:
    """Write a value that JSON can hold, whole or not at all."""
    write_json(file, {_KEPT: value}, way_out=_WAY_OUT)


def kept_value(file: Path) -> Any:
    """Read what :func:`keep_value` wrote, or a bare value of an early version.

    Raises:
        StoreError: a damaged file.
    """
    found = _read(file, Any, "delete it and run the study again")
    return found[_KEPT] if isinstance(found, dict) and found.keys() == {_KEPT} else found


def _read(file: Path, schema: Any, way_out: str) -> Any:
    try:
        return read_json(file, schema)
    except (OSError, ValueError) as error:
        raise StoreError(f"expected {file} as a study writes it, got {error}; {way_out}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
