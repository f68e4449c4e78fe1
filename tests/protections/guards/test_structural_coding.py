"""Structural coding against a slow field and a saved copy: every choice of erasures, and what lies beyond."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.protections.guards.baselines.cauchy import combined, factors
from hoplon.protections.guards.baselines.structural_coding import StructuralCodingGuard
from hoplon.protections.memory_guard import GuardReport
from tests.support.guarded_memory import bytes_of, flip, same


def layers(kernels: int = 300) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {"conv": torch.randn(kernels, 3, 3, 3, generator=generator), "bias": torch.randn(40, generator=generator)}
    return found | {"count": torch.tensor(3)}


def armed(memory: dict[str, Tensor], **how: int) -> StructuralCodingGuard:
    return hp.guards.StructuralCoding(**how).arm(memory)


def garble(tensor: Tensor, rows: Sequence[int], seed: int = 0) -> None:
    """Change every byte of these rows."""
    data = bytes_of(tensor).reshape(len(tensor), -1)
    data[list(rows)] ^= np.random.default_rng(seed).integers(1, 256, (len(rows), data.shape[1]), dtype=np.uint8)


def product(one: int, other: int) -> int:
    """Of two polynomials, bit by bit, modulo the field's."""
    found = 0
    for bit in range(16):
        found ^= (one << bit) * (other >> bit & 1)
    for bit in range(30, 15, -1):
        found ^= (0x1100B << bit - 16) * (found >> bit & 1)
    return found


def test_sums_are_those_of_a_slow_field() -> None:
    rng = np.random.default_rng(1)
    symbols, by = (rng.integers(0, 1 << 16, shape, dtype=np.uint16) for shape in ((5, 7), (5, 3)))
    symbols[0], by[1] = 0, 0
    found = combined(symbols, by)
    for sums, column in zip(found, by.T, strict=True):
        for place, value in enumerate(sums):
            wanted = 0
            for symbol, factor in zip(symbols[:, place], column, strict=True):
                wanted ^= product(int(symbol), int(factor))
            assert value == wanted
    assert (factors(9, 4)[:, 0] == 1).all()


def test_every_choice_of_erasures_is_corrected_bit_for_bit() -> None:
    """Three redundant kernels: of six kernels and these, whichever three or fewer are wrong."""
    memory = {"w": torch.randn(6, 5, generator=torch.Generator().manual_seed(2))}
    guard, wanted = armed(memory, kernels=6, redundant=3), memory["w"].clone()
    held = guard.copies["w#redundant"]
    saved = held.clone()
    for count in (1, 2, 3):
        for wrong in itertools.combinations(range(9), count):
            garble(memory["w"], [row for row in wrong if row < 6])
            garble(held, [row - 6 for row in wrong if row >= 6])
            assert guard.check() == GuardReport(9, count, count, 0, ("w",)), wrong
            assert same({"w": wanted, "held": saved}, {"w": memory["w"], "held": held})
    garble(memory["w"], [0, 1, 2, 3])
    struck = memory["w"].clone()
    assert guard.check() == GuardReport(9, 4, 0, 4, ("w",))
    assert same(memory, {"w": struck})


def test_as_many_kernels_as_there_are_redundant_ones_come_back_and_one_more_is_reported() -> None:
    memory = layers()
    guard, wanted = armed(memory), {name: tensor.clone() for name, tensor in memory.items()}
    total = 256 + 32 + 44 + 32 + 3 + 3 + 1 + 1  # blocks of the convolution, lines of the bias, one of the count
    assert guard.check() == GuardReport(total)
    first, rest = range(0, 256, 8), range(256, 288)
    garble(memory["conv"], [*first, *rest], seed=3)
    bytes_of(memory["bias"])[:] ^= 0xFF
    memory["conv"].data[5, 0] = float("nan")  # a 33rd of the first block
    assert guard.check() == GuardReport(total, 33 + 32 + 3, 32 + 3, 33, ("conv", "bias"))
    assert [
        number for number in range(300) if not torch.equal(memory["conv"][number], wanted["conv"][number])
    ] == sorted([*first, 5])
    memory["conv"].data[5, 0] = wanted["conv"][5, 0]
    assert guard.check() == GuardReport(total, 32, 32, 0, ("conv",))
    assert same(memory, wanted)


def test_what_no_sum_locates_is_reported_and_what_crosses_kernels_is_repaired() -> None:
    memory = layers()
    memory["conv"].data[7, 0, 0, 0], memory["conv"].data[7, 0, 0, 2] = 1.0, 0.01  # bit 30: 0 in both
    memory["conv"].data[7, 0, 0, 2] = 2.0  # 1 in the second
    guard, wanted = armed(memory), memory["conv"].clone()
    for word in (0, 2):
        flip(memory["conv"], 32 * (7 * 27 + word) + 30)
    assert guard.check() == GuardReport(372, 1, 0, 1, ("conv",))
    guard.copies["conv#redundant"][0, 5] ^= 1  # the first redundant kernel is wrong as well: the others tell
    assert guard.check() == GuardReport(372, 2, 0, 2, ("conv",))
    for word in (0, 2):
        flip(memory["conv"], 32 * (7 * 27 + word) + 30)
    assert guard.check() == GuardReport(372, 1, 1, 0, ("conv",))
    for kernel in (7, 8):  # one column: their plain sum stays
        flip(memory["conv"], 32 * (kernel * 27 + 1) + 30)
    assert guard.check() == GuardReport(372, 2, 2, 0, ("conv",))
    assert same(memory, {"conv": wanted})


@pytest.mark.parametrize("name", ["conv#redundant", "conv#sums"])
def test_the_guard_mends_what_it_holds(name: str) -> None:
    memory = layers()
    guard, wanted = armed(memory), {name: tensor.clone() for name, tensor in layers().items()}
    saved = {key: copy.clone() for key, copy in guard.copies.items()}
    for place in (0, 777):
        flip(guard.copies[name], place)
    report = guard.check()
    assert report.detected == report.corrected > 0
    assert same(guard.copies, saved)
    assert same(memory, wanted)


def test_memory_is_one_eighth_of_a_full_block_and_sums() -> None:
    guard = armed({"w": torch.zeros(256, 64, 3, 3)})
    assert guard.extra_bytes == 32 * 64 * 9 * 4 + 2 * 8 * (256 + 32)
    assert armed({"w": torch.zeros(16, 64)}).extra_bytes == 16 * 64 * 4 + 2 * 8 * 32  # no more than there are


def test_slices_find_what_a_whole_check_finds() -> None:
    memory = layers()
    guard = armed(memory)
    garble(memory["conv"], [3, 299])
    reports = [guard.check(turn=turn, turns=4) for turn in range(4)]
    assert sum(report.checked for report in reports) == 372
    assert sum(report.corrected for report in reports) == 2


def test_codes_that_the_field_is_too_small_for_are_refused() -> None:
    with pytest.raises(hp.HoplonError, match="expected at most 65,535 kernels in a code, got 65,000 and 536 redundant"):
        hp.guards.StructuralCoding(65_000, 536)
    assert "up to 32 kernels of a block of up to 256" in hp.guards.StructuralCoding().guarantee
