"""Tensors as rows of words, and walks over much memory on all threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from hoplon.formats.base import integer_view
from hoplon.protections.guards.memory.arena import arena_around
from hoplon.protections.memory_guard import pieces_of_turn

_Item = TypeVar("_Item")
_Part = TypeVar("_Part", bound=Sized)
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


def joint_words(tensor: Tensor) -> tuple[Tensor, int]:
    """The words among which a tensor lies, as one row, and where its first one is.

    In an arena these are all of its words, so that one operator reaches several tensors; else :func:`spanned`.
    """
    arena = arena_around(tensor)
    if arena is None:
        return spanned(tensor), 0
    words = arena[: arena.nbytes // tensor.itemsize * tensor.itemsize].view(integer_view(tensor).dtype)
    return words, (tensor.data_ptr() - arena.data_ptr()) // tensor.itemsize


def spanned(tensor: Tensor) -> Tensor:
    """The words of a tensor from its first to its last in memory as one row, gaps included."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return integer_view(tensor).as_strided((extent,), (1,))


def in_wide(row: Tensor) -> list[Tensor]:
    """A row of words as int64, which is compared faster, and what is left over at its ends."""
    per = 8 // row.itemsize
    lead = -row.storage_offset() % per
    misaligned = (row.data_ptr() + lead * row.itemsize) % 8
    if per < 2 or misaligned or len(row) < lead + per:
        return [row]
    stop = lead + (len(row) - lead) // per * per
    return [part for part in (row[lead:stop].view(torch.int64), row[:lead], row[stop:]) if len(part)]


def shared(
    work: Callable[[Sequence[_Item]], _Found], items: Sequence[_Item], size: Callable[[_Item], int]
) -> list[_Found]:
    """Do work on all items, on as many threads as torch uses where they are large; one result for each thread's run.

    Args:
        work: on a run of consecutive items; releases the lock of Python in what takes long.
        size: bytes of an item.
    """
    threads = min(torch.get_num_threads(), len(items))
    begins = [0, *accumulate(map(size, items))]
    if threads < 2 or begins[-1] < _SHARED_BYTES:
        return [work(items)]
    runs: list[list[_Item]] = [[] for _ in range(threads)]
    for item, begin in zip(items, begins, strict=False):
        runs[begin * threads // begins[-1]].append(item)
    waiting = [_pool(os.getpid(), threads - 1).submit(work, run) for run in runs[1:]]
    try:
        first = work(runs[0])
    finally:
        wait(waiting)  # an interrupt leaves no thread behind that reads memory or writes what it found
    return [first, *(future.result() for future in waiting)]


def in_batches(
    items: Sequence[_Part], kind: Callable[[_Part], object], most: Callable[[_Part], int]
) -> list[list[_Part]]:
    """Consecutive items of one kind together, as long as their lengths add up to ``most`` of an item at most."""
    batches: list[list[_Part]] = []
    length = 0
    for item in items:
        length += len(item)
        if not batches or kind(batches[-1][0]) != kind(item) or length > most(item):
            batches.append([])
            length = len(item)
        batches[-1].append(item)
    return batches


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not live on in its children."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"hoplon-{process}")


def of_turn_by_size(items: Sequence[_Item], size: Callable[[_Item], int], turn: int, turns: int) -> list[_Item]:
    """Return the consecutive items of a turn, cut so that turns differ by one item's size at most.

    Raises:
        HoplonError: a turn out of range.
    Example:
        >>> [of_turn_by_size(["four", "a", "b", "cc"], len, turn, 2) for turn in range(2)]
        [['four'], ['a', 'b', 'cc']]
    """
    pieces_of_turn(1, turn, turns)
    begins = [0, *accumulate(map(size, items))]
    return [item for item, begin in zip(items, begins, strict=False) if begin * turns // begins[-1] == turn]
