"""What stored records say about themselves: run directories, bundles and documents checked against their digests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.campaign.design import Design
from hoplon.campaign.manifest import Manifest
from hoplon.campaign.results import load_results
from hoplon.campaign.store import RunDirectory
from hoplon.errors import StoreError, checked, said
from hoplon.faults.table import FaultTable, read_frame
from hoplon.files import json_as, read_bytes, read_json
from hoplon.formats.tensor_files import load_tensors

State = Literal["whole", "unchecked", "open", "missing", "damaged"]
_FLAGS = ("detected", "corrected", "reached")
_BUNDLE, _PARTS, _RUN = "bundle.json", "descriptions.safetensors", "manifest.json"
_HIDDEN = re.compile(r"\..*")


@final
@checked
@dataclass(frozen=True)
class Record:
    """A file, or a work unit with its files, and how it is.

    ``state``: "whole", as it was written; "unchecked", readable and without a digest, as early versions and people
    write; "open", not run yet; "missing", not there any more; "damaged". ``found``: what is wrong. ``way_out``: what
    to do.
    """

    name: str
    state: State
    found: str = ""
    way_out: str = ""

    @property
    def wrong(self) -> bool:
        """True if something that was written is damaged or gone."""
        return self.state in ("missing", "damaged")


@checked
def verify(path: str | os.PathLike[str]) -> tuple[Record, ...]:
    """Check records against their digests, and documents, manifests and shards against their schemas; change nothing.

    Args:
        path: a run directory, a bundle, a document, ranges, scores, or a folder in which such lie at any depth, as
            `compare` and `study` write; links are not followed.
    Returns:
        One record for each file; units that are whole share one.
    Raises:
        StoreError: nothing there that hoplon can check.
    """
    place = Path(path)
    try:
        found = tuple(_folder(place, "") if place.is_dir() else _file(place, place.name))
    except RecursionError:
        raise StoreError(f"expected records of hoplon at {place}, got folders in folders, too deep; name one") from None
    if not found:
        raise StoreError(
            f"expected records of hoplon at {place}, got none; name a run directory, a bundle or a document"
        )
    return found


def _folder(folder: Path, name: str) -> Iterator[Record]:
    if any((folder / one).is_file() for one in (_BUNDLE, _PARTS)):
        yield from _bundle(folder, name)
        return
    units = (folder / _RUN).is_file() or any((folder / one).is_dir() for one in ("faults", "digests"))
    if units:
        yield from _units(RunDirectory(folder), name)
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or _HIDDEN.fullmatch(entry.name):
            continue
        if entry.is_dir() and not (units and entry.name in ("faults", "runs", "digests")):
            yield from _folder(entry, f"{name}{entry.name}/")
        elif entry.is_file() and (entry.suffix in _READERS):
            yield from _file(entry, name + entry.name, _SCHEMAS.get(entry.name) if units else None)


def _file(file: Path, name: str, schema: Any = None) -> Iterator[Record]:
    """One file by its ending."""
    if file.suffix not in _READERS:
        if not file.exists():
            raise StoreError(f"expected records of hoplon at {file}, got no such file or folder; name another")
        return
    read, problem = _READERS[file.suffix], ""
    for sealed in (True, False):
        try:
            read(file, schema, sealed)
            yield Record(name, "whole") if sealed else Record(name, "unchecked", "it has no digest")
            return
        except (OSError, ValueError) as error:
            problem = said(error)
    yield Record(name, "damaged", problem, _WAYS_OUT.get(file.name, "restore it from a copy, or make it again"))


def _document(file: Path, schema: Any, sealed: bool) -> None:
    json_as(schema or Any, read_bytes(file), must_be_sealed=sealed)


def _tensors(file: Path, _schema: Any, sealed: bool) -> None:
    load_tensors(file, must_be_sealed=sealed)


_MOST_UNITS = 10_000_000
_READERS = {".json": _document, ".safetensors": _tensors}
_SCHEMAS: Mapping[str, Any] = {_RUN: Manifest, "design.json": Design}
_WAYS_OUT = {
    "design.json": "resume the run, which makes it again",
    "results.json": "resume the run, which writes it again",
    _RUN: "restore it from a copy, or run the campaign again elsewhere",
}


def _units(run: RunDirectory, name: str) -> Iterator[Record]:
    """Units of a run directory: those that are whole together, all others one by one."""
    try:
        manifest: Mapping[str, Any] = run.manifest(Manifest)
    except StoreError:
        manifest = {}
        if not (run.path / _RUN).exists():
            yield Record(f"{name}{_RUN}", "missing", "there are shards and no manifest", _WAYS_OUT[_RUN])
    known = {folder: run.units(folder) for folder in ("faults", "runs", "digests")}
    whole, wanted = [], _wanted(run, manifest)
    for unit in sorted(wanted.union(*known.values())):
        finished = unit in (known["digests"] if run.has_digests else known["faults"] & known["runs"])
        if not finished:
            gone = _ended(run, manifest)
            found = "the run came to its end, and it is gone" if gone else "the run has not come to its end"
            yield Record(f"{name}unit {unit}", "missing" if gone else "open", found, "resume the run, which runs it")
        elif problem := run.problem(unit) or _misfit(run, unit, manifest):
            yield Record(f"{name}unit {unit}", "damaged", problem, "resume the run, which runs it again")
        else:
            whole.append(unit)
    if manifest.get("half_width") is not None and not (run.path / "design.json").exists() and whole:
        yield Record(
            f"{name}design.json", "missing", "runs of this campaign do not count alike", _WAYS_OUT["design.json"]
        )
    if wanted == {*whole} and whole and (problem := _other_results(run)):
        yield Record(f"{name}results.json, its digest", "damaged", problem, _WAYS_OUT["results.json"])
    if whole:
        label = f"{name}{len(whole):,} unit{'s' * (len(whole) > 1)}, {whole[0]} to {whole[-1]}"
        unchecked = Record(label, "unchecked", "shards of an early version, without digests")
        yield Record(label, "whole") if run.has_digests else unchecked


def _other_results(run: RunDirectory) -> str | None:
    """What is wrong where the figures beside the runs are those of others."""
    try:
        said = read_json(run.path / "results.json").get("digest")
        found = load_results(run.path).digest() if isinstance(said, str) else said
    except (OSError, ValueError):
        return None  # said elsewhere
    return None if said == found else "it is of other runs than lie here"


def _wanted(run: RunDirectory, manifest: Mapping[str, Any]) -> set[int]:
    """Numbers of the units that a run has, or will have as far as is known."""
    count, size = manifest.get("count"), manifest.get("unit_faults")
    if isinstance(count, int) and isinstance(size, int) and count > 0 and size > 0:
        units = -(-count // size)
    else:
        units = max(_designed(run), max(run.finished(), default=-1) + 1) or int("faults" in manifest)
    return set(range(min(units, _MOST_UNITS)))


def _designed(run: RunDirectory) -> int:
    """How many units a design says there are; 0 where there is none."""
    try:
        design = run.design()
    except StoreError:
        return 0
    return 0 if design is None or design.units is None else design.units


def _ended(run: RunDirectory, manifest: Mapping[str, Any]) -> bool:
    """True if a design says that the run has come to its end."""
    try:
        design = run.design()
    except StoreError:
        return False
    return design is not None and (bool(design.spent) or manifest.get("half_width") is None)


def _misfit(run: RunDirectory, unit: int, manifest: Mapping[str, Any]) -> str | None:
    """What does not fit in shards that are as they were written, or have no digest."""
    faults, runs = (run.file(folder, unit) for folder in ("faults", "runs"))
    try:
        table, columns = FaultTable.load(faults), read_frame(runs).columns
    except (OSError, ValueError) as error:
        return said(error)
    if table.target != manifest.get("target", table.target):
        return f"faults/{faults.name} strikes {table.target}"
    lacking = [name for name in ("fault", "input", *manifest.get("criteria", ()), *_FLAGS) if name not in columns]
    return f"runs/{runs.name} has no column {lacking[0]}" if lacking else None


class _Index(TypedDict):
    """What every ``bundle.json`` says of the files beside it."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    files: dict[str, str]


def _bundle(folder: Path, name: str) -> Iterator[Record]:
    """A bundle: its index, and the files that the index has digests of."""
    if not (folder / _BUNDLE).is_file():
        yield Record(name + _BUNDLE, "missing", "there are files of a bundle and no index", "save the bundle again")
        return
    index = tuple(_file(folder / _BUNDLE, name + _BUNDLE, _Index))
    yield from index
    if index[0].state == "damaged":
        return
    again = "save the bundle again"
    for other, digest in json_as(_Index, read_bytes(folder / _BUNDLE))["files"].items():
        file = folder / other
        if Path(other).name != other or file.is_symlink() or not file.is_file():
            yield Record(name + other, "damaged", "there is no such file in the bundle", again)
            continue
        with file.open("rb") as opened:
            same = hashlib.file_digest(opened, "sha256").hexdigest() == digest
        yield (
            Record(name + other, "whole")
            if same
            else Record(
                name + other,
                "damaged",
                "it is not as it was written",
                f"{again}, or load it: guards may repair weights",
            )
        )
