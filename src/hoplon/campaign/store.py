"""Run directories: a manifest and one pair of Parquet shards per work unit, each there in full or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hoplon.campaign.design import Design
from hoplon.criteria.outcome import CAUSES, OUTCOME_NAMES
from hoplon.errors import StoreError, said
from hoplon.faults.table import FaultTable, Target
from hoplon.files import read_json, write_atomically, write_json

_MANIFEST = "manifest.json"
_DESIGN = "design.json"
_BEGUN = "begun"
_FOLDERS = ("faults", "runs")
_SHARD = re.compile(r"unit-(\d{8})\.parquet")
_LEFTOVER = re.compile(r"\.(manifest\.json|design\.json|split\.json|unit-\d{8}\.parquet)\.[0-9a-f]{32}")


@dataclass(frozen=True)
class RunDirectory:
    """A campaign's results on disk: ``manifest.json``, ``faults/`` and ``runs/`` with one shard per work unit.

    A shard is written beside its place and moved there, so it is there in full or not at all, whatever stops the
    process. A unit counts as finished once both of its shards are there.
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
        if not file.exists():
            write_json(file, manifest)
        elif resume:
            directory._require_same(manifest)
        else:
            raise StoreError(f"expected a new run directory, got {path} with a run in it; resume it or choose another")
        return directory

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The scope in which units are written, by one process at a time.

        What a killed process left half-written is removed, and every shard that is there is opened once.

        Raises:
            StoreError: another process is writing here (where the file system can tell), or a damaged shard.
        """
        with _only_writer(self.path):
            try:
                for folder in _FOLDERS:
                    (self.path / folder).mkdir(exist_ok=True)
                for leftover in [found for place in ("", *_FOLDERS) for found in (self.path / place).glob(".*.*")]:
                    if _LEFTOVER.fullmatch(leftover.name):
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            except OSError as error:
                raise StoreError(f"expected to write in {self.path}, got {error}; choose a writable folder") from error
            for unit in sorted(self.finished()):
                self._check(unit)
            yield

    def manifest(self, schema: Any = dict[str, Any]) -> Any:
        """Read what the run is: configuration, fingerprints, versions.

        Args:
            schema: what it has to fit, such as :class:`hoplon.campaign.manifest.Manifest`.
        Raises:
            StoreError: no manifest here, or one that is damaged or does not fit.
        """
        try:
            return read_json(self.path / _MANIFEST, schema)
        except (OSError, ValueError) as error:
            raise StoreError(f"expected a run directory with {_MANIFEST} at {self.path}, got {error}") from error

    def record_design(self, design: Design) -> None:
        """Record how the runs stand for all faults.

        Raises:
            StoreError: the disk is full or the folder is not writable.
        """
        write_json(self.path / _DESIGN, design.to_dict())

    def design(self) -> Design | None:
        """Read what `record_design` wrote last; None where all faults count alike.

        Raises:
            StoreError: a damaged file.
        """
        try:
            found: Design = read_json(self.path / _DESIGN, Design)
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"expected a design as hoplon writes it at {self.path / _DESIGN}, got {error}; "
                "delete it and resume the run"
            ) from error

    def finished(self) -> set[int]:
        """Numbers of the finished units."""
        found = [{file.name for file in (self.path / folder).glob("unit-*.parquet")} for folder in _FOLDERS]
        names = (_SHARD.fullmatch(name) for name in set.intersection(*found))
        return {int(match[1]) for match in names if match}

    def finished_from_start(self) -> int:
        """Count the units that are finished without a gap; workers may have finished later ones."""
        done = self.finished()
        return next(unit for unit in range(len(done) + 1) if unit not in done)

    def write(self, unit: int, faults: FaultTable, runs: pl.DataFrame) -> None:
        """Write one unit's shards.

        Raises:
            StoreError: the disk is full or the folder is not writable; units written before stay.
        """
        for folder, frame in zip(_FOLDERS, (faults.frame, runs), strict=True):
            content = io.BytesIO()
            frame.write_parquet(content)
            way_out = "free space or permit writing there, and resume the run"
            write_atomically(self._shard(folder, unit), content.getvalue(), way_out=way_out)

    @contextmanager
    def in_this_process(self) -> Iterator[None]:
        """The scope in which units run in this process: a note is gone afterwards, unless the process ends in it.

        Raises:
            StoreError: the disk is full or the folder is not writable.
        """
        note = self.path / _BEGUN
        try:
            note.touch()
        except OSError as error:
            raise StoreError(f"expected to write {note}, got {error.strerror}; choose a writable folder") from error
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    @property
    def ended_a_process(self) -> bool:
        """True if a process ended while it ran units here."""
        return (self.path / _BEGUN).exists()

    def read(self, folder: str, units: int) -> pl.LazyFrame:
        """The shards ("faults" or "runs") of the first ``units`` units, lazily.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        for unit in range(units):
            self._check(unit, (folder,))
        shards = [self._shard(folder, unit) for unit in range(units)]
        if folder == "faults" or all("cause" in pl.read_parquet_schema(shard) for shard in shards):
            return pl.scan_parquet(shards, glob=False)
        return pl.concat([_as_now(pl.scan_parquet(shard, glob=False)) for shard in shards])

    def unit(self, unit: int, target: Target) -> tuple[FaultTable, pl.DataFrame]:
        """The faults and the runs of one finished unit.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        self._check(unit)
        with readable(self.path):
            faults, runs = (pl.read_parquet(self._shard(folder, unit), glob=False) for folder in _FOLDERS)
            return FaultTable(target, faults), _as_now(runs.lazy()).collect()

    def _shard(self, folder: str, unit: int) -> Path:
        return self.path / folder / f"unit-{unit:08d}.parquet"

    def _check(self, unit: int, folders: Sequence[str] = _FOLDERS) -> None:
        """Open shards, without reading them."""
        for folder in folders:
            file = self._shard(folder, unit)
            if not file.exists():
                raise StoreError(f"expected {folder}/{file.name} in {self.path}, got none; resume the run")
            try:
                pl.read_parquet_schema(file)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise _damaged(file, error) from error

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


def _as_now(runs: pl.LazyFrame) -> pl.LazyFrame:
    """Runs with the outcome that was called "exception" under its name, and with the cause of crashes."""
    schema = runs.collect_schema()
    if "cause" in schema:
        return runs
    old = [name for name, dtype in schema.items() if isinstance(dtype, pl.Enum) and "exception" in dtype.categories]
    outcomes = pl.col(old).cast(pl.String).replace("exception", "crash").cast(pl.Enum(OUTCOME_NAMES))
    crashed = pl.any_horizontal(pl.col(old) == "crash") if old else pl.lit(False)
    cause = pl.when(crashed).then(pl.lit("exception")).cast(pl.Enum(CAUSES)).alias("cause")
    last = [name for name in ("weight", "candidates", "cell", "proven") if name in schema]
    return runs.with_columns(outcomes).with_columns(cause).select(pl.exclude(last), *last)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


@contextmanager
def readable(path: Path | None) -> Iterator[None]:
    """The scope in which shards of a run directory are read; None: nothing on disk is.

    Raises:
        StoreError: a shard turns out to be damaged inside, or is gone.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        if path is None:
            raise
        for file in sorted(path.glob("*/unit-*.parquet")):
            try:
                pl.read_parquet(file, glob=False)
            except (OSError, pl.exceptions.PolarsError) as cause:
                raise _damaged(file, cause) from error
        raise StoreError(f"expected to read the shards in {path}, got {said(error)}; resume the run") from error


def _damaged(file: Path, error: Exception) -> StoreError:
    return StoreError(f"expected a readable shard at {file}, got {said(error)}; delete it and resume the run")


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the folder against other processes; a file system or platform without such locks lets all through."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"expected nobody else to write to {path}, got another process that does; wait for it or end it"
                ) from error
        yield
    finally:
        os.close(descriptor)  # the lock goes with it, also when the process is killed
