"""A task in a process that it may end: what the task gives, or what became of the process."""

from __future__ import annotations

import faulthandler
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from hoplon.campaign.lifetime import end_with
from hoplon.errors import StoreError
from hoplon.injection.time_limit import end_when_stuck


class Work(Protocol):
    """What a work unit is made of, as far as it can be made smaller to find out what ends a process.

    Any function of a task will do where nothing ends a process.
    """

    def __call__(self, task: Any, /) -> Any:
        """Return the result of a task."""

    def halves(self, task: Any, /) -> Sequence[Any]:
        """Return two tasks that make up this one; none where that is one fault on one batch of inputs."""

    def joined(self, results: Sequence[Any], /) -> Any:
        """Return the result of the whole task from those of its halves."""

    def unchanged(self, task: Any, /) -> Any:
        """Return the task with faults that change nothing."""

    def lost(self, task: Any, cause: str, /) -> Any:
        """Return the result of a task that ended its process, by a cause out of `criteria.CAUSES`."""


@dataclass(frozen=True)
class Ended:
    """The end of a process in the middle of a task: "death", or "hang" where it took longer than it may."""

    cause: str


def in_parts(run: Callable[[Any], Any], work: Work, task: Any, lock: threading.Lock) -> Any:
    """Run a task; if it ends its process, run halves of it, down to the one fault that is the cause.

    A process may be killed from outside, for its memory as a rule: a fault is the cause where it ends two in a row.

    Args:
        run: gives the result of a task, or `Ended`.
        lock: held while the work is used in this process.
    Raises:
        StoreError: a process ends although the fault changes nothing.
    """
    result = run(task)
    if not isinstance(result, Ended):
        return result
    with lock:
        halves = work.halves(task)
    if halves:
        parts = [in_parts(run, work, half, lock) for half in halves]
        with lock:
            return work.joined(parts)
    unchanged = work.unchanged(task)
    if all(isinstance(run(unchanged), Ended) for _ in range(2)):
        raise StoreError(
            f"expected a process to survive a run without any fault, got its {result.cause}; "
            "see that it has the memory and the files that the model needs"
        )
    again = run(task) if result.cause == "death" else result
    if not isinstance(again, Ended):
        return again
    with lock:
        return work.lost(task, again.cause)


def forked(place: tuple[Path, int], task: bytes) -> bytes | Ended:
    """Run a pickled task in a copy of this process, which only loads work; return the pickled result.

    What the task raises is raised here. Threads do not come along into a copy, so this process computes with one.
    """
    load_work(place[0], 1)
    parent, path = os.getpid(), place[0].with_name(f"stuck-{os.getpid()}")
    with path.open("wb") as stuck:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as pipe:
            try:
                with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the other thread waits
                    child = os.fork()
                if child == 0:
                    os.close(reader)
                    _run_and_exit(place, task, stuck, writer, parent)
            finally:
                os.close(writer)
            content = pipe.read()
    _, status = os.waitpid(child, 0)
    if status == 0 and content:
        error, result = pickle.loads(content)  # noqa: S301 -- from this process's own copy
        if error is not None:
            raise error
        return bytes(result)
    return Ended("hang" if path.stat().st_size else "death")


def _run_and_exit(place: tuple[Path, int], task: bytes, stuck: Any, writer: int, parent: int) -> None:
    """In the copy: run the task, send the result, and end without what a process does at its end."""
    status = 1
    try:
        end_with(parent)
        faulthandler.disable()  # this death is expected
        torch.set_num_threads(place[1])
        end_when_stuck(stuck)
        with os.fdopen(writer, "wb") as pipe:
            try:
                content: tuple[Exception | None, bytes] = None, run_pickled(place, task)
            except Exception as error:  # noqa: BLE001 -- goes to the caller
                content = error, b""
            pipe.write(pickle.dumps(content))
        status = 0
    finally:
        os._exit(status)


def run_pickled(place: tuple[Path, int], task: bytes) -> bytes:
    """Run a pickled task, return its pickled result.

    Args:
        place: file of the work, threads of torch.
    """
    work = load_work(*place)
    return pickle.dumps(work(pickle.loads(task)))  # noqa: S301 -- from the parent process, a moment ago


_loaded: dict[Path, Callable[[Any], Any]] = {}


def load_work(path: Path, threads: int) -> Callable[[Any], Any]:
    """The work, loaded once in each process; the file was written by the parent process a moment ago."""
    if path not in _loaded:
        torch.set_num_threads(threads)
        _loaded.clear()
        _loaded[path] = pickle.loads(path.read_bytes())  # noqa: S301
    return _loaded[path]
