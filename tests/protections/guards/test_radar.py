"""RADAR's signatures against a loop over words: what they find for certain, what they lose, and what they miss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.formats import equal_bits, integer_view
from hoplon.protections.guards.baselines.radar import RadarGuard
from hoplon.protections.memory_guard import GuardReport
from tests.support.guarded_memory import flip, same

KEY = "1110110101111011"  # from its lowest bit


def memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "w": torch.randn(30, 41, generator=generator) * 0.1,
        "int8": torch.randint(-128, 128, (300,), generator=generator, dtype=torch.int8),
        "half": torch.randn(77, generator=generator).half(),
    }


def armed(live: dict[str, Tensor], bits: int = 2, group: int = 64) -> RadarGuard:
    return hp.guards.Radar(group, bits).arm(live)  # type: ignore[arg-type]


def signatures(tensor: Tensor, group: int, bits: int) -> list[int]:
    """By a loop over words, from strings of their bits."""
    width, words = 8 * tensor.itemsize, integer_view(tensor).flatten().tolist()
    groups = -(-len(words) // group)
    sums = [0] * groups
    for number, word in enumerate(words):
        text = format(word % (1 << width), f"0{width}b")
        value = int(text[1:9] if width > 8 else text, 2)
        sign = 1 if KEY[number // groups % 16] == "1" else -1
        sums[number % groups] += sign * (value - 256 * (value > 127))
    return [total // (1 << 9 - bits) % (1 << bits) for total in sums]


@pytest.mark.parametrize("bits", [2, 3])
def test_signatures_are_those_of_a_loop(bits: int) -> None:
    live = memory()
    guard = armed(live, bits)
    for name, tensor in live.items():
        row = "".join(format(byte, "08b") for byte in guard.copies[f"{name}#signatures"].tolist())
        wanted = signatures(tensor, 64, bits)
        assert [int(row[bits * at : bits * (at + 1)][::-1], 2) for at in range(len(wanted))] == wanted
        assert guard.copies[f"{name}#signatures"].nbytes == -(-bits * len(wanted) // 8)


@pytest.mark.parametrize(("bits", "certain"), [(2, (30,)), (3, (30, 29))])
def test_a_flip_of_a_high_bit_is_always_found_and_its_group_becomes_zero(bits: int, certain: tuple[int, ...]) -> None:
    live = memory()
    wanted, groups = live["w"].clone(), -(-live["w"].numel() // 64)
    found = dict.fromkeys((31, 30, 29, 22), 0)
    for bit in found:
        for word in range(0, 1230, 41):
            guard = armed(live, bits)
            flip(live["w"], 32 * word + bit)
            report = guard.check()
            found[bit] += report.detected
            if report.detected:
                assert report == GuardReport(20 + 5 + 2, 1, 0, 0, ("w",), 1)
                zero = torch.arange(1230) % groups == word % groups
                assert equal_bits(live["w"].view(-1), wanted.view(-1).masked_fill(zero, 0))
                assert guard.check().detected == 0
            live["w"].copy_(wanted)
    assert all(found[bit] == 30 for bit in certain)
    assert 0 < found[29] <= 30
    assert found[31] == found[22] == 0
    assert found[29] < 30 or bits == 3


def test_flips_that_cancel_are_missed() -> None:
    live = {"w": torch.full((32,), 0.1)}
    live["w"][1] = 3.0
    guard = armed(live)
    for word in (0, 1):  # bit 30 rises in one and falls in the other; the key has both positive
        flip(live["w"], 32 * word + 30)
    assert KEY[:2] == "11"
    assert guard.check().detected == 0


def test_a_flip_in_a_signature_sets_a_right_group_to_zero() -> None:
    live = memory()
    guard = armed(live)
    flip(guard.copies["int8#signatures"], 7)
    assert guard.check().mitigated == 1
    assert int((live["int8"][::5] != 0).sum()) == 0
    assert same({"w": live["w"]}, {"w": memory()["w"]})


def test_larger_groups_than_a_sum_holds_are_refused_and_the_loss_is_told() -> None:
    with pytest.raises(hp.HoplonError, match="expected groups of at most 65,536 words, got 65,537"):
        hp.guards.Radar(65_537)
    assert "right weights are lost with the wrong one" in hp.guards.Radar().guarantee
