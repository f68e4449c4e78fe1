"""Tensors as rows of words, and walks over much memory on all threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from hoplon.formats.base import integer_view
from hoplon.protections.memory_guard import of_turn

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
_SHARED_BYTES = 1 << 21  # below this, handing work to threads costs more than it saves


def row_of(tensor: Tensor) -> Tensor | None:
    """The words of a tensor as one row of integers that shares its memory, in the order of memory.

    None where the tensor leaves gaps in memory. Expanded axes have one row in memory, which is what comes back.
    """
    if not is_dense(tensor):
        return None
    return integer_view(tensor).as_strided((without_repeats(tensor).numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """Return True if elements fill memory without gaps, in whatever order of axes; expanded axes count once."""
    extent = 1
    axes = [(stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and stride]
    for stride, size in sorted(axes):
        if stride != extent:
            return False
        extent *= size
    return True


def without_repeats(tensor: Tensor) -> Tensor:
    """One element of every axis along which all elements are the same memory, as ``expand`` makes them."""
    for axis in reversed(range(tensor.dim())):
        if tensor.stride(axis) == 0 and tensor.shape[axis] > 1:
            tensor = tensor.select(axis, 0)
    return tensor


def in_wide(row: Tensor) -> list[Tensor]:
    """A row of words as int64, which is compared faster, and what is left over at its ends."""
    per = 8 // row.itemsize
    lead = -row.storage_offset() % per
    misaligned = (row.data_ptr() + lead * row.itemsize) % 8
    if per < 2 or misaligned or len(row) < lead + per:
        return [row]
    stop = lead + (len(row) - lead) // per * per
    return [part for part in (row[lead:stop].view(torch.int64), row[:lead], row[stop:]) if len(part)]


def shared(work: Callable[[Sequence[_Item]], _Found], items: Sequence[_Item], sizes: Sequence[int]) -> list[_Found]:
    """Do work on all items, on as many threads as torch uses where they are large; one result for each thread's run.

    Args:
        work: on a run of consecutive items; releases the lock of Python in what takes long.
        sizes: bytes of each item.
    """
    threads = min(torch.get_num_threads(), len(items))
    total = sum(sizes)
    if threads < 2 or total < _SHARED_BYTES:
        return [work(items)]
    runs: list[list[_Item]] = [[] for _ in range(threads)]
    before = 0
    for item, size in zip(items, sizes, strict=True):
        runs[before * threads // total].append(item)
        before += size
    waiting = [_pool(os.getpid(), threads - 1).submit(work, run) for run in runs[1:]]
    first = work(runs[0])
    return [first, *(future.result() for future in waiting)]


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not live on in its children."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"hoplon-{process}")


def of_turn_by_size(sizes: Sequence[int], turn: int, turns: int) -> range:
    """Return the consecutive pieces of a turn, cut so that turns differ by one piece's size at most.

    Raises:
        HoplonError: a turn out of range.
    Example:
        >>> [list(of_turn_by_size([4, 1, 1, 2], turn, 2)) for turn in range(2)]
        [[0], [1, 2, 3]]
    """
    of_turn(1, turn, turns)
    total, before = sum(sizes), 0
    numbers = []
    for number, size in enumerate(sizes):
        if before * turns // total == turn:
            numbers.append(number)
        before += size
    return range(numbers[0], numbers[-1] + 1) if numbers else range(0)
