"""Run directories: a manifest and one pair of Parquet shards per work unit, each there in full or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

from hoplon.errors import StoreError
from hoplon.faults import FaultTable

_MANIFEST = "manifest.json"
_SHARD = re.compile(r"unit-(\d{8})\.parquet")


def versions() -> dict[str, str]:
    """Versions of what a figure depends on: hoplon, Python, torch, numpy, scipy, polars."""
    found = {"python": platform.python_version()}
    for package in ("hoplon", "torch", "numpy", "scipy", "polars"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there in full or as it was before.

    Raises:
        StoreError: the folder is missing, not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise StoreError(
            f"expected to write {path}, got {error.strerror or error}; choose a writable folder"
        ) from error


@dataclass(frozen=True)
class RunDirectory:
    """A campaign's results on disk: ``manifest.json``, ``faults/`` and ``runs/`` with one shard per work unit.

    A unit counts as finished once its shard of runs is there; that of its faults is written before.
    """

    path: Path

    @classmethod
    def create(cls, path: str | os.PathLike[str], manifest: Mapping[str, Any], *, resume: bool = False) -> RunDirectory:
        """Start a run directory, or go on with one that has the same manifest.

        Raises:
            StoreError: not writable; there is a run already and ``resume`` was not asked for; or its manifest differs
                (the differing entries are shown).
        """
        directory = cls(Path(path))
        file = directory.path / _MANIFEST
        if file.exists():
            if not resume:
                raise StoreError(
                    f"expected a new run directory, got {path} with a run in it; resume it or choose another"
                )
            directory._require_same(manifest)
            return directory
        write_atomically(file, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        for folder in ("faults", "runs"):
            (directory.path / folder).mkdir(exist_ok=True)
        return directory

    def manifest(self) -> dict[str, Any]:
        """What the run is: configuration, fingerprints, versions.

        Raises:
            StoreError: no manifest here, or a damaged one.
        """
        file = self.path / _MANIFEST
        try:
            loaded = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"expected a run directory with {_MANIFEST} at {self.path}, got {error}") from error
        if not isinstance(loaded, dict):
            raise StoreError(f"expected a JSON object in {file}, got {type(loaded).__name__}")
        return loaded

    def finished(self) -> set[int]:
        """Numbers of the finished units."""
        names = (_SHARD.fullmatch(file.name) for file in (self.path / "runs").glob("unit-*.parquet"))
        return {int(match[1]) for match in names if match}

    def write(self, unit: int, faults: FaultTable, runs: pl.DataFrame) -> None:
        """Write one unit's shards, faults first.

        Raises:
            StoreError: the disk is full or the folder is not writable; units written before stay.
        """
        faults.save(self.path / "faults" / f"unit-{unit:08d}.parquet")
        file = self.path / "runs" / f"unit-{unit:08d}.parquet"
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            runs.write_parquet(temporary)
            temporary.replace(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"expected to write {file}, got {error}; free space and resume the run") from error

    def read(self, folder: str, units: int) -> pl.LazyFrame:
        """The shards ("faults" or "runs") of the first ``units`` units, lazily."""
        files = [self.path / folder / f"unit-{unit:08d}.parquet" for unit in range(units)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise StoreError(f"expected {folder}/{missing[0]} in {self.path}, got none; resume the run")
        return pl.scan_parquet(files, glob=False)

    def _require_same(self, manifest: Mapping[str, Any]) -> None:
        there, here = _flat(self.manifest()), _flat(json.loads(json.dumps(manifest)))
        different = [
            f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        if different:
            raise StoreError(
                f"expected the campaign of {self.path}, got a different one ({'; '.join(different)}); "
                "resume with the same configuration or choose another folder"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
