"""The output folder: proved writable before the work, complete or as it was after it."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hoplon.errors import StoreError

RUNS = "runs"
_PARTIAL = "runs.partial"


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
        for name in (RUNS, _PARTIAL):
            _require_replaceable(path / name)
        return cls(path)

    @contextmanager
    def runs(self, *, resume: bool = False) -> Iterator[Path]:
        """A folder for run directories, which becomes ``runs`` when the scope is left without an error.

        Args:
            resume: go on in that of an interrupted or finished run, where there is one; otherwise it is a fresh one.
        """
        partial, final = self.path / _PARTIAL, self.path / RUNS
        if not resume:
            _remove(partial)
        elif not partial.exists() and final.exists():
            final.replace(partial)
        yield partial
        _remove(final)
        if partial.exists():
            partial.replace(final)

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


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder with anything in it but runs."""
    if folder.is_file() or not all(map(_is_ours, folder.iterdir() if folder.is_dir() else ())):
        raise StoreError(f"expected runs of hoplon in {folder}, got something else; choose another folder with --out")


def _is_ours(entry: Path) -> bool:
    """Tell whether an entry is what protections learned, or a folder of run directories, one per arm."""
    if entry.is_dir():
        return all((run / "manifest.json").is_file() for run in entry.iterdir())
    return re.fullmatch(r"ranges\d*\.json|scores\d*\.safetensors", entry.name) is not None


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
