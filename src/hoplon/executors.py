"""Where work units run. A unit is a function of its number alone, so the place cannot change the result."""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, final

import cloudpickle
import torch
from joblib.externals.loky import ProcessPoolExecutor, as_completed

from hoplon.errors import HoplonError

Result = TypeVar("Result")
Finished = Callable[[int], None]


class Executor(ABC):
    """Runs work units and gives their results as they finish."""

    @abstractmethod
    def run(self, work: Callable[[int], Result], units: Iterable[int]) -> Iterator[tuple[int, Result]]:
        """Pairs of unit number and result, in any order."""


@final
class Serial(Executor):
    """One unit after another in this process."""

    def run(self, work: Callable[[int], Result], units: Iterable[int]) -> Iterator[tuple[int, Result]]:
        """In the order of ``units``."""
        for unit in units:
            yield unit, work(unit)


@final
class Processes(Executor):
    """Units side by side in processes of this machine, each with the same number of threads.

    The work is written to a temporary file once and loaded by each process once. Nothing of the caller's main module
    is run again.

    Args:
        workers: processes, at least 1.
        threads: of torch in each process; bitwise claims hold at equal threads.
    """

    def __init__(self, workers: int, *, threads: int) -> None:
        if workers < 1 or threads < 1:
            raise HoplonError(f"expected at least 1 worker and 1 thread, got {workers} and {threads}")
        self.workers, self.threads = workers, threads

    def run(self, work: Callable[[int], Result], units: Iterable[int]) -> Iterator[tuple[int, Result]]:
        """As they finish."""
        pending = list(units)
        if not pending:
            return
        with tempfile.TemporaryDirectory(prefix="hoplon-") as folder:
            path = Path(folder) / "work"
            path.write_bytes(cloudpickle.dumps(work))
            environment = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
            pool = ProcessPoolExecutor(max_workers=min(self.workers, len(pending)), env=environment)
            try:
                futures = {pool.submit(_run_unit, str(path), self.threads, unit): unit for unit in pending}
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(wait=True, kill_workers=True)


def _run_unit(path: str, threads: int, unit: int) -> Any:
    return _load_work(path, threads, os.getpid())(unit)


@functools.lru_cache(maxsize=1)
def _load_work(path: str, threads: int, process: int) -> Callable[[int], Any]:
    """The work, loaded once in each process; the file was written by the parent process a moment ago."""
    torch.set_num_threads(threads)
    work: Callable[[int], Any] = pickle.loads(Path(path).read_bytes())  # noqa: S301
    return work
