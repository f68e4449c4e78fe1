"""Guards write to the words that are wrong and to no others: a write to read-only memory would end the process."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hoplon.formats import equal_bits, integer_view
from tests.support.guarded_memory import ROWS, Guarded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="protects pages as POSIX does")

WORDS = 2 * mmap.PAGESIZE // 4
FIRST, SECOND = 10, WORDS - 300
"""Words of the first and of the second page."""

Protect = Callable[[int, int], None]


@pytest.fixture
def pages() -> tuple[Tensor, Protect]:
    """Weights of one decade on two pages, and a function that makes so many of them read-only, out of so many."""
    tensor = torch.frombuffer(mmap.mmap(-1, 2 * mmap.PAGESIZE), dtype=torch.float32)
    tensor.copy_(0.07 + 0.05 * torch.rand(WORDS, generator=torch.Generator().manual_seed(0)))

    def protect(count: int, out_of: int) -> None:
        for page in range(out_of):
            access = mmap.PROT_READ | (0 if page < count else mmap.PROT_WRITE)
            address = ctypes.c_void_p(tensor.data_ptr() + page * mmap.PAGESIZE)
            assert ctypes.CDLL(None).mprotect(address, mmap.PAGESIZE, access) == 0

    return tensor.view(64, -1), protect


def _strike(tensor: Tensor, word: int) -> None:
    integer_view(tensor).view(-1).numpy()[word] ^= 1 << 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_not_wrong_is_not_written(row: Guarded, pages: tuple[Tensor, Protect]) -> None:
    tensor, protect = pages
    guard, before = row.protection({"w": tensor}).arm({"w": tensor}), tensor.clone()
    protect(1, 2)
    assert guard is not None
    assert guard.check().detected == 0
    _strike(tensor, SECOND)
    assert guard.check().detected == 1
    assert equal_bits(tensor, before) == (row.flip == "repaired")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_cannot_be_written_is_uncorrectable(row: Guarded, pages: tuple[Tensor, Protect]) -> None:
    """Until it can be."""
    tensor, protect = pages
    guard, before = row.protection({"w": tensor}).arm({"w": tensor}), tensor.clone()
    assert guard is not None
    _strike(tensor, FIRST)
    struck = tensor.clone()
    protect(2, 2)
    report = guard.check()
    assert (report.corrected, report.mitigated, report.where) == (0, 0, ("w",))
    assert report.uncorrectable == report.detected >= 1
    assert equal_bits(tensor, struck)
    protect(0, 2)
    assert guard.check().uncorrectable == (row.flip == "uncorrectable")
    assert equal_bits(tensor, before) == (row.flip == "repaired")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "sec-ded-memory"], ids=lambda row: row.name)
def test_a_fault_in_the_guard_is_mended_beside_memory_that_cannot_be_written(
    row: Guarded, pages: tuple[Tensor, Protect]
) -> None:
    tensor, protect = pages
    guard, before = row.protection({"w": tensor}).arm({"w": tensor}), tensor.clone()
    protect(2, 2)
    assert guard is not None
    for name, copy in guard.copies.items():
        saved = integer_view(copy).clone()
        integer_view(copy).view(-1).numpy()[1] ^= 1
        report = guard.check()
        assert equal_bits(tensor, before)
        if row.name.startswith(("tmr", "aspis", "block", "parity", "known")) and "mask" not in name:
            assert report.uncorrectable == 0, name
            assert equal_bits(integer_view(copy), saved) or "evidence" in name, name
        integer_view(copy).copy_(saved)
