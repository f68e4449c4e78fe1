"""Where work units run. A unit is a function of its number alone, so the place cannot change the result."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, cast, final

import cloudpickle
import torch
from joblib.externals.loky import ProcessPoolExecutor, as_completed
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

from hoplon.campaign.isolation import Ended, Work, forked, in_parts, load_work, run_pickled
from hoplon.campaign.lifetime import WORK, WorkFolder, end_with
from hoplon.errors import HoplonError, HoplonWarning, StoreError, said
from hoplon.injection.time_limit import end_when_stuck

_ATTEMPTS: Final = 3  # to run a task, where what is killed is not its process
_WAY_OUT: Final = "see that memory, TMPDIR and open files suffice, or use fewer workers"
_MOST_TOGETHER: Final = 8  # units
_TOGETHER_SECONDS: Final = 5.0  # which is what an interrupt can lose
_SAFE_PATH: Final = "PYTHONSAFEPATH"
_Place = tuple[Path, int]
MOST_THREADS = 1024  # far more than it can use end a process


@contextmanager
def torch_threads(threads: int | None, *, workers: int = 1) -> Iterator[int]:
    """Compute with so many threads of torch (None: as many as now); afterwards the number is what it was.

    Args:
        threads: at least 1, at most 1,024.
        workers: checked along with it, at least 1.
    Raises:
        HoplonError: a number below 1, or more threads than any machine has.
    """
    before = torch.get_num_threads()
    wanted = before if threads is None else threads
    for number, what in ((workers, "worker"), (wanted, "thread")):
        if number < 1:
            raise HoplonError(f"expected at least 1 {what}, got {number}")
    if wanted > MOST_THREADS:
        raise HoplonError(f"expected at most {MOST_THREADS} threads, got {wanted}; as many as there are cores do")
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)


def workers_that_fit(workers: int, *, threads: int) -> int:
    """Return how many processes run at once where so many are asked for: one per core at most.

    Warns where that is fewer, and where the threads of all together are more than the cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = min(workers, cores)
    told = []
    if used < workers:
        told.append(f"{used} of {workers:,} workers run, as there are {cores} cores; records do not depend on it")
    if used > 1 and used * threads > cores:
        each = max(1, cores // used)
        told.append(f"{used} workers with {threads} threads each share {cores} cores; threads={each} is faster")
    if told:
        warnings.warn("; ".join(told), HoplonWarning, stacklevel=4)
    return used


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
    """One unit after another in this process, or as many at once as take some seconds.

    Args:
        work: gives the result of a unit; with a method ``together``, those of several.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._together, self._size = getattr(work, "together", None), 1

    def run(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """In the order of ``units``."""
        left = list(units.items())
        while left:
            numbers, tasks = zip(*left[: self._size], strict=True)
            begun = time.perf_counter()
            try:
                results = [self._work(tasks[0])] if self._together is None else self._together(tasks)
            except Exception:
                if len(tasks) == 1:
                    raise
                self._together, self._size = None, 1  # those before the one that fails are not lost
                continue
            each = (time.perf_counter() - begun) / len(tasks)
            yield from zip(numbers, results, strict=True)
            left = left[len(tasks) :]
            if self._together is not None:
                self._size = max(1, min(_MOST_TOGETHER, int(_TOGETHER_SECONDS / each)))

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
        StoreError: the system does not give what processes need, or ends them.
    """

    def __init__(self, work: Callable[[Any], Any] | Work, *, workers: int, threads: int) -> None:
        if workers < 1 or threads < 1:
            raise HoplonError(f"expected at least 1 worker and 1 thread, got {workers} and {threads}")
        self._work, self._workers, self._isolating, self._ended = work, workers, False, False
        self._using, self._restarting = threading.Lock(), threading.Lock()
        self._forks = hasattr(os, "fork") and not torch.cuda.is_initialized()  # which does not survive being copied
        self._environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._environment["PYTHONFAULTHANDLER"] = os.environ.get("PYTHONFAULTHANDLER", "")  # deaths may be expected
        self._folder: WorkFolder | None = None
        self._pool: Any = None
        if hasattr(signal, "siginterrupt"):  # polars has waits go on after an interrupt
            signal.siginterrupt(signal.SIGINT, True)
        try:
            self._folder = WorkFolder()
            self._place: _Place = self._folder.path / WORK, threads
            self._place[0].write_bytes(cloudpickle.dumps(work))
            self._start(workers).result()
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, Exception):
                raise
            if (lacking := _lacking(error)) is not None:
                raise StoreError(f"expected to start {workers} workers, got {said(lacking)}; {_WAY_OUT}") from error
            raise HoplonError(
                f"expected processes that can load the model and what it needs, got {type(error).__name__}: "
                f"{said(error)}; define operators and classes in a module that the model imports, or use workers=1"
            ) from error

    def run(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """As they finish.

        Raises:
            StoreError: as above.
        """
        left = dict(units)
        try:
            if not self._isolating:
                for unit, result in self._together(units):
                    del left[unit]
                    yield unit, result
            if left:
                yield from self._in_parts(left)
        except Exception as error:
            lacking = _lacking(error)
            if lacking is None or isinstance(error, HoplonError):
                raise
            raise StoreError(
                f"expected processes that live as long as their work, got {said(lacking)}; {_WAY_OUT}"
            ) from error

    def _together(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Units as they finish, until one has ended its process."""
        try:
            futures = {self._pool.submit(_run, self._place, pickle.dumps(task)): unit for unit, task in units.items()}
            for future in as_completed(futures):
                yield futures[future], pickle.loads(future.result())  # noqa: S301 -- from a process started here
        except BrokenProcessPool:
            if not hasattr(self._work, "halves"):
                raise
            self._isolating = True
            self._restart(self._pool)

    def _in_parts(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        work = cast(Work, self._work)
        threads = ThreadPoolExecutor(self._workers if self._forks else 1)
        try:
            run = {threads.submit(in_parts, self._alone, work, task, self._using): unit for unit, task in units.items()}
            for future in as_completed(run):
                yield run[future], future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _alone(self, task: Any) -> Any:
        """The result of a task, or `Ended`."""
        attempts = 0
        while True:
            attempts += 1
            pool = self._pool
            try:
                found = pool.submit(forked if self._forks else run_pickled, self._place, pickle.dumps(task)).result()
            except (BrokenProcessPool, ShutdownExecutorError):
                if attempts == _ATTEMPTS or self._ended:
                    raise
                self._restart(pool)
                if not self._forks:
                    return Ended("death")
            else:
                return found if isinstance(found, Ended) else pickle.loads(found)  # noqa: S301 -- as above

    def _start(self, workers: int) -> Future[None]:
        """Start processes that ignore interrupts, which reach this one, and end with it."""
        mask = getattr(signal, "pthread_sigmask", lambda *_: ())
        before = mask(getattr(signal, "SIG_BLOCK", 0), {signal.SIGINT})
        safe = os.environ.get(_SAFE_PATH)
        os.environ[_SAFE_PATH] = "1"  # or they import what lies in the current folder under names of the library
        try:
            self._pool = ProcessPoolExecutor(
                max_workers=workers,
                env=self._environment,
                initializer=end_with,
                initargs=(os.getpid(), self._place[0].parent),
            )
            loaded: Future[None] = self._pool.submit(_load, self._place)
            return loaded
        finally:
            mask(getattr(signal, "SIG_SETMASK", 0), before)
            if safe is None:
                del os.environ[_SAFE_PATH]
            else:
                os.environ[_SAFE_PATH] = safe

    def _restart(self, broken: Any) -> None:
        """Start new processes for tasks alone, unless another thread already did."""
        with self._restarting:
            if self._pool is broken and not self._ended:
                self._stop()
                self._start(self._workers if self._forks else 1)

    def _stop(self) -> None:
        if self._pool is not None:
            started = dict(self._pool._processes or {})
            self._pool.shutdown(wait=True, kill_workers=True)
            for process in started.values():  # where not all could be started, nobody else ends them
                process.terminate()
                process.join()

    def __exit__(self, *error: object) -> None:
        """Stop the processes and remove the work."""
        self._ended = True
        try:
            with self._restarting:
                self._stop()
        finally:
            if self._folder is not None:
                self._folder.close()


def _lacking(error: BaseException | None) -> BaseException | None:
    """The error by which the system says that it does not give what processes need, if one led to this error."""
    while not (error is None or isinstance(error, OSError | BrokenProcessPool | ShutdownExecutorError)):
        error = error.__cause__ or error.__context__
    return error


def _load(place: _Place) -> None:
    load_work(*place)


def _run(place: _Place, task: bytes) -> bytes:
    """Run a unit in a process that ends, if a pass is stuck."""
    end_when_stuck(_nowhere())
    return run_pickled(place, task)


@functools.cache
def _nowhere() -> Any:
    return Path(os.devnull).open("wb")


def peak_memory_bytes() -> int | None:
    """Resident memory at its highest, of this process without its children; None where the platform does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
