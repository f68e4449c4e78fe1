from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.comparison.costs.guard_latency import (
    CASES,
    MIN_BLOCKS,
    Armed,
    armed,
    check_ms_per_layer,
    interleaved,
    repair_ms,
    repairs_of_one_tensor,
)
from hoplon.errors import HoplonError

CPU = torch.device("cpu")


@pytest.fixture
def memory() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(50, generator=generator) for name in ("first", "second")}


def scores(memory: dict[str, Tensor], important: str) -> hp.Scores:
    return hp.Scores({name: torch.full_like(value, float(name == important)) for name, value in memory.items()})


def test_a_block_is_a_forward_pass_and_every_check_with_one_after_it() -> None:
    calls: list[str] = []
    checks = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    found = interleaved(lambda: calls.append("forward"), checks, blocks=1, device=CPU)
    assert len(found.forward) == MIN_BLOCKS == len(found.checks["a"]) == found.cost("a").blocks
    warm, block = calls[:3], calls[3:8]
    assert sorted(warm) == ["a", "b", "forward"]
    assert [block[at] for at in (0, 2, 4)] == ["forward"] * 3
    assert {block[1], block[3]} == {"a", "b"}
    assert len(calls) == 3 + 5 * MIN_BLOCKS


def test_ratios_are_taken_within_a_block() -> None:
    from hoplon.comparison.costs.guard_latency import Interleaved

    forward = (1.0, 2.0, 4.0, 1.0, 2.0, 4.0)
    cost = Interleaved(forward, {"guard": tuple((seconds / 4, seconds) for seconds in forward)}).cost("guard")
    assert cost.over_forward == (0.25, 0.25, 0.25)
    assert cost.ratio == (1.25, 1.25, 1.25)
    assert cost.check_ms == 500


@pytest.mark.parametrize("important", ["first", "second"])
def test_a_repair_is_timed_where_the_guard_holds_words(memory: dict[str, Tensor], important: str) -> None:
    protection = hp.Aspis(scores(memory, important), 0.1)
    before = {name: value.clone() for name, value in memory.items()}
    time = repair_ms(armed(protection, memory), protection, memory, list(memory))
    assert time is not None
    assert time > 0
    assert all(torch.equal(memory[name], value) for name, value in before.items())


@pytest.mark.parametrize("protection", [hp.guards.Checksum(), hp.guards.Radar()], ids=lambda one: one.label)
def test_a_guard_that_only_reports_or_loses_weights_has_no_time_of_repair(
    memory: dict[str, Tensor], protection: hp.protections.Protection
) -> None:
    before = {name: value.clone() for name, value in memory.items()}
    one = armed(protection, memory)
    assert repair_ms(one, protection, memory, list(memory)) is None
    assert all(torch.equal(memory[name], value) for name, value in before.items())
    assert one.guard.check().detected == 0


@pytest.mark.parametrize("zeros", [0, 3], ids=["no zeros", "zeros, which sparse copies leave out"])
@pytest.mark.parametrize(
    ("kind", "fraction"), [("tmr", 1.0), ("sparse", 1.0), ("sparse", 0.3), ("aspis", 1.0), ("aspis", 0.3)]
)
def test_a_copy_and_the_main_tensor_are_repaired_and_two_wrong_ones_are_not(
    kind: str, fraction: float, zeros: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    memory = {name: torch.rand(shape, generator=generator) / 2 for name, shape in (("a", (8, 2)), ("b", (8, 9)))}
    memory["b"].view(-1)[:zeros] = 0
    before = {name: value.clone() for name, value in memory.items()}
    scores = hp.Scores({name: 1 - value for name, value in memory.items()})
    protection = {
        "tmr": hp.TMR(vote="tensor"),
        "sparse": hp.guards.TMRSparse(scores, fraction),
        "aspis": hp.Aspis(scores, fraction),
    }[kind]
    found = repairs_of_one_tensor(protection, memory, list(memory))
    assert list(found) == list(CASES)
    outcomes = {case: one.outcome for case, one in found.items()}
    subtracted = "corrected" if kind != "sparse" else "uncorrectable"  # what is not finite is not brought back
    lost = outcomes.pop("main tensor, bit 30")
    assert outcomes == {"copy": "corrected", "main tensor": "corrected", "uncorrectable": "uncorrectable"}
    assert lost == subtracted or (kind == "sparse" and lost == "mitigated")
    assert all(one.ms[1] <= one.ms[0] <= one.ms[2] for one in found.values())
    assert all(torch.equal(memory[name], value) for name, value in before.items())


def test_what_holds_nothing_is_refused(memory: dict[str, Tensor]) -> None:
    protection = hp.Aspis(scores(memory, "first"), 0.1)
    with pytest.raises(HoplonError, match="expected words of aspis-10% in one of second, got none"):
        repair_ms(armed(protection, memory), protection, memory, ["second"])
    with pytest.raises(HoplonError, match="expected a protection that guards memory, got ranger"):
        armed(hp.Ranger(hp.Ranges({})), memory)


def test_layers_are_checked_alone(memory: dict[str, Tensor]) -> None:
    for protection in (hp.TMR(), hp.Aspis(scores(memory, "first"), 0.1)):
        assert check_ms_per_layer(protection, memory, list(memory)) > 0
    assert isinstance(armed(hp.TMR(), memory), Armed)
