"""Signals that stop a command: each is an interrupt, the first one counts, and what is put in order is left to end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SECONDS_TO_STOP = 3.0  # in which further signals are not heard


@contextmanager
def stoppable(*, for_good: bool = False) -> Iterator[list[int]]:
    """A scope in which SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt; yields the numbers of those that came.

    Who ignores one of them (``nohup``) or has a handler of their own keeps that.

    Args:
        for_good: a process that was stopped ends after the scope, and hears none of them until then.
    """
    came: list[int] = []
    process, last = os.getpid(), [0.0]

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:  # a copy of this process, which others end as they are used to
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        came.append(number)
        if len(came) == 1 or time.monotonic() - last[0] > _SECONDS_TO_STOP:
            last[0] = time.monotonic()
            raise KeyboardInterrupt

    heard = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in heard if here}
    before = {number: handler for number, handler in before.items() if handler in usual}
    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and for_good else handler)
