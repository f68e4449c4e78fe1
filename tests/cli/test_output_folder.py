"""The folder of a command: an earlier run stays until the new one stands, and nothing of the user's goes with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hoplon.campaign.store import RunDirectory
from hoplon.cli.output_folder import OutputFolder
from hoplon.errors import StoreError
from hoplon.files import write_json
from tests.support.failing_calls import counted, full

MANIFEST = {
    "format": 1,
    "target": "values",
    "criteria": ["top-1"],
    "criterion": "TopK(1)",
    "placement": "before",
    "program": {"name": "net", "fingerprint": "f"},
    "data": {"name": "data", "digest": "d", "inputs": 3},
    "batch": 1,
    "threads": 1,
    "confidence": 0.95,
    "versions": {},
}


def run(out: Path, seed: int, *, resume: bool = False) -> None:
    """Leave a run of no unit, and what protections learned."""
    with OutputFolder.prepare(out).runs(resume=resume) as runs:
        directory = RunDirectory.create(runs / "values" / "none", {**MANIFEST, "seed": seed}, resume=resume)
        with directory.writing():
            pass
        write_json(runs / "ranges.json", {"seed": seed})


def seeds(runs: Path) -> set[int]:
    """The seeds of the runs in a folder."""
    return {RunDirectory(place.parent).manifest()["seed"] for place in runs.glob("values/*/manifest.json")}


def test_a_run_replaces_the_earlier_one_once_it_is_complete(tmp_path: Path) -> None:
    for seed in (1, 2):
        run(tmp_path, seed)
        assert seeds(tmp_path / "runs") == {seed}
    failing_run = OutputFolder.prepare(tmp_path).runs()
    RunDirectory.create(failing_run.__enter__() / "values" / "none", {**MANIFEST, "seed": 3})
    assert not failing_run.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert seeds(tmp_path / "runs") == {2}
    run(tmp_path, 4)
    assert seeds(tmp_path / "runs") == {4}
    run(tmp_path, 4, resume=True)
    with pytest.raises(StoreError, match="seed: 4 there, 5 here"):
        run(tmp_path, 5, resume=True)
    assert seeds(tmp_path / "runs") == {4}  # what cannot be resumed stays in its place
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_that_fails_at_any_call_leaves_one_that_is_whole(tmp_path: Path) -> None:
    at = 0
    run(tmp_path, 1)
    names = {path.name for path in tmp_path.rglob("*")}
    while True:
        at += 1
        out = tmp_path / str(at)
        run(out, 1)
        with counted(at, full) as count, suppress(StoreError):
            run(out, 2)
        if count[0] < at:
            break
        found = out / "runs"
        assert seeds(found) in ({1}, {2})
        run(out, 3)
        assert seeds(found) == {3}
        assert {path.name for path in out.rglob("*") if not path.name.startswith(".hoplon-")} == names
    assert at > 40


def _note(runs: Path) -> None:
    (runs / "marathon.txt").write_text("mine")


def _note_in_a_run(runs: Path) -> None:
    (runs / "values" / "none" / "notes.txt").write_text("mine")


def _note_among_shards(runs: Path) -> None:
    (runs / "values" / "none" / "faults" / "unit-1.csv").write_text("mine")


def _another_manifest(runs: Path) -> None:
    (runs / "values" / "none" / "manifest.json").write_text('{"manifest_version": 3}')


def _shards_without_a_manifest(runs: Path) -> None:
    (runs / "values" / "mine" / "runs").mkdir(parents=True)
    (runs / "values" / "mine" / "runs" / "unit-00000000.parquet").write_text("mine")


def _linked_runs(runs: Path) -> None:
    runs.rename(runs.parent / "elsewhere")
    runs.symlink_to(runs.parent / "elsewhere")


def _linked_run(runs: Path) -> None:
    (runs / "values" / "none").rename(runs.parent / "elsewhere")
    (runs / "values" / "none").symlink_to(runs.parent / "elsewhere")


def _linked_shards(runs: Path) -> None:
    (runs / "values" / "none" / "faults").rename(runs.parent / "elsewhere")
    (runs / "values" / "none" / "faults").symlink_to(runs.parent / "elsewhere")


@pytest.mark.parametrize("name", ["runs", "runs.partial"])
@pytest.mark.parametrize(
    "put",
    [
        _note,
        _note_in_a_run,
        _note_among_shards,
        _another_manifest,
        _shards_without_a_manifest,
        _linked_runs,
        _linked_run,
        _linked_shards,
    ],
)
def test_runs_with_anything_of_the_users_are_not_replaced(
    put: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(out, 1)
    (out / "runs").rename(out / name)
    put(out / name)
    before = {path: os.lstat(path).st_ino for path in out.rglob("*")}
    with pytest.raises(
        StoreError, match=r"expected (runs of hoplon in|a run directory with manifest.json at) "
    ) as caught:
        run(out, 2)
    assert "choose another" in str(caught.value)
    assert {path: os.lstat(path).st_ino for path in out.rglob("*")} == before


def test_a_command_killed_while_runs_are_replaced_has_lost_nothing(tmp_path: Path) -> None:
    run(tmp_path, 1)
    hidden = tmp_path / f".runs.{'ab' * 16}"
    hidden.mkdir()
    (tmp_path / "runs").rename(hidden / "runs.before")
    OutputFolder.prepare(tmp_path)
    assert seeds(tmp_path / "runs") == {1}
    assert not hidden.exists()
