"""The folder in which a study keeps its findings: a manifest, a file per finished part, run directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hoplon.errors import StoreError
from hoplon.files import write_atomically
from hoplon_studies.framework.findings import Findings

FORMAT = 1
_MANIFEST, _PARTS, _WAY_OUT = "study.json", "parts", "free space or permit writing there, and run the study again"


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
        if not file.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise StoreError(f"expected a study or nothing in {self.path}, got other files; choose another --out")
            manifest = {"format": FORMAT, "identity": wanted, **circumstances}
            write_atomically(file, json.dumps(manifest, indent=1) + "\n")
            return json.loads(json.dumps(manifest))  # type: ignore[no-any-return]
        manifest = _read(file)
        there = manifest.get("identity")
        if manifest.get("format") != FORMAT or not isinstance(there, dict):
            raise StoreError(
                f"expected a study of format {FORMAT} in {file}, got another document; choose another --out"
            )
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
        try:
            return Findings.restored(_read(file))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"expected the findings of a part in {file}, got {error}; delete it and run the study again"
            ) from error

    def keep(self, part: str, findings: Findings) -> None:
        """Write what a part found, whole or not at all."""
        text = json.dumps(findings.stored(), indent=1, allow_nan=False) + "\n"
        write_atomically(self._file(part), text, way_out=_WAY_OUT)

    def forget(self, part: str) -> None:
        """Remove what a part found and what it kept, such as times.

        Run directories stay: what their seeds give is the same again, and resuming them refuses where it is not.
        """
        self._file(part).unlink(missing_ok=True)
        folder = self.runs_of(part)
        for file in folder.rglob("*.json"):
            inside = file.relative_to(folder).parents
            if not any((folder / parent / "manifest.json").exists() for parent in inside):
                file.unlink()

    def _file(self, part: str) -> Path:
        return self.path / _PARTS / f"{part}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"expected JSON of a study in {file}, got {error}; delete it and run the study again"
        ) from error
    if not isinstance(found, dict):
        raise StoreError(f"expected a JSON object in {file}, got a {type(found).__name__}; delete it")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
