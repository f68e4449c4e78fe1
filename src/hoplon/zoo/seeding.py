"""Scopes in which weights are drawn and trained the same way every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Progress = Callable[[int, int, float], None]
"""Called after each epoch with the number of epochs done, their total, and the epoch's mean loss."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A scope in which torch's CPU generator starts from ``seed``; its earlier state is put back afterwards.

    Layers initialise their weights from the global generator and cannot be given another one.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     torch.equal(torch.rand(2), first)
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """A scope in which torch computes on one thread, so that sums are added in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
