"""Processes of a campaign: none outlives the one it works for, and what kills one changes no record."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from hoplon.campaign.executors import Processes, torch_threads, workers_that_fit
from hoplon.campaign.lifetime import WORK, WorkFolder
from hoplon.errors import HoplonError, HoplonWarning, StoreError

DEADLINE_SECONDS = 60.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


class Squares:
    """Squares of single tasks. The first one ends its process, so that copies go on; one that is 0 waits there."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def first(self, mark: str) -> bool:
        """True for the first who asks."""
        try:
            (self.marks / mark).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def __call__(self, task: int) -> int:
        if self.first("died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 0:
            self.first("waiting")
            time.sleep(DEADLINE_SECONDS)
        if task == 1 and self.first("worker"):  # the process that this one is a copy of
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(DEADLINE_SECONDS)
        if task == 2 and self.first("copy"):
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task * task

    def halves(self, task: int) -> tuple[int, ...]:
        return ()

    def joined(self, results: Any) -> Any:
        raise NotImplementedError

    def unchanged(self, task: int) -> int:
        return 5

    def lost(self, task: int, cause: str) -> str:
        return cause


def _run(folder: str, workers: int) -> None:
    """In a process of its own: work in a session of its own, with temporary files in a folder."""
    os.setsid()
    tempfile.tempdir = folder
    (Path(folder) / "begun").touch()
    with Processes(Squares(Path(folder)), workers=workers, threads=1) as pool:
        list(pool.run({0: 0}))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with everything imported, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.campaign.test_lifetime"])
    return context


def _in_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["folder", "workers", "loading", "copies"])
def test_nothing_outlives_a_process_that_is_killed(
    moment: str, processes: ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its workers have begun, once two are there, while they load the work, and while copies of them run it."""
    process = processes.Process(target=_run, args=(str(tmp_path), 1 if moment == "copies" else 2))
    process.start()
    assert process.pid is not None
    session = process.pid
    _wait(lambda: (tmp_path / "begun").exists() and bool(list(tmp_path.glob("hoplon-*"))))
    if moment != "folder":
        _wait(lambda: len(_in_session(session)) >= 4)  # with the tracker of resources
    if moment == "loading":
        time.sleep(0.4)
    if moment == "copies":
        _wait((tmp_path / "waiting").exists)
    process.kill()
    process.join()
    _wait(lambda: not _in_session(session))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    WorkFolder().close()  # the next one, for what nobody was there to remove
    assert not list(tmp_path.glob("hoplon-*"))


def test_what_is_killed_from_outside_has_its_result(tmp_path: Path) -> None:
    """A worker before its first unit, a worker whose copy runs one, a copy; the one that ends itself is lost."""
    with Processes(Squares(tmp_path), workers=1, threads=1) as pool:
        assert dict(pool.run({n: n for n in (1, 2, 3, 4)})) == {1: 1, 2: 4, 3: "death", 4: 16}
    assert {mark.name for mark in tmp_path.iterdir()} == {"died", "worker", "copy"}


def test_workers_are_as_many_as_cores_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert workers_that_fit(2, threads=1) == 2
    assert workers_that_fit(1, threads=4) == 1
    with pytest.warns(HoplonWarning, match="2 of 1,000,000,000 workers run, as there are 2 cores; records do not"):
        assert workers_that_fit(10**9, threads=1) == 2
    with pytest.warns(HoplonWarning, match="2 workers with 3 threads each share 2 cores; threads=1 is faster"):
        assert workers_that_fit(2, threads=3) == 2
    with pytest.raises(HoplonError, match="at most 1024 threads, got 1000000"), torch_threads(10**6):
        raise AssertionError


def test_folders_of_ended_processes_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = WorkFolder()
    for name in ("hoplon-12-abcdefgh", "hoplon-12-alien___", "hoplon-abcdefgh", "hoplon-12-abcdefgh.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WORK).touch()
        (tmp_path / name / "stuck-17").touch()
    (tmp_path / "hoplon-12-alien___" / "notes.txt").touch()
    (tmp_path / "hoplon-12-linked__").symlink_to(tmp_path / "hoplon-abcdefgh")
    if os.geteuid() == 0:
        (tmp_path / "hoplon-13-another_").mkdir()
        os.chown(tmp_path / "hoplon-13-another_", 4321, 4321)
    before = {entry for entry in tmp_path.rglob("*") if "12-abcdefgh" not in str(entry) or ".old" in str(entry)}
    WorkFolder().close()
    assert set(tmp_path.rglob("*")) == before
    assert living.path in before
    living.close()
    assert not living.path.exists()


def test_a_system_that_lacks_what_workers_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    for more in (0, 3, 9):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, limits[1]))
        try:
            with pytest.raises(StoreError, match="start 2 workers, got .*Too many open files.*; see that memory"):
                Processes(abs, workers=2, threads=1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match="start 2 workers, got .*No such file or directory"):
        Processes(abs, workers=2, threads=1)
    assert not multiprocessing.active_children()
