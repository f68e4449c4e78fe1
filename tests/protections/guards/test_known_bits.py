"""Known bits: restored exactly, nothing claimed that is not so, and no update undone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.formats import integer_view
from hoplon.protections.guards.memory.arena import end_to_end
from hoplon.protections.memory_guard import GuardReport
from tests.support.oracles import assert_same, snapshot

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.float8_e4m3fn]


def small_values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values whose highest bits are alike, and not one of them zero."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.05
    return (values * 60).to(dtype) if dtype in (torch.int8, torch.uint8) else values.to(dtype)


def memory() -> dict[str, Tensor]:
    tied = small_values(6)
    return {
        "conv": (small_values(8, 4, 3, 3) * torch.tensor([1.0, -1.0])[:, None].expand(2, 4).reshape(8, 1, 1, 1)),
        "last": small_values(4, 3, 4, 4, seed=1).to(memory_format=torch.channels_last),
        "gaps": small_values(20, 20, seed=2)[:, ::2],
        "expanded": small_values(1, 5, seed=3).expand(7, 5),
        "a": tied,
        "b": tied,
        "bias": torch.zeros(40),
        "count": torch.tensor(7),
        "flag": torch.tensor([True, True]),
        "empty": torch.zeros(0),
    }


def bits_by_text(words: Tensor) -> tuple[int, ...]:
    """Positions at which all words agree, from their digits."""
    width = 8 * words.element_size()
    digits = [format(word % (1 << width), f"0{width}b") for word in integer_view(words).flatten().tolist()]
    return tuple(bit for bit in range(width) if len({text[width - 1 - bit] for text in digits}) == 1)


def flip(tensor: Tensor, element: int, *bits: int) -> None:
    """Flip bits of one word, in the order of the tensor's elements."""
    words = integer_view(tensor.data)
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), words.shape))
    for bit in bits:
        lowest = torch.iinfo(words.dtype).min
        words[place] ^= lowest if lowest and bit == 8 * words.element_size() - 1 else 1 << bit


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flip_of_a_known_bit_is_repaired_and_others_are_left_alone(dtype: torch.dtype) -> None:
    live = {"w": small_values(3, 5, dtype=dtype)}
    guard = hp.KnownBits().arm(live)
    wanted = snapshot(live)
    known = bits_by_text(live["w"])
    assert guard.known_bits == {"w": known}
    assert known
    for element, bit in itertools.product(range(15), range(8 * dtype.itemsize)):
        flip(live["w"], element, bit)
        report = guard.check()
        if bit in known:
            assert report == GuardReport(15, 1, 1, 0, ("w",)), (element, bit)
        else:
            assert report == GuardReport(15), (element, bit)
            flip(live["w"], element, bit)
        assert_same(live, wanted)


@pytest.mark.parametrize("block", [None, 7])
def test_storages_that_lie_end_to_end_are_told_apart(block: int | None) -> None:
    tensors = memory()
    live = dict(zip(tensors, end_to_end(list(tensors.values())), strict=True))
    guard, wanted = hp.KnownBits(block=block).arm(live), snapshot(live)
    for name, tensor in live.items():
        for element in sorted({0, tensor.numel() - 1}) if tensor.numel() else ():
            flip(tensor, element, guard.known_bits[name][-1])
            report = guard.check()
            assert (report.detected, report.corrected, report.where) == (1, 1, (name,))
            assert_same(live, wanted)


def test_known_bits_of_every_storage_once() -> None:
    live = memory()
    guard = hp.KnownBits().arm(live)
    assert list(guard.known_bits) == ["conv", "last", "gaps", "expanded", "a", "bias", "count", "flag"]
    assert guard.known_bits == {name: bits_by_text(live[name]) for name in guard.known_bits}
    assert guard.check() == GuardReport(288 + 192 + 200 + 5 + 6 + 40 + 1 + 2)
    words = {"int32": 6 * 8, "int64": 16, "uint8": 2}
    assert guard.extra_bytes == sum(words.values()) + 8 * 8 + 3 * 48
    assert 0 < guard.known_share < 0.5


@pytest.mark.parametrize("block", [None, 1, 7, 64])
def test_many_flips_of_known_bits_everywhere_are_all_repaired(block: int | None) -> None:
    live = memory()
    guard = hp.KnownBits(block=block).arm(live)
    wanted = snapshot(live)
    for name, elements in (("conv", range(0, 288, 3)), ("last", [0, 191]), ("gaps", range(150)), ("bias", [39])):
        for element in elements:  # as particles flip: behind torch's back, many in the same lanes
            flip(live[name].data, element, *guard.known_bits[name])
    detected = 96 + 2 + 150 + 1
    report = guard.check()
    assert (report.detected, report.corrected, report.mitigated, report.uncorrectable) == (detected, detected, 0, 0)
    assert report.where == ("conv", "last", "gaps", "bias")
    assert_same(live, wanted)


def test_nan_infinity_and_zero_come_back_bit_for_bit() -> None:
    weight = torch.zeros(32)
    integer_view(weight)[:] = 0x7FC12345  # every word the same NaN: all bits known
    live = {"w": weight}
    guard = hp.KnownBits().arm(live)
    wanted = snapshot(live)
    for value in (float("inf"), 0.0, -0.0, float("nan")):
        weight.data[3] = value
        assert guard.check().corrected == 1
        assert_same(live, wanted)


def test_words_with_other_wrong_bits_are_mitigated_and_never_called_corrected() -> None:
    live = {"w": small_values(100)}
    guard = hp.KnownBits().arm(live)
    wanted = snapshot(live)
    top = guard.known_bits["w"][-1]
    for unknown in range(min(set(range(32)) - set(guard.known_bits["w"])), 23):
        flip(live["w"], 7, top, unknown)
        assert guard.check() == GuardReport(100, 1, 0, 0, ("w",), 1), unknown
        flip(live["w"], 7, unknown)
        assert_same(live, wanted)
    flip(live["w"], 9, 3)  # not looked for, and remembered by the sum
    assert guard.check().detected == 0
    flip(live["w"], 7, top)
    assert guard.check().mitigated == 1
    flip(live["w"], 9, 3)
    assert_same(live, wanted)


def test_an_update_is_refused_once_it_leaves_the_known_bits_and_nothing_is_written() -> None:
    live = {"small": small_values(30, seed=4), "w": small_values(64, 32)}
    guard = hp.KnownBits().arm(live)
    live["w"].mul_(1.3)
    live["w"][0, 0] = 3.0  # a single word leaves
    live["small"].data[0] = float("nan")
    updated = snapshot(live)
    with pytest.raises(hp.protections.StaleGuardError, match=r"of 2,048 words of w; call refresh\(\)"):
        guard.check()
    assert_same(live, updated)
    guard.refresh()
    assert guard.check().detected == 0


def test_an_update_behind_torchs_back_is_refused_where_it_is_larger_than_a_burst() -> None:
    live = {"w": small_values(64, 32)}
    guard = hp.KnownBits().arm(live)
    live["w"].data.mul_(1.3)
    live["w"].data[0, 0] = 3.0
    assert live["w"]._version == 0
    with pytest.raises(hp.protections.StaleGuardError, match="words of w"):
        guard.check()


def test_a_part_that_was_written_anew_is_refused() -> None:
    live = {"w": small_values(64, 32)}
    guard = hp.KnownBits().arm(live)
    live["w"][:25] = torch.randn(25, 32, generator=torch.Generator().manual_seed(1))
    with pytest.raises(hp.protections.StaleGuardError, match="words of w"):
        guard.check()


def test_an_update_within_the_known_bits_is_left_alone() -> None:
    live = {"w": small_values(64, 32)}
    guard = hp.KnownBits().arm(live)
    integer_view(live["w"]).bitwise_xor_(0x3FF)
    updated = snapshot(live)
    assert guard.check().detected == 0
    assert_same(live, updated)


def test_every_flip_in_the_guards_own_words_is_harmless() -> None:
    live = memory()
    guard = hp.KnownBits().arm(live)
    wanted, copies = snapshot(live), snapshot(dict(guard.copies))
    for name, tensor in guard.copies.items():
        for entry, bit in itertools.product(range(len(tensor)), range(1, 8 * tensor.element_size(), 5)):
            flip(tensor, entry, bit)
            flip(live["conv"], 5, 30)
            report = guard.check()
            assert report.uncorrectable == report.mitigated == 0, (name, entry, bit)
            assert report.corrected == report.detected >= 1
            assert_same(live, wanted)
            if "evidence" not in name and (name, entry // 3) != ("int64#sums", 1):
                guard.check()
        guard.refresh()
        assert_same(dict(guard.copies), copies)


def test_two_wrong_words_of_the_guard_are_reported_and_nothing_is_written_through_them() -> None:
    live = memory()
    guard = hp.KnownBits().arm(live)
    wanted = snapshot(live)
    known = guard.copies["int32#known"]
    known[0] ^= 1 << 20
    known[7] ^= 1 << 4
    report = guard.check()
    assert report.uncorrectable == report.detected == 6
    assert report.where == ("conv", "last", "gaps", "expanded", "a", "bias")
    assert_same(live, wanted)


@pytest.mark.parametrize("hidden", ["by another word", "by the sum"])
def test_wrong_words_of_the_guard_that_cancel_in_one_sum_are_reported(hidden: str) -> None:
    live = memory()
    guard = hp.KnownBits().arm(live)
    wanted = snapshot(live)
    known, sums = guard.copies["int32#known"], guard.copies["int32#sums"]
    values = known[len(known) // 2 :]
    gone = int(values[0] & -values[0])  # a known bit that is 1 in all words of "conv"
    values[0] -= gone
    if hidden == "by the sum":
        sums[0] -= gone
    else:
        values[1] += gone
    report = guard.check()
    assert report.uncorrectable == report.detected == 6
    assert_same(live, wanted)


@pytest.mark.parametrize("block", [None, 1000])
def test_slices_are_even_and_find_together_what_one_check_finds(block: int | None) -> None:
    live = {"tiny": small_values(10), "large": small_values(600_000, seed=3), "half": small_values(9000).half()}
    guard = hp.KnownBits(block=block).arm(live)
    checked = [guard.check(turn=turn, turns=4).checked for turn in range(4)]
    assert sum(checked) == 609_010
    assert max(checked) < 0.35 * sum(checked)
    wanted = snapshot(live)
    places = [0, 65_535, 65_536, 250_000, 599_999]
    for element in places:
        flip(live["large"], element, 30)
    reports = [guard.check(turn=turn, turns=4) for turn in range(4)]
    assert sum(report.corrected for report in reports) == len(places)
    assert_same(live, wanted)


def test_several_threads_find_the_same() -> None:
    live = {f"w{number}": small_values(300_000, seed=number) for number in range(4)}
    guard = hp.KnownBits().arm(live)
    wanted = snapshot(live)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for number in range(4):
            flip(live[f"w{number}"], 299_999 - number, 30)
        assert guard.check().corrected == 4
    finally:
        torch.set_num_threads(before)
    assert_same(live, wanted)


def test_nearly_all_harm_of_single_flips_to_a_hardened_model_is_undone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(small_values(*parameter.shape))
    x = torch.ones(2, 6)
    hardened = hp.harden(hp.capture(model, x), [hp.KnownBits()])
    wanted = hardened(x)
    flip(hardened.get_parameter("0.weight"), 3, 30)
    assert torch.equal(hardened(x), wanted)
    assert hardened.monitor.report.corrected == 1


def test_blocks_know_more_bits_than_tensors() -> None:
    live = {"w": torch.randn(4096, generator=torch.Generator().manual_seed(2)).abs().sort().values}
    whole, blocks = hp.KnownBits().arm(live), hp.KnownBits(block=64).arm(live)
    assert blocks.known_share > 2 * whole.known_share
    assert (hp.KnownBits().label, hp.KnownBits(block=64).label) == ("known-bits", "known-bits/64")
    assert "block of 64 words" in hp.KnownBits(block=64).guarantee


def test_a_block_without_words_is_refused() -> None:
    with pytest.raises(
        hp.HoplonError, match="expected block of KnownBits to be an integer of at least 1 or None, got 0"
    ):
        hp.KnownBits(block=0)


@pytest.mark.parametrize("block", [None, 50])
def test_random_faults_are_restored_mitigated_or_left_as_stated_and_never_called_corrected_otherwise(
    block: int | None,
) -> None:
    live = {name: tensor for name, tensor in memory().items() if name in ("conv", "last", "gaps", "bias")}
    guard = hp.KnownBits(block=block).arm(live)
    wanted = snapshot(live)
    known = {name: set(bits) for name, bits in hp.KnownBits().arm(live).known_bits.items()}
    generator = torch.Generator().manual_seed(9)
    seen = {"corrected": 0, "mitigated": 0}
    for _ in range(600):
        name = list(live)[int(torch.randint(4, (), generator=generator))]
        count = int(torch.randint(1, 4, (), generator=generator))
        elements = torch.randint(live[name].numel(), (count,), generator=generator).tolist()
        for element in elements:
            flip(live[name].data, element, int(torch.randint(32, (), generator=generator)))
        report = guard.check()
        wrong = (integer_view(live[name]) ^ integer_view(wanted[name])).flatten().tolist()
        assert not any(word >> bit & 1 for word in wrong for bit in known[name])
        assert report.uncorrectable == 0
        assert report.detected == report.corrected + report.mitigated
        if report.corrected and block is None:
            assert not any(wrong)
        seen["corrected"] += report.corrected
        seen["mitigated"] += report.mitigated
        live[name].data.copy_(wanted[name])
    assert min(seen.values()) > 10
