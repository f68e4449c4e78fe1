"""One table of all guards: what each promises after ``check()`` for flips, bursts and updates of any memory.

Registered guards without a row, such as those of other packages, have to find the flip, whatever they make of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.cli.options.components import guard_components
from hoplon.formats import integer_view
from hoplon.protections.memory_guard import GuardReport
from tests.support.guarded_memory import GUARDS, OF_ROWS, Guarded, Promise, same

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def values(dtype: torch.dtype, *shape: int) -> Tensor:
    """Values of one decade, so that the two highest bits below the sign are known: 0.07 to 0.12, or 16 to 31."""
    unit = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))
    return (16 + 15 * unit).to(dtype) if dtype == torch.int8 else (0.07 + 0.05 * unit).to(dtype)


def plain(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"w": values(dtype, 24, 40), "bias": values(dtype, 40)}


def tied(dtype: torch.dtype) -> dict[str, Tensor]:
    shared = values(dtype, 24, 40)
    return {"w": shared, "tied": shared}


def strided(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"w": values(dtype, 24, 80)[:, ::2], "bias": values(dtype, 40)}


def channels_last(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"w": values(dtype, 8, 8, 5, 3).to(memory_format=torch.channels_last)}


def beside_empty(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"none": torch.zeros(0, 3, dtype=dtype), **plain(dtype)}


LAYOUTS = (plain, tied, strided, channels_last, beside_empty)


def strike(tensor: Tensor, words: int, mask: int) -> None:
    """Invert bits of the highest byte of neighbouring words in memory, from the tenth on, unseen by torch."""
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    live = integer_view(tensor).permute(order).numpy()
    live[np.unravel_index(range(10, 10 + words), live.shape)] ^= live.dtype.type(mask << 8 * (live.itemsize - 1))


def checked(guard: hp.protections.Guard, turns: int) -> GuardReport:
    return sum((guard.check(turn=turn, turns=turns) for turn in range(turns)), GuardReport())


def promised(row: Guarded, fault: str, dtype: torch.dtype) -> Promise | None:
    if row.name == "tmr-sparse" and dtype == torch.int8:
        return "repaired"  # integers are subtracted without rounding
    return row.flip if fault == "flip" else row.burst


Layout = Callable[[torch.dtype], dict[str, Tensor]]
FAULTS = {"flip": (1, 0x40), "burst": (8, 0x60)}  # words, and bits of their highest byte
CASES = [
    pytest.param(row, layout, dtype, id=f"{row.name}-{layout.__name__}-{str(dtype).removeprefix('torch.')}")
    for row in GUARDS
    for layout in LAYOUTS
    for dtype in DTYPES
]
FAULT_CASES = [
    pytest.param(*case.values, fault, id=f"{case.id}-{fault}")
    for case in CASES
    for fault in FAULTS
    if promised(case.values[0], fault, case.values[2])
]


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize(("row", "layout", "dtype", "fault"), FAULT_CASES)
def test_a_fault_ends_as_promised(row: Guarded, layout: Layout, dtype: torch.dtype, fault: str, turns: int) -> None:
    promise = promised(row, fault, dtype)
    assert promise is not None
    memory = layout(dtype)
    wanted = {name: tensor.clone() for name, tensor in memory.items()}
    guard = row.protection(memory).arm(memory)
    assert guard is not None
    assert checked(guard, turns).detected == 0
    strike(memory["w"], *FAULTS[fault])
    assert not same(memory, wanted)
    report = checked(guard, turns)
    assert report.detected > 0
    assert report.where == ("w",)
    parts = {"repaired": report.corrected, "mitigated": report.mitigated, "uncorrectable": report.uncorrectable}
    by_chance = promise == "reported" and bool(report.mitigated)  # a mitigated word may be what it was
    if promise == "reported":
        promise = next(part for part, count in parts.items() if count)
    assert parts == {**dict.fromkeys(parts, 0), promise: report.detected}
    assert by_chance or same(memory, wanted) == (promise == "repaired")
    if promise != "mitigated":
        assert checked(guard, turns).detected == (report.detected if promise == "uncorrectable" else 0)


@pytest.mark.parametrize(("row", "layout", "dtype"), CASES)
def test_an_optimizer_step_is_refused_left_and_taken_for_correct_by_refresh(
    row: Guarded, layout: Layout, dtype: torch.dtype
) -> None:
    memory = layout(dtype)
    guard = row.protection(memory).arm(memory)
    assert guard is not None
    memory["w"].mul_(-2)
    updated = {name: tensor.clone() for name, tensor in memory.items()}
    with pytest.raises(hp.protections.StaleGuardError, match="words of w; call refresh"):
        guard.check()
    assert same(memory, updated)
    guard.refresh()
    assert guard.check().detected == 0
    assert same(memory, updated)
    if promised(row, "flip", dtype) == "repaired":
        strike(memory["w"], *FAULTS["flip"])
        guard.check()
        assert same(memory, updated) == (row.name != "checksum-reload")  # which still has the old weights


def test_every_guard_of_the_face_is_registered() -> None:
    faces = {face for name in hp.guards.__all__ if isinstance(face := getattr(hp.guards, name), type)}
    assert faces <= {guard.defined for guard in guard_components().values()}
    assert faces <= OF_ROWS
