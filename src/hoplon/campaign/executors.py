"""Where work units run. A unit is a function of its number alone, so the place cannot change the result."""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast, final

import cloudpickle
import torch
from joblib.externals.loky import ProcessPoolExecutor, as_completed
from joblib.externals.loky.process_executor import BrokenProcessPool

from hoplon.campaign.isolation import Ended, Work, forked, in_parts, load_work, run_pickled
from hoplon.errors import HoplonError
from hoplon.injection.time_limit import end_when_stuck


@contextmanager
def torch_threads(threads: int | None, *, workers: int = 1) -> Iterator[int]:
    """Compute with so many threads of torch (None: as many as now); afterwards the number is what it was.

    Args:
        threads: at least 1.
        workers: checked along with it, at least 1.
    Raises:
        HoplonError: a number below 1.
    """
    before = torch.get_num_threads()
    wanted = before if threads is None else threads
    for number, what in ((workers, "worker"), (wanted, "thread")):
        if number < 1:
            raise HoplonError(f"expected at least 1 {what}, got {number}")
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)


class Executor(ABC):
    """Runs work units and gives their results as they finish; a context that frees what it holds."""

    @abstractmethod
    def run(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Pairs of unit number and result, in any order.

        Args:
            units: by number what the work is called with.
        """

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Stop what still runs."""


@final
class Serial(Executor):
    """One unit after another in this process.

    Args:
        work: gives the result of a unit.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def run(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """In the order of ``units``."""
        for unit, task in units.items():
            yield unit, self._work(task)

    def __exit__(self, *error: object) -> None:
        """Nothing runs any more."""


@final
class Processes(Executor):
    """Units side by side in processes of this machine, each with the same number of threads.

    The work is written to a temporary file once and loaded by each process once. Nothing of the caller's main module
    is run again. Once a unit has ended its process, those that are left run in copies of processes, which they may end;
    one that does is run in halves, down to the one fault that is the cause.

    Args:
        work: gives the result of a unit; it has to survive the journey to another process. As `isolation.Work` says,
            where a unit may end its process.
        workers: processes, at least 1.
        threads: of torch in each process; bitwise claims hold at equal threads.
    Raises:
        HoplonError: a process cannot load the work.
    """

    def __init__(self, work: Callable[[Any], Any] | Work, *, workers: int, threads: int) -> None:
        if workers < 1 or threads < 1:
            raise HoplonError(f"expected at least 1 worker and 1 thread, got {workers} and {threads}")
        self._work, self._workers, self._isolating, self._lock = work, workers, False, threading.Lock()
        self._forks = hasattr(os, "fork") and not torch.cuda.is_initialized()  # which does not survive being copied
        self._folder = tempfile.TemporaryDirectory(prefix="hoplon-")
        self._environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._place = Path(self._folder.name) / "work", threads, os.getpid()
        self._pool = self._new_pool(workers)
        try:
            self._place[0].write_bytes(cloudpickle.dumps(work))
            self._pool.submit(_load, self._place).result()
        except Exception as error:
            self.__exit__()
            said = " ".join(str(error).split())[:200].rstrip(".")
            raise HoplonError(
                f"expected processes that can load the model and what it needs, got {type(error).__name__}: {said}; "
                "define operators and classes in a module that the model imports, or use workers=1"
            ) from error

    def run(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """As they finish."""
        left = dict(units)
        if not self._isolating:
            try:
                for unit, result in self._together(units):
                    del left[unit]
                    yield unit, result
            except BrokenProcessPool as error:
                if not hasattr(self._work, "halves"):
                    raise HoplonError(f"expected processes that live as long as their work, got {error}") from error
                self._isolating = True
                self._restart(self._workers if self._forks else 1)
        if left:
            yield from self._in_parts(left)

    def _together(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        futures = {self._pool.submit(_run, self._place, pickle.dumps(task)): unit for unit, task in units.items()}
        for future in as_completed(futures):
            yield futures[future], pickle.loads(future.result())  # noqa: S301 -- from a process started here

    def _in_parts(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        work = cast(Work, self._work)
        threads = ThreadPoolExecutor(self._workers if self._forks else 1)
        try:
            run = {threads.submit(in_parts, self._alone, work, task, self._lock): unit for unit, task in units.items()}
            for future in as_completed(run):
                yield run[future], future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _alone(self, task: Any) -> Any:
        """The result of a task, or `Ended`."""
        alone = forked if self._forks else run_pickled
        try:
            found = self._pool.submit(alone, self._place, pickle.dumps(task)).result()
        except BrokenProcessPool:
            if self._forks:
                raise
            self._restart(1)
            return Ended("death")
        return found if isinstance(found, Ended) else pickle.loads(found)  # noqa: S301 -- as above

    def _new_pool(self, workers: int) -> Any:
        return ProcessPoolExecutor(max_workers=workers, env=self._environment)

    def _restart(self, workers: int) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)
        self._pool = self._new_pool(workers)

    def __exit__(self, *error: object) -> None:
        """Stop the processes and remove the work."""
        self._pool.shutdown(wait=True, kill_workers=True)
        self._folder.cleanup()


def _load(place: tuple[Path, int, int]) -> None:
    load_work(*place)


def _run(place: tuple[Path, int, int], task: bytes) -> bytes:
    """Run a unit in a process that ends, if a pass is stuck."""
    end_when_stuck(_nowhere())
    return run_pickled(place, task)


@functools.cache
def _nowhere() -> Any:
    return Path(os.devnull).open("wb")
