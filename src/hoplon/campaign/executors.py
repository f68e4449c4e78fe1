"""Where work units run. A unit is a function of its number alone, so the place cannot change the result."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, final

import cloudpickle
import torch
from joblib.externals.loky import ProcessPoolExecutor, as_completed

from hoplon.errors import HoplonError

Work = Callable[[Any], Any]


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

    def __init__(self, work: Work) -> None:
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
    is run again.

    Args:
        work: gives the result of a unit; it has to survive the journey to another process.
        workers: processes, at least 1.
        threads: of torch in each process; bitwise claims hold at equal threads.
    """

    def __init__(self, work: Work, *, workers: int, threads: int) -> None:
        if workers < 1 or threads < 1:
            raise HoplonError(f"expected at least 1 worker and 1 thread, got {workers} and {threads}")
        self._threads = threads
        self._folder = tempfile.TemporaryDirectory(prefix="hoplon-")
        self._path = Path(self._folder.name) / "work"
        self._path.write_bytes(cloudpickle.dumps(work))
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._pool = ProcessPoolExecutor(max_workers=workers, env=environment)

    def run(self, units: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """As they finish."""
        place = str(self._path), self._threads, os.getpid()
        futures = {self._pool.submit(_run_unit, *place, task): unit for unit, task in units.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def __exit__(self, *error: object) -> None:
        """Stop the processes and remove the work."""
        self._pool.shutdown(wait=True, kill_workers=True)
        self._folder.cleanup()


def _run_unit(path: str, threads: int, parent: int, task: Any) -> Any:
    return _load_work(path, threads, parent, os.getpid())(task)


@functools.lru_cache(maxsize=1)
def _load_work(path: str, threads: int, parent: int, process: int) -> Work:
    """The work, loaded once in each process; the file was written by the parent process a moment ago."""
    threading.Thread(target=_end_with, args=(parent, Path(path).parent), daemon=True).start()
    torch.set_num_threads(threads)
    work: Work = pickle.loads(Path(path).read_bytes())  # noqa: S301
    return work


def _end_with(parent: int, folder: Path) -> None:
    """End this process, and remove the work, once the parent is gone: it may have been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
