"""Run directories: whatever stops a campaign, going on with it gives the records of one that nothing stopped."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import polars as pl
import pytest

from hoplon import BitFlip, Campaign, Inputs, Values, capture, load_results
from hoplon.campaign.store import RunDirectory
from hoplon.errors import StoreError
from tests.support import stopped_campaign
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


def test_a_campaign_killed_twenty_times_gives_the_same_records(
    processes: ForkServerContext, whole: str, tmp_path: Path
) -> None:
    """Each kill falls before the manifest is there, between two units, or within one."""
    dice, directory = random.Random(20), RunDirectory(tmp_path)
    for _ in range(20):
        done, more = len(directory.finished()), dice.choice([0, 1, 1])
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


@pytest.mark.parametrize("writes", [0, 1, 2, 5])
def test_a_write_that_fails_at_any_point_leaves_a_run_to_go_on_with(
    writes: int, whole: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """0: the manifest; 1, 2: faults and runs of the first unit; 5: the faults of the third."""
    sync, left = os.fsync, [writes]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="got No space left on device"):
            stopped_campaign.run(tmp_path)
    assert len(RunDirectory(tmp_path).finished()) == max(0, writes - 1) // 2
    assert not _leftovers(tmp_path)
    assert stopped_campaign.run(tmp_path).digest() == whole


def _small(folder: Path | None, *, resume: bool = False) -> str:
    net = NETWORKS["mlp"]
    campaign = Campaign(capture(net.model(), net.batch(2)), Inputs(net.batch(3)), sites=Values(), fault_model=BitFlip())
    return campaign.run(count=2000, seed=0, store=folder, resume=resume).digest()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run of two units."""
    _small(tmp_path)
    return tmp_path


def _truncated(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-20])


def _scrambled(shard: Path) -> None:
    """The pages are gone, the list of them at the end is not."""
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + b"\xff" * (len(content) // 2) + content[4 + len(content) // 2 :])


@pytest.mark.parametrize("folder", ["faults", "runs"])
@pytest.mark.parametrize("damage", [_truncated, _scrambled])
def test_a_damaged_shard_is_named_and_made_again(damage: Callable[[Path], None], folder: str, finished: Path) -> None:
    shard = finished / folder / "unit-00000001.parquet"
    damage(shard)
    message = f"expected a readable shard at {shard}, got .*; delete it and resume the run"
    with pytest.raises(StoreError, match=message):
        load_results(finished).digest()
    with pytest.raises(StoreError, match=message):
        _small(finished, resume=True)
    shard.unlink()
    assert _small(finished, resume=True) == _small(None)


def test_what_a_killed_process_left_is_removed_and_nothing_else(finished: Path) -> None:
    left = [finished / "runs" / f".unit-00000007.parquet.{'0a' * 16}", finished / f".manifest.json.{'f' * 32}"]
    kept = [finished / "runs" / ".unit-notes.txt", finished / ".gitignore", finished / "settings.json"]
    for file in (*left, *kept):
        file.write_text("half")
    _small(finished, resume=True)
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)


def test_a_run_directory_without_its_folders_is_gone_on_with(tmp_path: Path) -> None:
    digest = _small(tmp_path)
    for folder in ("faults", "runs"):
        for shard in (tmp_path / folder).iterdir():
            shard.unlink()
        (tmp_path / folder).rmdir()
    assert _small(tmp_path, resume=True) == digest


def test_two_processes_do_not_write_to_one_folder(finished: Path) -> None:
    descriptor = os.open(finished, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=f"expected nobody else to write to {finished}, got another process"):
            _small(finished, resume=True)
    finally:
        os.close(descriptor)
    assert _small(finished, resume=True) == _small(None)


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
