from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats import integer_view
from hoplon.importance import Scores
from hoplon.protections.guards.aspis import Aspis, AspisGuard
from hoplon.protections.guards.index_sums import power_sums
from hoplon.protections.memory_guard import GuardReport
from tests.support.oracles import assert_same, snapshot


def memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    weight[0, 0] = 0.0
    integer_view(weight)[0, 1, 0, 0] = 0x7FC12345
    return {"conv": weight, "fc": torch.randn(5, 4, generator=generator), "half": torch.randn(6).half()}


def scores() -> Scores:
    """The first weights of each storage matter most."""
    values = {name: -torch.arange(t.numel(), dtype=torch.float32).reshape(t.shape) for name, t in memory().items()}
    return Scores(values)


def armed(live: dict[str, Tensor], fraction: float = 0.25) -> AspisGuard:
    return Aspis(scores(), fraction).arm(live)


def test_extra_bytes_are_twelve_per_float32_weight() -> None:
    guard = armed(memory())
    chosen = scores().top(0.25)
    counts = {name: len(indices) for name, indices in chosen.items()}
    assert sum(counts.values()) == round(0.25 * (108 + 20 + 6))
    assert counts["half"] > 0
    assert guard.extra_bytes == 12 * (counts["conv"] + counts["fc"]) + 8 * counts["half"] + 3 * 24
    assert guard.check() == GuardReport(checked=sum(counts.values()))


def test_protected_weights_are_repaired_and_others_are_not_touched() -> None:
    live = memory()
    wanted = snapshot(live)
    guard = armed(live)
    chosen = scores().top(0.25)["conv"]
    rows, columns = torch.unravel_index(chosen, live["conv"].shape)[:2]
    assert (live["conv"][0, 0] == 0).all()
    live["conv"].data[0, 0, 0, 0] = float("nan")  # a pruned zero is protected
    live["conv"].data[0, 1, 0, 0] = 1.0  # a NaN with a payload comes back
    live["conv"].data[3, 2, 2, 2] = 7.0  # the last weight is not protected
    assert (3, 2) not in set(zip(rows.tolist(), columns.tolist(), strict=True))
    report = guard.check()
    assert (report.detected, report.corrected, report.where) == (2, 2, ("conv",))
    assert live["conv"][3, 2, 2, 2] == 7.0
    live["conv"].data[3, 2, 2, 2] = wanted["conv"][3, 2, 2, 2]
    assert_same(live, wanted)


@pytest.mark.parametrize("key", ["1", "2"])
def test_corrupted_copies_are_repaired(key: str) -> None:
    live = memory()
    guard = armed(live)
    wanted, copies = snapshot(live), snapshot(guard.copies)
    for name in live:
        guard.copies[f"{name}#{key}"].bitwise_xor_(0x1555)
    report = guard.check()
    assert report.corrected == report.detected == report.checked
    assert_same(live, wanted)
    assert_same(guard.copies, copies)


def test_two_different_corruptions_of_one_weight_are_uncorrectable() -> None:
    live = memory()
    guard = armed(live)
    live["fc"].data.view(-1)[0] = 3.0
    guard.copies["fc#1"][0] = 5
    live["fc"].data.view(-1)[1] = 3.0
    report = guard.check()
    assert (report.detected, report.corrected, report.uncorrectable, report.where) == (2, 1, 1, ("fc",))
    assert live["fc"].view(-1)[0] == 3.0


def test_every_single_flip_in_the_index_is_repaired() -> None:
    live = memory()
    guard = armed(live)
    wanted, copies = snapshot(live), snapshot(guard.copies)
    index = guard.copies["fc#index"]
    for position, bit in itertools.product(range(len(index)), range(32)):
        index[position] ^= -(2**31) if bit == 31 else 1 << bit
        report = guard.check()
        assert (report.detected, report.corrected, report.where) == (1, 1, ("fc",)), (position, bit)
        assert_same(guard.copies, copies)
    assert_same(live, wanted)


def test_a_flip_in_the_sums_of_the_index_is_repaired() -> None:
    live = memory()
    guard = armed(live)
    copies = snapshot(guard.copies)
    wanted = snapshot(live)
    for entry, bit in itertools.product(range(3), range(63)):
        guard.copies["conv#sums"][entry] ^= 1 << bit
        report = guard.check()
        assert (report.detected, report.corrected) == (1, 1)
        assert_same(guard.copies, copies)
        assert_same(live, wanted)
    guard.copies["conv#sums"][0] += 1
    assert guard.check().corrected == 1
    assert_same(guard.copies, copies)


def test_two_wrong_index_entries_are_reported_and_nothing_is_written() -> None:
    live = memory()
    wanted = snapshot(live)
    guard = armed(live)
    index, good = guard.copies["conv#index"], guard.copies["conv#index"].clone()
    for first, second in itertools.combinations(range(len(index)), 2):
        for deltas in ((1, 1), (5, -5), (3, 40), (-2, 1 << 20)):
            index[first] += deltas[0]
            index[second] += deltas[1]
            report = guard.check()
            assert report.uncorrectable == len(index)
            assert (index != good).nonzero()[:, 0].tolist() == [first, second]
            index.copy_(good)
    assert_same(live, wanted)


def test_refusals_and_labels() -> None:
    with pytest.raises(
        HoplonError, match=r"expected fraction of Aspis to be a number above 0 and of at most 1, got 1\.5"
    ):
        Aspis(scores(), 1.5)
    with pytest.raises(HoplonError, match=r"expected fraction of Aspis to be .*, got 0"):
        Aspis(scores(), 0)
    with pytest.raises(HoplonError, match=r"expected a storage 'conv' of shape \(4, 3, 3, 3\), as scored, got none"):
        Aspis(scores(), 0.5).arm({"fc": torch.zeros(5, 4)})
    assert (Aspis(scores(), 0.01).label, Aspis(scores(), 0.005).label) == ("aspis-1%", "aspis-0.5%")


def large_memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    sizes = {"first": 30_000, "odd": 4_097, "small": 11, "wide": 9_000}
    live = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    return live | {"wide": live["wide"].double(), "half": torch.randn(8_193, generator=generator).half()}


def large_guard(live: dict[str, Tensor]) -> AspisGuard:
    generator = torch.Generator().manual_seed(5)
    return Aspis(Scores({name: torch.rand(t.shape, generator=generator) for name, t in live.items()}), 0.7).arm(live)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_faults_in_storages_of_many_pieces_are_all_repaired(threads: int) -> None:
    live = large_memory()
    guard = large_guard(live)
    wanted, copies = snapshot(live), snapshot(guard.copies)
    generator = torch.Generator().manual_seed(6)
    hit = 0
    for name in live:
        index = guard.copies[f"{name}#index"]
        chosen = torch.randperm(len(index), generator=generator)[:6].split(2)
        for part, words in zip(chosen, (None, guard.copies[f"{name}#1"], guard.copies[f"{name}#2"]), strict=True):
            if words is None:
                integer_view(live[name].data)[index[part]] ^= 1 << 9
            else:
                words[part] ^= 1 << 9
            hit += len(part)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report = guard.check()
    finally:
        torch.set_num_threads(before)
    assert (report.detected, report.corrected, report.uncorrectable) == (hit, hit, 0)
    assert_same(live, wanted)
    assert_same(guard.copies, copies)


def test_slices_are_even_within_large_storages_and_find_what_one_check_finds() -> None:
    live = large_memory()
    guard = large_guard(live)
    whole = guard.check().checked
    checked = [guard.check(turn=turn, turns=5).checked for turn in range(5)]
    assert sum(checked) == whole
    assert max(checked) - min(checked) <= 2 * 4096
    wanted = snapshot(live)
    for name in live:
        integer_view(live[name].data)[guard.copies[f"{name}#index"][[0, -1]].long()] ^= 1 << 3
    assert sum(guard.check(turn=turn, turns=5).corrected for turn in range(5)) == 2 * len(live)
    assert_same(live, wanted)


def test_places_out_of_range_are_reported_though_their_sums_fit() -> None:
    live = memory()
    guard = armed(live)
    wanted = snapshot(live)
    index, sums = guard.copies["fc#index"], guard.copies["fc#sums"]
    index[0] = 1 << 20
    sums.copy_(power_sums(index))
    report = guard.check()
    assert report.uncorrectable == report.detected == len(index)
    assert_same(live, wanted)
    with pytest.raises(HoplonError, match="expected an index of the protected words of fc, got a damaged one; arm"):
        guard.refresh()
