"""Aspis over blocks: which blocks are chosen, in the order of memory, and that they are repaired."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.formats import equal_bits, integer_view


def memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "conv": torch.randn(8, 4, 3, 3, generator=generator),
        "last": torch.randn(8, 16, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "gaps": torch.randn(20, 20, generator=generator)[:, ::2],
        "half": torch.randn(50, generator=generator).half(),
        "scalar": torch.tensor(2.0),
    }


def flat_scores(live: dict[str, Tensor], best: dict[str, list[int]]) -> hp.Scores:
    """One for the elements named, nothing for the others."""
    values = {name: torch.zeros(tensor.numel()) for name, tensor in live.items()}
    for name, elements in best.items():
        values[name][elements] = 1.0
    return hp.Scores({name: values[name].view(tensor.shape) for name, tensor in live.items()})


def test_the_best_blocks_are_protected_and_no_others() -> None:
    live = memory()
    wanted = {name: tensor.clone() for name, tensor in live.items()}
    scores = flat_scores(live, {"conv": [20, 40, 41], "half": [11]})
    guard = hp.guards.BlockAspis(scores, 42 / scores.total, block=16).arm(live)
    assert guard.copies["conv#index"].tolist() == [1, 2]  # 16 words each; 50 words of "half" have blocks of ten
    assert guard.copies["half#index"].tolist() == [1]
    assert guard.check().checked == 16 + 16 + 10
    for name, element in (("conv", 16), ("conv", 47), ("half", 19)):
        integer_view(live[name].data).view(-1)[element] ^= 1 << 9
    assert guard.check().corrected == 3
    assert all(equal_bits(live[name], wanted[name]) for name in live)
    live["conv"].data.view(-1)[48] = 3.0
    assert guard.check().detected == 0


def test_blocks_follow_memory_where_strides_differ() -> None:
    live = memory()
    place = live["last"][3, 2, 1, 1]
    offset = (place.data_ptr() - live["last"].data_ptr()) // 4
    element = 3 * 64 + 2 * 4 + 3
    guard = hp.guards.BlockAspis(flat_scores(live, {"last": [element]}), 16 / 1051, block=16).arm(live)
    assert guard.copies["last#index"].tolist() == [offset // 16]


def test_all_of_memory_costs_two_copies_and_a_list_of_blocks() -> None:
    live = memory()
    guard = hp.guards.BlockAspis(flat_scores(live, {}), 1.0, block=16).arm(live)
    assert guard.protected_bytes == sum(tensor.nbytes for tensor in live.values())
    assert guard.copies["conv#1"].shape == (18, 16)
    assert guard.extra_bytes < 2 * guard.protected_bytes + 4 * (18 + 32 + 200 + 5 + 1) + 24 * 5 + 1


def test_a_wrong_entry_of_the_list_is_repaired_and_nothing_is_written_through_it() -> None:
    live = memory()
    wanted = {name: tensor.clone() for name, tensor in live.items()}
    guard = hp.guards.BlockAspis(flat_scores(live, {"conv": list(range(64))}), 64 / 1051, block=16).arm(live)
    guard.copies["conv#index"][2] ^= 1 << 3
    report = guard.check()
    assert (report.corrected, report.uncorrectable) == (1, 0)
    assert guard.copies["conv#index"].tolist() == [0, 1, 2, 3]
    assert all(equal_bits(live[name], wanted[name]) for name in live)


def test_refusals_and_label() -> None:
    scores = flat_scores(memory(), {})
    with pytest.raises(hp.HoplonError, match="expected block of BlockAspis to be an integer of at least 1, got 0"):
        hp.guards.BlockAspis(scores, 0.1, block=0)
    with pytest.raises(hp.HoplonError, match="expected scores of BlockAspis to be Scores, got 0.1"):
        hp.guards.BlockAspis(0.1, 0.1)  # type: ignore[arg-type]
    with pytest.raises(hp.HoplonError, match="expected a storage 'conv' of shape"):
        hp.guards.BlockAspis(scores, 0.1).arm({})
    assert hp.guards.BlockAspis(scores, 0.01).label == "block-aspis-1%"
    assert "in blocks of 64" in hp.guards.BlockAspis(scores, 0.01).guarantee
