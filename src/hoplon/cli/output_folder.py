"""The output folder: proved writable before the work, complete or as it was after it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hoplon.campaign.manifest import Manifest
from hoplon.campaign.store import OURS, RunDirectory
from hoplon.errors import StoreError
from hoplon.files import bring_back, remove_folder, replace_folder, stranger

RUNS = "runs"
_PARTIAL = "runs.partial"
_OURS = re.compile(r"ranges\d*\.json|scores\d*\.safetensors|[^/]+/([^/]+/(" + OURS + ")?)?")


@dataclass(frozen=True)
class OutputFolder:
    """Where a command leaves ``report.html``, ``results.json`` and the run directories in ``runs``.

    An earlier run in the same folder stays until the new one is complete, and is then replaced.
    """

    path: Path

    @classmethod
    def prepare(cls, path: Path) -> OutputFolder:
        """Make the folder if it is missing, and prove it writable.

        Raises:
            StoreError: it cannot be written, or its ``runs`` holds something that is no run.
        """
        require_writable(path)
        try:
            bring_back(path / RUNS, _OURS)
        except OSError as error:
            raise StoreError(f"expected to write in {path}, got {error}; choose another with --out") from error
        for name in (RUNS, _PARTIAL):
            _require_replaceable(path / name)
        return cls(path)

    @contextmanager
    def runs(self, *, resume: bool = False) -> Iterator[Path]:
        """A folder for run directories, which becomes ``runs`` when the scope is left without an error.

        Args:
            resume: go on in that of an interrupted or finished run, where there is one; otherwise it is a fresh one.
        Raises:
            StoreError: a folder cannot be replaced, since it is not writable or something else came into it.
        """
        partial, final = self.path / _PARTIAL, self.path / RUNS
        if resume and not partial.exists() and final.exists():
            yield final
            return
        if not resume:
            try:
                remove_folder(partial, _OURS)
            except OSError as error:
                raise StoreError(f"expected to remove {partial}, got {error}; choose another with --out") from error
        yield partial
        if partial.exists():
            _require_replaceable(final)
            replace_folder(partial, final, ours=_OURS)

    @property
    def kept(self) -> str:
        """Say what an interrupted command leaves."""
        done = len(list((self.path / _PARTIAL).glob("*/*/runs/unit-*.parquet")))
        saved = f"nothing new; earlier results in {self.path} are unchanged."
        if done:
            arms = f"{done} finished {'arm' if done == 1 else 'arms'}"
            saved = f"{arms} in {self.path / _PARTIAL}. Resume with --resume; earlier results are unchanged."
        return saved


def require_writable(folder: Path) -> None:
    """Make the folder if it is missing, and refuse before the work what could not be written after it.

    Raises:
        StoreError: it cannot be written.
    """
    probe = folder / f".hoplon-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"expected a writable output folder, got {folder} ({error.strerror or error}); choose another with --out"
        ) from error


def require_file(file: Path, *marks: bytes) -> None:
    """Refuse before the work a file that could not be written after it, or would replace another's.

    Args:
        marks: of which each file of this kind that hoplon writes has one.
    Raises:
        StoreError: its folder cannot be written, or there is a folder or another program's file in its place.
    """
    require_writable(file.parent)
    if file.is_dir():
        raise StoreError(f"expected a file to write, got the folder {file}; name a file in it")
    if file.is_file() and marks and file.stat().st_size and not any(mark in file.read_bytes() for mark in marks):
        raise StoreError(f"expected a new file, or one of hoplon's to replace, got {file}; choose another")


def require_folder(folder: Path) -> None:
    """Refuse before the work a folder in whose place there is a file.

    Raises:
        StoreError: there is one.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"expected a folder to write, got the file {folder}; choose another with --out")


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder with anything in it but runs, each with a manifest, and what protections learned."""
    other = stranger(folder, _OURS) if folder.is_symlink() or folder.exists() else None
    for run in () if other else sorted(folder.glob("*/*")):
        if (run / "manifest.json").exists():
            RunDirectory(run).manifest(Manifest)  # refuses one that is not ours
        elif any(run.glob("*/unit-*")):
            other = run
    if other is not None:
        raise StoreError(
            f"expected runs of hoplon in {folder}, got {other}, which is something else; choose another folder "
            "with --out"
        )
