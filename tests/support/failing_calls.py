"""Calls to the file system that fail, or end the process, one by one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CALLS = ("mkdir", "fsync", "replace", "unlink", "rmdir", "open")


@contextmanager
def counted(at: int, then: Callable[[], None], calls: tuple[str, ...] = CALLS) -> Iterator[list[int]]:
    """A scope in which something happens in the place of the call of this number; yields the number of calls."""
    count = [0]

    def instead(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                then()
            return call(*arguments, **options)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, instead(getattr(os, name)))
        yield count


def full() -> None:
    """Raise what a full disk raises."""
    raise OSError(errno.ENOSPC, "No space left on device")


def killed() -> None:
    """End the process at once, as a kill does: no scope is left, nothing is cleaned up."""
    os._exit(9)
