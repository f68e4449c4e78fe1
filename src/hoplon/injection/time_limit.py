"""The time that a faulty pass may take, and what ends one that takes longer."""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

FACTOR: Final = 100.0  # of the fault-free pass
LEAST_SECONDS: Final = 2.0  # a machine may be busy with something else that long

_watching: list[Any] = []  # of this process: the open file that a stuck pass ends up in


class HangError(BaseException):
    """Ends a pass in Python code that takes too long; no error of a model, so that no model can catch it by mistake."""


def end_when_stuck(file: Any) -> None:
    """From now on, let a pass that nothing else can end take this process with it, after writing to an open file."""
    _watching[:] = [file]


@contextmanager
def limited(fault_free_seconds: float, *, passes: int = 1) -> Iterator[None]:
    """The scope of a faulty pass, or of several, that may take some multiple of the fault-free one.

    Code in Python is interrupted, in the main thread, unless the caller's own alarm is due earlier. An operator that
    does not come back ends the process, if :func:`end_when_stuck` permits that: a process of workers.

    Raises:
        HangError: time is up.
    """
    seconds = max(LEAST_SECONDS, FACTOR * fault_free_seconds) * passes
    if _watching:
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=_watching[0])
    try:
        with _alarm(seconds):
            yield
    finally:
        if _watching:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt the scope after so many seconds; an alarm of the caller's stays what it was, and goes first."""
    here = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    due, interval = signal.getitimer(signal.ITIMER_REAL) if here else (0.0, 0.0)
    if not here or 0 < due <= seconds:
        yield
        return
    begun, before = time.monotonic(), signal.signal(signal.SIGALRM, _time_is_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if due:
            signal.setitimer(signal.ITIMER_REAL, max(due - (time.monotonic() - begun), 1e-3), interval)


def _time_is_up(_number: int, _frame: Any) -> None:
    raise HangError
