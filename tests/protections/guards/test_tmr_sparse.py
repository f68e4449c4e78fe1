"""The paper's sparse construction: what it repairs, and each of its known failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.protections.guards.baselines.tmr_sparse import TMRSparseGuard
from hoplon.protections.memory_guard import GuardReport


def armed() -> tuple[dict[str, Tensor], TMRSparseGuard]:
    generator = torch.Generator().manual_seed(1)
    live = {"conv": torch.randn(6, 4, 3, 3, generator=generator), "half": torch.randn(8, 3, generator=generator).half()}
    live["conv"][0, 0] = 0.0
    scores = hp.Scores({name: torch.rand(tensor.shape, generator=generator) for name, tensor in live.items()})
    return live, hp.guards.TMRSparse(scores).arm(live)


def test_a_float32_weight_of_four_axes_takes_108_bytes() -> None:
    _, guard = armed()
    assert guard.extra_bytes == 108 * (6 * 4 * 9 - 9) + 3 * (2 * 8 + 2) * 24
    assert guard.check() == GuardReport(6 * 4 * 9 - 9 + 24)


def test_a_fault_that_subtraction_undoes_is_corrected() -> None:
    live, guard = armed()
    before = live["conv"].clone()
    live["conv"].data[3, 2, 1, 1] *= 1.5
    assert guard.check() == GuardReport(231, 1, 1, 0, ("conv",))
    assert torch.equal(live["conv"], before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_subtraction_leaves_nan_where_nan_or_infinity_was(value: float) -> None:
    live, guard = armed()
    live["conv"].data[3, 2, 1, 1] = value
    assert guard.check() == GuardReport(231, 1, 0, 1, ("conv",))
    assert live["conv"][3, 2, 1, 1].isnan()


def test_subtraction_loses_a_weight_that_became_huge() -> None:
    live, guard = armed()
    live["conv"].data[3, 2, 1, 1] = 1e30
    assert guard.check() == GuardReport(231, 1, 0, 0, ("conv",), 1)
    assert live["conv"][3, 2, 1, 1] == 0.0


def test_a_pruned_weight_is_not_protected() -> None:
    live, guard = armed()
    live["conv"].data[0, 0, 1, 1] = 1e30
    assert guard.check().detected == 0


@pytest.mark.parametrize("key", ["1", "2"])
@pytest.mark.parametrize("part", ["values", "indices"])
def test_a_wrong_copy_is_repaired(key: str, part: str) -> None:
    _, guard = armed()
    before = {name: tensor.clone() for name, tensor in guard.copies.items()}
    guard.copies[f"conv#{key}.{part}"].view(-1)[5] += 1
    assert guard.check() == GuardReport(231, 1, 1, 0, ("conv",))
    assert all(torch.equal(guard.copies[name], tensor) for name, tensor in before.items())


def test_faults_in_two_tensors_are_uncorrectable_even_in_different_weights() -> None:
    live, guard = armed()
    live["conv"].data[3, 2, 1, 1] = 7.0
    guard.copies["conv#1.values"][3] = 7.0
    assert guard.check().uncorrectable == 2


def test_a_wrong_place_in_the_mask_makes_it_write_to_a_right_weight() -> None:
    live, guard = armed()
    before = live["conv"].clone()
    guard.copies["conv#mask.indices"][3, 7] ^= 1
    assert guard.check().uncorrectable == 0
    assert not torch.equal(live["conv"], before)


def test_a_place_outside_is_reported_and_not_read() -> None:
    _, guard = armed()
    guard.copies["conv#mask.indices"][0, 7] = 1 << 40
    assert guard.check() == GuardReport(231, 1, 0, 1, ("conv",))


def test_slices_part_the_storages() -> None:
    _, guard = armed()
    assert sorted(guard.check(turn=turn, turns=2).checked for turn in range(2)) == [24, 207]


def test_its_failures_are_told() -> None:
    scores = hp.Scores({"w": torch.ones(10)})
    for failure in ("zero are unprotected", "leaves NaN", "unguarded mask"):
        assert failure in hp.guards.TMRSparse(scores).guarantee
    assert (hp.guards.TMRSparse(scores).label, hp.guards.TMRSparse(scores, 0.1).label) == (
        "tmr-sparse",
        "tmr-sparse-10%",
    )
    with pytest.raises(hp.HoplonError, match="expected scores of TMRSparse to be Scores, got 3"):
        hp.guards.TMRSparse(3)  # type: ignore[arg-type]
