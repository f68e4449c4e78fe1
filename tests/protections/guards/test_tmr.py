from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats import integer_view
from hoplon.protections.guards.memory.arena import end_to_end
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.memory_guard import GuardReport
from tests.support.oracles import assert_same, snapshot

GENERATOR_SEED = 5
Vote = Literal["element", "tensor"]


def memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    weight[0] = 0.0
    weight[1, 0, 0, 0] = -0.0
    integer_view(weight)[1, 1, 1, 1] = 0x7FC12345  # a NaN with a payload
    tied = torch.randn(6, generator=generator)
    return {
        "weight": weight,
        "last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "a": tied,
        "b": tied,
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0),
    }


def corrupt(tensor: Tensor, generator: torch.Generator) -> int:
    """Change about half of the elements to other words, NaN patterns and zeros among them; how many."""
    words = integer_view(tensor.data)
    hit = torch.rand(words.shape, generator=generator) < 0.5
    info = torch.iinfo(words.dtype)
    noise = torch.randint(info.min, info.max, words.shape, generator=generator, dtype=torch.int64).to(words.dtype)
    noise[noise == 0] = 1
    before = words.clone()
    words.copy_(torch.where(hit, words ^ noise, words))
    return int((words != before).sum())


def test_names_of_one_storage_are_guarded_once_and_bytes_are_exact() -> None:
    live = memory()
    guard = TMR().arm(live)
    once = 4 * (4 * 27 + 2 * 48 + 6) + 2 * 5 + 8 + 2
    assert guard.extra_bytes == 2 * once
    assert sum(copy.nbytes for copy in guard.copies.values()) == guard.extra_bytes
    assert "b#1" not in guard.copies
    assert guard.check() == GuardReport(checked=4 * 27 + 2 * 48 + 6 + 5 + 1 + 2)


@pytest.mark.parametrize("which", ["live", "#1", "#2"])
def test_any_corruption_of_one_copy_is_repaired_bit_for_bit(which: str) -> None:
    live = memory()
    guard = TMR().arm(live)
    wanted, copies = snapshot(live), snapshot(guard.copies)
    generator = torch.Generator().manual_seed(1)
    targets = (
        {name: live[name] for name in live if name not in ("b", "empty", "flag")}
        if which == "live"
        else {name: copy for name, copy in guard.copies.items() if name.endswith(which) and "flag" not in name}
    )
    changed = sum(corrupt(tensor, generator) for tensor in targets.values())
    assert changed > 50
    report = guard.check()
    assert (report.detected, report.corrected, report.uncorrectable) == (changed, changed, 0)
    assert_same(live, wanted)
    assert_same(guard.copies, copies)
    assert guard.check().detected == 0


def test_copies_hit_in_different_elements_are_all_repaired() -> None:
    live = memory()
    guard = TMR().arm(live)
    wanted, copies = snapshot(live), snapshot(guard.copies)
    live["weight"].data.view(-1)[0] = 3.0
    guard.copies["weight#1"].view(-1)[1] = float("nan")
    guard.copies["weight#2"].view(-1)[2] = float("inf")
    assert guard.check() == GuardReport(218, 3, 3, 0, ("weight",))
    assert_same(live, wanted)
    assert_same(guard.copies, copies)


def test_three_different_words_are_uncorrectable_and_left_alone() -> None:
    live = memory()
    guard = TMR().arm(live)
    live["weight"].data.view(-1)[0] = 3.0
    live["weight"].data.view(-1)[1] = 3.0
    guard.copies["weight#1"].view(-1)[0] = -0.0  # the right value is +0.0: another word
    report = guard.check()
    assert report == GuardReport(218, 2, 1, 1, ("weight",))
    assert live["weight"].view(-1)[:2].tolist() == [3.0, 0.0]
    assert guard.copies["weight#1"].view(-1)[0].signbit()


def test_the_papers_vote_calls_two_faults_in_one_tensor_uncorrectable() -> None:
    live = memory()
    guard = TMR(vote="tensor").arm(live)
    wanted = snapshot(live)
    live["weight"].data.view(-1)[0] = 3.0
    assert guard.check() == GuardReport(218, 1, 1, 0, ("weight",))
    assert_same(live, wanted)
    for key in ("#1", "#2"):
        guard.copies[f"weight{key}"].view(-1)[4] = 9.0
        assert guard.check() == GuardReport(218, 1, 1, 0, ("weight",))
        assert_same(live, wanted)
    live["weight"].data.view(-1)[0] = 3.0
    guard.copies["weight#1"].view(-1)[1] = 9.0
    assert guard.check() == GuardReport(218, 2, 0, 2, ("weight",))
    assert live["weight"].view(-1)[0] == 3.0


def test_it_works_inside_inference_mode_and_out() -> None:
    with torch.inference_mode():
        guard = TMR().arm(memory())
        assert guard.check().detected == 0
    guard.copies["a#1"][0] = 5.0
    assert guard.check().corrected == 1


def test_unknown_votes_are_refused_and_labels_differ() -> None:
    with pytest.raises(HoplonError, match="expected vote of TMR to be 'element' or 'tensor', got 'word'"):
        TMR(vote="word")  # type: ignore[arg-type]
    assert (TMR().label, TMR(vote="tensor").label) == ("tmr", "tmr-tensor")


@pytest.mark.parametrize("vote", ["element", "tensor"])
def test_slices_are_even_within_large_storages_and_find_what_a_whole_check_finds(
    vote: Literal["element", "tensor"],
) -> None:
    live = {"large": torch.randn(300_001), "small": torch.randn(7), "gaps": torch.randn(50, 4)[:, ::2]}
    guard = TMR(vote=vote).arm(live)
    wanted = snapshot(live)
    checked = [guard.check(turn=turn, turns=3).checked for turn in range(3)]
    assert sum(checked) == 300_001 + 7 + 100
    assert max(checked) - min(checked) <= 2 * 65_536
    for element in (0, 65_535, 65_536, 300_000):
        live["large"].data[element] = 5.0
    live["gaps"].data[49, 1] = 5.0
    assert sum(guard.check(turn=turn, turns=3).corrected for turn in range(3)) == 5
    assert_same(live, wanted)


@pytest.mark.parametrize("vote", ["element", "tensor"])
def test_words_that_an_expanded_tensor_repeats_are_repaired_once(vote: Vote) -> None:
    row = torch.randn(8, generator=torch.Generator().manual_seed(GENERATOR_SEED))
    gaps = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))[:, ::2]
    columns = row.clone()[:, None]
    given = {"rows": row.expand(4, 8), "columns": columns.expand(8, 5), "gaps": gaps[:, :, None].expand(4, 3, 2)}
    guard = TMR(vote).arm(given)
    assert guard.protected_bytes == (8 + 8 + 12) * 4
    wanted = snapshot(given)
    integer_view(row.data)[3] ^= 1 << 30
    assert guard.check() == GuardReport(28, 1, 1, 0, ("rows",))
    integer_view(given["columns"].data.select(1, 0))[7] ^= -(2**31)
    integer_view(gaps.data)[3, 2] ^= 1
    assert guard.check() == GuardReport(28, 2, 2, 0, ("columns", "gaps"))
    assert_same(given, wanted)


@pytest.mark.parametrize("turns", [1, 3])
def test_storages_that_lie_end_to_end_are_told_apart(turns: int) -> None:
    tensors = {name: tensor for name, tensor in memory().items() if tensor.numel()}
    laid_out = dict(zip(tensors, end_to_end(list(tensors.values())), strict=True))
    live = {name: laid_out[name] for name in reversed(laid_out)}  # one order in memory, another one of the names
    guard, wanted = TMR().arm(live), snapshot(live)
    count = sum(map(Tensor.numel, live.values()))
    for name, tensor in live.items():
        for place in (tensor, guard.copies[f"{name}#1"], guard.copies[f"{name}#2"]):
            words = integer_view(place.data).as_strided((place.numel(),), (1,))
            for element in sorted({0, len(words) - 1}):
                words[element] ^= 1
                reports = [guard.check(turn=turn, turns=turns) for turn in range(turns)]
                assert sum(reports, GuardReport()) == GuardReport(count, 1, 1, 0, (name,))
                assert_same(live, wanted)
    runs, _ = guard._runs[0, turns]
    assert len(runs) < len(live)
