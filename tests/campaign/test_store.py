"""Run directories: whatever stops a campaign, going on with it gives the records of one that nothing stopped."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hoplon import BitFlip, Campaign, FaultTable, Inputs, Memory, Results, Values, capture, load_results
from hoplon.campaign import verify
from hoplon.campaign.design import Design
from hoplon.campaign.store import RunDirectory
from hoplon.errors import HoplonWarning, StoreError
from tests.support import stopped_campaign
from tests.support.early_runs import as_early
from tests.support.failing_calls import counted, full
from tests.support.networks import NETWORKS
from tests.support.stopped_campaign import COUNT, UNITS

DEADLINE_SECONDS = 120.0


@pytest.fixture(scope="module")
def whole() -> str:
    """The digest of the campaign when nothing stops it."""
    return stopped_campaign.run(None).digest()


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with everything imported, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.stopped_campaign"])
    return context


def _started(processes: ForkServerContext, folder: Path) -> ForkServerProcess:
    process = processes.Process(target=stopped_campaign.run, args=(str(folder),), daemon=True)
    process.start()
    return process


def _wait(process: ForkServerProcess, until: Callable[[], bool]) -> None:
    """Wait for a condition while the process lives."""
    end = time.monotonic() + DEADLINE_SECONDS
    while process.is_alive() and not until() and time.monotonic() < end:
        time.sleep(0.002)


def _leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


@pytest.mark.parametrize(("early", "late"), [(2, 6), pytest.param(30, 30, marks=pytest.mark.slow)])
def test_a_campaign_that_is_killed_again_and_again_gives_the_same_records(
    early: int, late: int, processes: ForkServerContext, whole: str, tmp_path: Path
) -> None:
    """Each kill falls before the manifest is there, between two units, or within one; ``late``: after the first."""
    dice, directory = random.Random(20), RunDirectory(tmp_path)
    for kill in range(early + late):
        done, more = len(directory.finished()), 0 if kill < early else 1 if kill == early else dice.choice([0, 1, 1])
        process = _started(processes, tmp_path)
        _wait(process, lambda done=done, more=more: len(directory.finished()) >= done + more)
        time.sleep(dice.uniform(0, 0.06))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(directory.finished()) < UNITS
    results = stopped_campaign.run(tmp_path)
    assert results.digest() == whole
    assert load_results(tmp_path).digest() == whole
    assert results.runs["fault"].n_unique() == COUNT
    assert not _leftovers(tmp_path)
    assert {record.state for record in verify(tmp_path)} == {"whole"}


def test_ctrl_c_leaves_a_run_to_go_on_with(processes: ForkServerContext, whole: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    process = _started(processes, tmp_path)
    _wait(process, lambda: len(directory.finished()) >= 2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1  # KeyboardInterrupt
    assert 2 <= len(directory.finished()) < UNITS
    part = load_results(tmp_path)
    assert part.runs["fault"].n_unique() == 64 * len(directory.finished())
    assert not _leftovers(tmp_path)
    assert stopped_campaign.run(tmp_path).digest() == whole


def _children_of(parent: int) -> set[int]:
    """Processes that this one started and that have not ended, from /proc."""
    processes = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    return {process for process in processes if _state(process)[1] == str(parent)}


def _state(process: int) -> tuple[str, str]:
    """State letter and parent; Z where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", ""
    return fields[0], fields[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_two_workers_killed_and_one_going_on_give_the_same_records(whole: str, tmp_path: Path) -> None:
    command = f"from tests.support.stopped_campaign import run; run({str(tmp_path)!r}, workers=2)"
    process = subprocess.Popen([sys.executable, "-c", command])
    end = time.monotonic() + DEADLINE_SECONDS
    while len(RunDirectory(tmp_path).finished()) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    workers = _children_of(process.pid)
    process.kill()
    process.wait()
    assert 3 <= len(RunDirectory(tmp_path).finished()) < UNITS
    assert len(workers) >= 2
    end = time.monotonic() + DEADLINE_SECONDS
    while any(_state(worker)[0] != "Z" for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert {_state(worker)[0] for worker in workers} == {"Z"}  # they end with the process they work for
    assert stopped_campaign.run(tmp_path).digest() == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is full after a few units; skipped where mounting is not permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("needs the permission to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_the_run_goes_on_with_more_space(small_disk: Path, whole: str) -> None:
    run = small_disk / "run"
    with pytest.raises(StoreError, match=r"expected to write .*unit-.*got No space left on device; free space"):
        stopped_campaign.run(run)
    done = len(RunDirectory(run).finished())
    assert 0 < done < UNITS
    assert not _leftovers(run)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert stopped_campaign.run(run).digest() == whole


def _units(results: Results) -> list[tuple[FaultTable, pl.DataFrame]]:
    """Three units of a few faults each."""
    table, runs = results.faults, results.runs
    groups = [range(unit * 5, unit * 5 + 5) for unit in range(3)]
    return [(table.only(pl.Series(part)), runs.filter(pl.col("fault").is_in(part))) for part in groups]


def _stored(folder: Path, results: Results) -> str:
    """What a run of these units gives that is begun here or gone on with."""
    units = dict(enumerate(_units(results)))
    directory = RunDirectory.create(folder, {**results.manifest, "count": 15, "unit_faults": 5}, resume=True)
    with directory.writing():
        for unit in units.keys() - directory.finished():
            directory.write(unit, *units[unit])
        directory.record_design(Design((), (), (), 0, 0.95), len(units))
    return load_results(folder).digest()


def test_a_call_that_fails_at_any_point_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    results, at = load_results(_small(tmp_path / "run")), 0
    wanted = _stored(tmp_path / "whole", results)
    while True:
        at += 1
        folder = tmp_path / str(at)
        with counted(at, full) as count, suppress(StoreError):
            _stored(folder, results)
        if count[0] < at:
            break
        directory = RunDirectory(folder)
        assert [directory.problem(unit) for unit in directory.finished()] == [None] * len(directory.finished())
        assert _stored(folder, results) == wanted
        assert not _leftovers(folder)
    assert at > 80


def _campaign() -> Campaign:
    net = NETWORKS["mlp"]
    return Campaign(capture(net.model(), net.batch(2)), Inputs(net.batch(3)), sites=Values(), fault_model=BitFlip())


def _small(folder: Path, *, resume: bool = False) -> Path:
    _campaign().run(count=2000, seed=0, store=folder, resume=resume)
    return folder


def _resumed(folder: Path) -> str:
    return load_results(_small(folder, resume=True)).digest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two units, and its digest."""
    folder = _small(tmp_path_factory.mktemp("small") / "run")
    return folder, load_results(folder).digest()


@pytest.fixture
def finished(small: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(small[0], tmp_path / "run")
    return tmp_path / "run"


def _truncated(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-20])


def _scrambled(shard: Path) -> None:
    """The pages are gone, the list of them at the end is not."""
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + b"\xff" * (len(content) // 2) + content[4 + len(content) // 2 :])


def _flipped(file: Path, bit: int = 3001) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("folder", ["faults", "runs"])
@pytest.mark.parametrize("damage", [_truncated, _scrambled, _flipped])
def test_a_damaged_shard_is_named_and_made_again(
    damage: Callable[[Path], None], folder: str, small: tuple[Path, str], finished: Path
) -> None:
    name = f"{folder}/unit-00000001.parquet"
    damage(finished / name)
    message = f"expected unit 1 of {finished} as it was written, got another: {name} has not the digest in .*; resume"
    with pytest.raises(StoreError, match=message):
        load_results(finished)
    with pytest.warns(HoplonWarning, match=f"damaged in {finished}, and made again: unit 1$"):
        assert _resumed(finished) == small[1]
    assert not _leftovers(finished)


def test_all_that_is_damaged_is_named_at_once_and_made_again(small: tuple[Path, str], finished: Path) -> None:
    _flipped(finished / "digests" / "unit-00000000.sha256", 77)
    _scrambled(finished / "runs" / "unit-00000001.parquet")
    _truncated(finished / "design.json")
    wrong = {record.name for record in verify(finished) if record.wrong}
    assert wrong == {"unit 0", "unit 1", "design.json"}
    with pytest.warns(HoplonWarning, match="made again: unit 0, unit 1, design.json$"):
        assert _resumed(finished) == small[1]
    assert {record.state for record in verify(finished)} == {"whole"}
    assert not _leftovers(finished)


@pytest.mark.parametrize("target", ["values", "memory"])
def test_a_damaged_run_of_two_phases_is_made_whole_with_the_same_records(target: str, tmp_path: Path) -> None:
    net = NETWORKS["mlp"]
    sites = Values() if target == "values" else Memory()
    campaign = Campaign(capture(net.model(), net.batch(2)), Inputs(net.batch(12)), sites=sites, batch=4)
    options: dict[str, Any] = {"half_width": 0.06, "seed": 1, "store": tmp_path}
    wanted = campaign.run(**options).digest()
    _flipped(tmp_path / "design.json")
    for file in (tmp_path / "runs" / "unit-00000000.parquet", max((tmp_path / "faults").iterdir())):
        _flipped(file)
    with pytest.raises(StoreError, match="resume the run"):
        load_results(tmp_path)
    with pytest.warns(HoplonWarning, match=r"made again: unit 0(, unit \d+)?, design.json$"):
        results = campaign.run(**options, resume=True)
    assert (results.digest(), load_results(tmp_path).digest()) == (wanted, wanted)
    assert not _leftovers(tmp_path)
    (tmp_path / "design.json").unlink()  # without it, runs that stand for unequal shares would count alike
    with pytest.raises(StoreError, match="expected a design of the runs in .*, got none; resume the run"):
        load_results(tmp_path)
    assert campaign.run(**options, resume=True).digest() == wanted


def test_digests_are_those_of_sha256sum(finished: Path) -> None:
    files = [str(file.relative_to(finished)) for file in sorted((finished / "digests").iterdir())]
    checked = subprocess.run(["sha256sum", "--strict", "-c", *files], cwd=finished, capture_output=True, check=True)
    assert checked.stdout.decode().count(": OK\n") == 6


def _loaded(folder: Path) -> tuple[Any, ...] | None:
    """All that a run says; None where it is refused."""
    try:
        results = load_results(folder)
        return results.digest(), results.manifest, results.level, results.design
    except StoreError:
        return None


def test_no_flipped_bit_in_a_run_goes_unnoticed(tmp_path: Path) -> None:
    """Five hundred bits of shards, 250 of all other files: refused, or nothing comes of it."""
    results, dice = load_results(_small(tmp_path / "small")), random.Random(16)
    run = tmp_path / "run"
    _stored(run, results)
    before = _loaded(run)
    shards = sorted(run.glob("*/*.parquet"))
    others = [run / "manifest.json", run / "design.json", *sorted(run.glob("digests/*"))]
    noticed = {"shards": 0, "others": 0}
    for kind, files, flips in (("shards", shards, 500), ("others", others, 250)):
        for _ in range(flips):
            file = dice.choice(files)
            whole = file.read_bytes()
            _flipped(file, dice.randrange(8 * len(whole)))
            found = _loaded(run)
            noticed[kind] += found is None
            assert found in (None, before), file
            file.write_bytes(whole)
    assert noticed["shards"] == 500
    assert noticed["others"] > 240  # a space in a document may become a line break


def test_a_run_whose_digests_were_removed_is_damaged_not_early(finished: Path) -> None:
    shutil.rmtree(finished / "digests")
    units = [record for record in verify(finished) if "unit" in record.name]
    assert units
    assert all(record.wrong for record in units)
    with pytest.raises(StoreError, match="resume"):
        load_results(finished).digest()
    _small(finished, resume=True)
    assert not any(record.wrong for record in verify(finished))


def test_a_run_of_an_early_version_has_no_digests_and_is_gone_on_with(small: tuple[Path, str], finished: Path) -> None:
    as_early(finished)
    assert load_results(finished).digest() == small[1]
    assert [record.state for record in verify(finished) if "units" in record.name] == ["unchecked"]
    _scrambled(finished / "runs" / "unit-00000000.parquet")
    with pytest.raises(StoreError, match="got runs/unit-00000000.parquet cannot be read .*; resume the run"):
        load_results(finished).digest()
    _truncated(finished / "faults" / "unit-00000001.parquet")
    assert {record.name for record in verify(finished) if record.wrong} == {"unit 0", "unit 1"}
    with pytest.warns(HoplonWarning, match="made again: unit 1$"):  # unit 0 opens, and nothing says what was in it
        _small(finished, resume=True)
    assert not (finished / "digests").exists()
    assert not _leftovers(finished)


@pytest.mark.parametrize("name", ["runs/unit-00000001.parquet", "digests/unit-00000000.sha256", "faults", "digests"])
def test_links_in_the_place_of_records_are_refused(name: str, finished: Path, tmp_path: Path) -> None:
    (finished / name).rename(tmp_path / "elsewhere")
    (finished / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="expected unit . of .* is no plain file|expected a folder at .*, got a link"):
        load_results(finished)
    with pytest.raises(StoreError, match=r"expected a (shard|folder) at .*, got a link"):
        _small(finished, resume=True)
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["results.json", "design.json", "faults", "runs", "digests"])
def test_a_run_is_not_begun_among_other_things_of_these_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match=f"expected a new run directory, got .* with {name} and no manifest.json"):
        _small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_killed_process_left_is_removed_and_nothing_else(finished: Path) -> None:
    left = [finished / "runs" / f".unit-00000007.parquet.{'0a' * 16}", finished / f".manifest.json.{'f' * 32}"]
    kept = [finished / "runs" / ".unit-notes.txt", finished / ".gitignore", finished / "settings.json"]
    for file in (*left, *kept):
        file.write_text("half")
    _small(finished, resume=True)
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)


def test_a_run_directory_without_its_folders_is_gone_on_with(small: tuple[Path, str], finished: Path) -> None:
    for folder in ("faults", "runs"):
        shutil.rmtree(finished / folder)
    assert _resumed(finished) == small[1]


def test_two_processes_do_not_write_to_one_folder(small: tuple[Path, str], finished: Path) -> None:
    descriptor = os.open(finished, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=f"expected nobody else to write to {finished}, got another process"):
            _small(finished, resume=True)
    finally:
        os.close(descriptor)
    assert _resumed(finished) == small[1]


def test_a_unit_that_is_missing_ends_the_results_of_a_stopped_run(finished: Path) -> None:
    assert load_results(finished).runs.height == 2000
    (finished / "faults" / "unit-00000001.parquet").unlink()
    assert load_results(finished).runs.height == 1024
    (finished / "runs" / "unit-00000000.parquet").unlink()
    with pytest.raises(StoreError, match="expected at least one finished unit in .*, got none; resume the run"):
        load_results(finished)


def test_a_digest_is_that_of_the_records(finished: Path) -> None:
    results = load_results(finished)
    order = pl.Series(range(results.runs.height)).shuffle(seed=0)
    shuffled = dataclasses.replace(results, lazy_runs=results.runs[order].lazy())
    assert shuffled.digest() == results.digest()
    for change in (pl.col("reached").not_(), pl.col("input") + 1, -pl.col("gap_change")):
        other = dataclasses.replace(results, lazy_runs=results.runs.with_columns(change).lazy())
        assert other.digest() != results.digest()
    fewer = dataclasses.replace(results, lazy_faults=results.faults.plan().frame.lazy())
    assert fewer.digest() != results.digest()


def test_a_unit_of_another_run_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    net = NETWORKS["mlp"]
    plan = Campaign(capture(net.model(0), net.batch(2)), Inputs(net.batch(8)), sites=Values(), fault_model=BitFlip())
    for seed in (0, 1):
        plan.run(count=2100, seed=seed, store=tmp_path / f"{seed}")
    for folder, ending in (("faults", "parquet"), ("runs", "parquet"), ("digests", "sha256")):
        name = f"{folder}/unit-00000001.{ending}"
        (tmp_path / "0" / name).write_bytes((tmp_path / "1" / name).read_bytes())
    with pytest.raises(StoreError, match="expected unit 1 of .* as it was written, got .*another run"):
        load_results(tmp_path / "0")


def test_a_design_of_another_run_and_missing_units_are_noticed(tmp_path: Path) -> None:
    net = NETWORKS["mlp"]
    plan = Campaign(capture(net.model(0), net.batch(2)), Inputs(net.batch(8)), sites=Values(), fault_model=BitFlip())
    for seed in (0, 1):
        plan.run(half_width=0.02, seed=seed, store=tmp_path / f"{seed}")
    design = (tmp_path / "0" / "design.json").read_bytes()
    (tmp_path / "0" / "design.json").write_bytes((tmp_path / "1" / "design.json").read_bytes())
    with pytest.raises(StoreError, match="that of another run"):
        load_results(tmp_path / "0")
    (tmp_path / "0" / "design.json").write_bytes(design)
    last = max(file.name for file in (tmp_path / "0" / "faults").iterdir())
    (tmp_path / "0" / "faults" / last).unlink()
    with pytest.raises(StoreError, match="expected .* units in .*; resume the run"):
        load_results(tmp_path / "0")
