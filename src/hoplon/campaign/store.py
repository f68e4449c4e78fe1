"""Run directories: a manifest and one pair of Parquet shards per work unit, each there in full or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from hoplon.campaign.design import Design
from hoplon.campaign.manifest import EXECUTION
from hoplon.criteria.outcome import CAUSES, OUTCOME_NAMES
from hoplon.errors import HoplonWarning, StoreError, said
from hoplon.faults.table import MOST_ROWS, FaultTable, Target, read_frame
from hoplon.files import bring_back, is_sealed, locked, read_bytes, read_json, write_atomically, write_json

_MANIFEST = "manifest.json"
_DESIGN = "design.json"
_BEGUN = "begun"
_FOLDERS = ("faults", "runs")
_DIGESTS = "digests"
_NAMED = re.compile(r"unit-(\d{8})\.(?:parquet|sha256)")
_WRITTEN = r"\.(manifest\.json|design\.json|split\.json|unit-\d{8}\.(?:parquet|sha256))"
_LEFTOVER, _OLD = re.compile(_WRITTEN + r"\.[0-9a-f]{32}"), re.compile(_WRITTEN + r"\.damaged")
_CHUNK = 1 << 20
_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)

OURS = (
    r"(manifest|design|split|settings|results)\.json|begun|(faults|runs|digests)/|(faults|runs)/unit-\d{8}\.parquet"
    r"|digests/unit-\d{8}\.sha256|(.*/)?\.(design\.json|unit-\d{8}\.(parquet|sha256))\.damaged"
)
"""Pattern of what a run directory holds, as :func:`hoplon.files.stranger` takes it."""


@dataclass(frozen=True)
class RunDirectory:
    """A campaign's results on disk: ``manifest.json``, and ``faults/`` and ``runs/`` with one shard per work unit.

    ``digests/`` has a file for each unit, in the format of ``sha256sum``, with the SHA-256 of both shards. Each file is
    written beside its place and moved there, the digests last: a unit counts as finished once all three are there,
    whatever stops the process, and shards are read only if they are as they were written. A run of an early version
    has no ``digests``; there a unit is finished once both shards are, and what is damaged inside is found out by
    reading, or never.
    """

    path: Path
    _whole: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def create(cls, path: str | os.PathLike[str], manifest: Mapping[str, Any], *, resume: bool = False) -> RunDirectory:
        """Start a run directory, or go on with one that has the same manifest.

        Raises:
            StoreError: not writable; there is a run already and ``resume`` was not asked for, or a part of one without
                a manifest; or its manifest differs (the differing entries are shown).
        """
        directory = cls(Path(path))
        file = directory.path / _MANIFEST
        if not file.exists():
            directory.require_free()
            write_json(file, manifest)
        elif resume:
            directory._require_same(manifest)
        else:
            raise StoreError(f"expected a new run directory, got {path} with a run in it; resume it or choose another")
        return directory

    def require_free(self) -> None:
        """Refuse a folder without a manifest that has something in the place of what a run writes.

        Raises:
            StoreError: there is such a thing; names it.
        """
        for name in (_DESIGN, "results.json", *_FOLDERS, _DIGESTS):
            if os.path.lexists(self.path / name):
                raise StoreError(
                    f"expected a new run directory, got {self.path} with {name} and no {_MANIFEST}; choose another"
                )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The scope in which units are written, by one process at a time.

        What a killed process left half-written is removed, and every unit that is there is checked. Damaged ones count
        as missing from here on; their files stay until others take their places.

        Raises:
            StoreError: another process is writing here (where the file system can tell), or links in the place of what
                a run writes.
        Warns:
            HoplonWarning: damaged units, or a damaged design; names them.
        """
        with _only_writer(self.path):
            self._require_plain()
            try:
                begun = any(next((self.path / folder).glob("unit-*"), None) for folder in _FOLDERS)
                for folder in _FOLDERS if begun and not self.has_digests else (_DIGESTS, *_FOLDERS):
                    (self.path / folder).mkdir(exist_ok=True)
                self._clean_up()
                damaged = self._put_aside()
            except OSError as error:
                raise StoreError(f"expected to write in {self.path}, got {error}; choose a writable folder") from error
            if damaged:
                message = f"damaged in {self.path}, and made again: {', '.join(damaged)}"
                warnings.warn(message, HoplonWarning, stacklevel=4)
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
            raise StoreError(
                f"expected a run directory with {_MANIFEST} at {self.path}, got {error}; choose another"
            ) from error

    def record_design(self, design: Design, units: int) -> None:
        """Record how the runs stand for all faults.

        Raises:
            StoreError: the disk is full or the folder is not writable.
        """
        whole = replace(design, units=units, manifest=self._manifest_digest)
        write_json(self.path / _DESIGN, whole.to_dict())
        with suppress(OSError):  # else it is removed with the next writing
            self._aside(self.path / _DESIGN).unlink()

    def design(self) -> Design | None:
        """Read what `record_design` wrote last; None where all faults count alike.

        Raises:
            StoreError: a damaged file.
        """
        try:
            found: Design = read_json(self.path / _DESIGN, Design)
            if found.manifest not in ("", self._manifest_digest):
                raise ValueError("that of another run")
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"expected a design as hoplon writes it at {self.path / _DESIGN}, got {error}; resume the run, which "
                "makes it again"
            ) from error

    @property
    def has_digests(self) -> bool:
        """True if each finished unit has digests of its shards: in all runs but those of early versions."""
        if (self.path / _DIGESTS).is_dir():
            return True
        try:
            return is_sealed(read_bytes(self.path / _MANIFEST))
        except (OSError, ValueError):
            return False

    def finished(self) -> set[int]:
        """Numbers of the finished units."""
        return set.intersection(*(self.units(folder) for folder in self._parts))

    def units(self, folder: str) -> set[int]:
        """Numbers of the units of which a file is in "faults", "runs" or "digests"."""
        names = (_NAMED.fullmatch(file.name) for file in (self.path / folder).glob("unit-*"))
        return {int(match[1]) for match in names if match}

    def has(self, unit: int) -> bool:
        """True if this unit is finished."""
        return all(self.file(folder, unit).exists() for folder in self._parts)

    def finished_from_start(self) -> int:
        """Count the units that are finished without a gap; workers may have finished later ones."""
        done = self.finished()
        return next(unit for unit in range(len(done) + 1) if unit not in done)

    def write(self, unit: int, faults: FaultTable, runs: pl.DataFrame) -> None:
        """Write one unit's shards, then their digests.

        Raises:
            StoreError: the disk is full or the folder is not writable; units written before stay. Or it is gone.
        """
        if not (self.path / _MANIFEST).exists():
            raise StoreError(f"expected the run directory {self.path} until the run ends, got none; start the run anew")
        way_out = "free space or permit writing there, and resume the run"
        digests = [self._line_of_manifest]
        for folder, frame in zip(_FOLDERS, (faults.frame, runs), strict=True):
            content = io.BytesIO()
            frame.write_parquet(content)
            write_atomically(self.file(folder, unit), content.getvalue(), way_out=way_out)
            digests.append(self._line(folder, unit, hashlib.sha256(content.getvalue()).hexdigest()))
        if self.has_digests:
            write_atomically(self.file(_DIGESTS, unit), "".join(digests), way_out=way_out)
        with suppress(OSError):
            self._aside(self.file(self._parts[-1], unit)).unlink()

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
            with suppress(OSError):  # whatever keeps it there is what ends the run
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
        self._require_plain()
        for unit in range(units):
            self._require_whole(unit)
        shards = [self.file(folder, unit) for unit in range(units)]
        with readable(self.path):
            rows = _rows(shards) if shards else 0
        if rows > units * MOST_ROWS:
            raise StoreError(f"expected {units} units in {self.path}, got {rows:,} rows, more than hoplon writes")
        if folder == "faults" or all("cause" in _columns(shard) for shard in shards):
            return pl.scan_parquet(shards, glob=False)
        return pl.concat([_as_now(pl.scan_parquet(shard, glob=False)) for shard in shards])

    def unit(self, unit: int, target: Target) -> tuple[FaultTable, pl.DataFrame]:
        """The faults and the runs of one finished unit.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        self._require_plain()
        self._require_whole(unit)
        try:
            faults, runs = (read_frame(self.file(folder, unit)) for folder in _FOLDERS)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"expected unit {unit} of {self.path} to be readable, got {said(error)}; resume the run, which runs "
                "damaged units again"
            ) from error
        with readable(self.path):
            return FaultTable(target, faults), _as_now(runs.lazy()).collect()

    def problem(self, unit: int) -> str | None:
        """What is wrong with the files of a unit, None where nothing is; those that were fine are looked at once.

        Shards are compared with their digests; without digests, that they can be opened is all that is known.
        """
        try:
            seen = [_seen(self.file(folder, unit)) for folder in self._parts]
            if self._whole.get(unit) != seen:
                if (found := self._compared(unit)) is not None:
                    return found
                self._whole[unit] = seen
        except FileNotFoundError as error:
            return f"no {Path(error.filename).relative_to(self.path)}"
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def file(self, folder: str, unit: int) -> Path:
        """Where the part of a unit is that lies in "faults", "runs" or "digests"."""
        return self.path / folder / f"unit-{unit:08d}.{'sha256' if folder == _DIGESTS else 'parquet'}"

    @property
    def _parts(self) -> tuple[str, ...]:
        return (*_FOLDERS, _DIGESTS) if self.has_digests else _FOLDERS

    @property
    def _line_of_manifest(self) -> str:
        return f"{self._manifest_digest}  {_MANIFEST}\n"

    @cached_property
    def _manifest_digest(self) -> str:
        return hashlib.sha256(read_bytes(self.path / _MANIFEST)).hexdigest()

    def _line(self, folder: str, unit: int, digest: str) -> str:
        return f"{digest}  {folder}/{self.file(folder, unit).name}\n"

    def _compared(self, unit: int) -> str | None:
        """As `problem`, of files that are all there."""
        if not self.has_digests:
            return next((wrong for folder in _FOLDERS if (wrong := _unreadable(self.file(folder, unit)))), None)
        kept = read_bytes(self.file(_DIGESTS, unit), limit=_CHUNK).decode(errors="replace")
        found = [self._line_of_manifest]
        if found[0] not in kept:
            return f"{_DIGESTS}/{self.file(_DIGESTS, unit).name} has not the digest of {_MANIFEST}: it is another run's"
        for folder in _FOLDERS:
            with self.file(folder, unit).open("rb") as shard:
                found.append(self._line(folder, unit, hashlib.file_digest(shard, "sha256").hexdigest()))
        if kept == "".join(found):
            return None
        others = [self.file(folder, unit) for folder, line in zip(_FOLDERS, found[1:], strict=True) if line not in kept]
        what = " and ".join(f"{file.parent.name}/{file.name}" for file in others) or "it"
        return f"{what} has not the digest in {_DIGESTS}/{self.file(_DIGESTS, unit).name}"

    def _require_whole(self, unit: int) -> None:
        if (problem := self.problem(unit)) is not None:
            raise StoreError(
                f"expected unit {unit} of {self.path} as it was written, got another: {problem}; resume the run, which "
                "runs it again (hoplon verify lists all that is damaged)"
            )

    def _require_plain(self) -> None:
        for folder in (*_FOLDERS, _DIGESTS):
            if (place := self.path / folder).is_symlink() or (place.exists() and not place.is_dir()):
                raise StoreError(f"expected a folder at {place}, got a link or a file; put the folder itself there")

    def _clean_up(self) -> None:
        """Remove what a killed process left: half-written files, and damaged ones whose successors stand."""
        for place in ("", *_FOLDERS, _DIGESTS):
            for leftover in (self.path / place).glob(".*.*"):
                if half := _LEFTOVER.fullmatch(leftover.name):
                    bring_back(leftover.with_name(half[1]))
                elif (old := _OLD.fullmatch(leftover.name)) and leftover.with_name(old[1]).exists():
                    leftover.unlink()

    def _put_aside(self) -> list[str]:
        """Rename what makes damaged units count as finished, and a damaged design; what they are."""
        found = []
        for unit in sorted(self.finished()):
            if self.problem(unit) is not None:
                linked = [file for folder in self._parts if (file := self.file(folder, unit)).is_symlink()]
                if linked:
                    raise StoreError(f"expected a shard at {linked[0]}, got a link; put the file itself there")
                mark = self.file(self._parts[-1], unit)
                mark.replace(self._aside(mark))
                found.append(f"unit {unit}")
        try:
            self.design()
        except StoreError:
            file = self.path / _DESIGN
            file.replace(self._aside(file))
            found.append(_DESIGN)
        return found

    @staticmethod
    def _aside(file: Path) -> Path:
        return file.with_name(f".{file.name}.damaged")

    def _require_same(self, manifest: Mapping[str, Any]) -> None:
        there, here = (
            _flat({key: value for key, value in entries.items() if key != EXECUTION})
            for entries in (self.manifest(), json.loads(json.dumps(manifest)))
        )
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
    except (OSError, *_POLARS) as error:
        if path is None:
            raise
        wrong = (_unreadable(file, whole=True) for file in sorted(path.glob("*/unit-*.parquet")))
        found = next(filter(None, wrong), None) or said(error)
        raise StoreError(
            f"expected to read the shards in {path}, got {found}; resume the run, which runs damaged units again"
        ) from error


def _unreadable(shard: Path, *, whole: bool = False) -> str | None:
    """Why a shard cannot be opened, or read as a ``whole``; None where it can."""
    try:
        pl.read_parquet(shard, glob=False) if whole else _columns(shard)
    except FileNotFoundError:
        raise
    except (OSError, *_POLARS) as error:
        return f"{shard.parent.name}/{shard.name} cannot be read ({said(error)})"
    return None


def _seen(file: Path) -> tuple[int, int, int]:
    """What tells that a file is the one that was looked at before."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file.parent.name}/{file.name} is no plain file")
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the folder against other processes; a file system or platform without such locks lets all through."""
    with ExitStack() as stack:
        try:
            held = stack.enter_context(locked(path))
        except OSError as error:
            raise StoreError(f"expected to write in {path}, got {error}; choose a writable folder") from error
        if held is False:
            raise StoreError(
                f"expected nobody else to write to {path}, got another process that does; wait for it or end it"
            )
        yield


def _rows(shards: list[Path]) -> int:
    """How many rows shards say that they have, which few bytes can hold; early ones have fewer columns."""
    found = pl.scan_parquet(shards, glob=False, extra_columns="ignore", missing_columns="insert")
    return int(found.select(pl.len()).collect().item())


def _columns(shard: Path) -> pl.Schema:
    """The columns of a shard; a bracket in its path is no pattern."""
    return pl.scan_parquet(shard, glob=False).collect_schema()
