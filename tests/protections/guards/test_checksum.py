"""Checksums over groups: what they find for certain, how often they miss, and what is done then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hoplon as hp
from hoplon.formats import equal_bits, integer_view
from hoplon.protections.guards.baselines import checksum
from hoplon.protections.guards.memory.arena import end_to_end
from hoplon.protections.memory_guard import GuardReport


def memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "w": torch.randn(30, 40, generator=generator) * 0.1,
        "last": torch.randn(8, 16, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "gaps": torch.randn(20, 20, generator=generator)[:, ::2],
        "int8": torch.randint(-128, 128, (300,), generator=generator, dtype=torch.int8),
        "half": torch.randn(77, generator=generator).half(),
        "double": torch.randn(70, generator=generator).double(),
        "count": torch.tensor(3),
    }


def flip(tensor: Tensor, element: int, bit: int) -> None:
    words = integer_view(tensor.data)
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), words.shape))
    words[place] ^= (
        1 << bit if bit < 8 * words.itemsize - 1 or words.dtype == torch.uint8 else torch.iinfo(words.dtype).min
    )


@pytest.mark.parametrize("by_product", [True, False])
@pytest.mark.parametrize("laid_out", [True, False])
def test_every_flip_of_a_top_byte_is_flagged_and_no_other(
    laid_out: bool, by_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_product:
        monkeypatch.setattr(checksum, "_multiplies_bytes", lambda: False)
    live = memory()
    if laid_out:
        live = dict(zip(live, end_to_end(list(live.values())), strict=True))
    guard = hp.guards.Checksum(group=64).arm(live)
    groups = {name: -(-tensor.numel() // 64) for name, tensor in live.items()}
    assert guard.check() == GuardReport(sum(groups.values()))
    assert guard.extra_bytes == 4 * sum(groups.values()) + 8 * len(live)
    for name, tensor in live.items():
        wanted = tensor.clone()
        top = 8 * tensor.itemsize
        for bit in range(max(0, top - 10), top):
            flip(tensor, tensor.numel() - 1, bit)
            report = guard.check()
            found = bit >= top - 8
            assert (report.uncorrectable, report.where) == (int(found), (name,) if found else ()), (name, bit)
            flip(tensor, tensor.numel() - 1, bit)
        assert equal_bits(tensor, wanted)


def test_a_check_that_finds_nothing_looks_at_no_storage_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    live = memory() | {"second": torch.randn(40, 30), "counts": torch.arange(3)}
    guard = hp.guards.Checksum(group=64).arm(dict(zip(live, end_to_end(list(live.values())), strict=True)))
    monkeypatch.setattr(guard, "_wrong", lambda name: pytest.fail(name))
    assert [guard.check(turn=turn, turns=2).detected for turn in range(2)] == [0, 0]
    assert not guard.check().detected


def test_two_random_flips_in_one_group_are_missed_as_often_as_stated() -> None:
    generator = torch.Generator().manual_seed(2)
    live = {"w": torch.randint(-(2**31), 2**31, (64,), generator=generator, dtype=torch.int64).to(torch.int32)}
    guard = hp.guards.Checksum(group=64).arm(live)
    missed, trials = 0, 1500
    for _ in range(trials):
        places = torch.randperm(64, generator=generator)[:2].tolist()
        bits = torch.randint(24, 32, (2,), generator=generator).tolist()
        for _ in range(2):
            for place, bit in zip(places, bits, strict=True):
                flip(live["w"], place, bit)
            missed += not guard.check().detected
    clean = trials  # every second check saw the words as they were
    assert abs((missed - clean) / trials - 1 / 16) < 0.02  # false alarm below 0.2 %


def test_a_wrong_group_is_set_to_zero_once() -> None:
    live = memory()
    wanted = live["w"].clone()
    guard = hp.guards.Checksum("zero", group=64).arm(live)
    flip(live["w"], 700, 30)
    assert guard.check() == GuardReport(41, 1, 0, 0, ("w",), 1)
    wanted.view(-1)[640:704] = 0
    assert equal_bits(live["w"], wanted)
    assert guard.check().detected == 0


@pytest.mark.parametrize("kind", ["file", "function"])
def test_a_wrong_group_is_loaded_again(kind: str, tmp_path: Path) -> None:
    live = memory()
    wanted = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in live.items()}
    save_file(wanted, tmp_path / "weights.safetensors")
    source = tmp_path / "weights.safetensors" if kind == "file" else wanted.__getitem__
    guard = hp.guards.Checksum("reload", group=64, source=source).arm(live)
    for name, element in (("w", 700), ("last", 300), ("gaps", 7), ("half", 76)):
        flip(live[name], element, 8 * live[name].itemsize - 2)
        flip(live[name], element, 0)  # comes back with its group
    report = guard.check()
    assert (report.detected, report.corrected, report.uncorrectable) == (4, 4, 0)
    assert all(equal_bits(live[name], wanted[name]) for name in live)


def test_a_source_of_other_weights_does_not_pass_for_a_repair(tmp_path: Path) -> None:
    live = memory()
    guard = hp.guards.Checksum("reload", source=lambda name: live[name] + 1).arm(live)
    flip(live["w"], 3, 30)
    assert guard.check().uncorrectable == 1
    unlike = hp.guards.Checksum("reload", source=lambda _: torch.zeros(2)).arm(live)
    missing = hp.guards.Checksum("reload", source=tmp_path / "none.safetensors").arm(live)
    flip(live["w"], 3, 29)
    with pytest.raises(hp.errors.DataError, match=r"to load again, got torch.float32 and \(2,\)"):
        unlike.check()
    with pytest.raises(hp.errors.DataError, match="save the weights there"):
        missing.check()


def test_a_wrong_sum_is_repaired_by_the_other() -> None:
    live = memory()
    wanted = live["w"].clone()
    guard = hp.guards.Checksum("zero", group=64).arm(live)
    for key in ("sums1", "sums2"):
        guard.copies[f"w#{key}"][4] += 9
        assert guard.check() == GuardReport(41, 1, 1, 0, ("w",))
        assert torch.equal(guard.copies["w#sums1"], guard.copies["w#sums2"])
    assert equal_bits(live["w"], wanted)


def test_slices_find_together_what_one_check_finds() -> None:
    live = {"w": torch.randn(400_000), "small": torch.randn(9)}
    guard = hp.guards.Checksum().arm(live)
    assert sum(guard.check(turn=turn, turns=3).checked for turn in range(3)) == 783
    flip(live["w"], 399_999, 30)
    assert [guard.check(turn=turn, turns=3).detected for turn in range(3)] == [0, 0, 1]


def test_refusals() -> None:
    with pytest.raises(
        hp.HoplonError, match="expected action of Checksum to be 'flag' or 'zero' or 'reload', got 'fix'"
    ):
        hp.guards.Checksum("fix")  # type: ignore[arg-type]
    with pytest.raises(hp.HoplonError, match="expected a source of weights with action 'reload' and no other"):
        hp.guards.Checksum("reload")
    with pytest.raises(hp.HoplonError, match="expected group of Checksum to be an integer of at least 1, got 0"):
        hp.guards.Checksum(group=0)
    assert hp.guards.Checksum("zero").label == "checksum-zero"
    assert "sets them to 0" in hp.guards.Checksum("zero").guarantee
