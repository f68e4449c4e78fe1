from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hoplon.comparison.costs.latency import measure, median_interval
from hoplon.errors import HoplonError


class Clock:
    """A clock that only the arms move: each call costs what its arm says, times a drift that grows."""

    def __init__(self) -> None:
        self.now = 0.0
        self.drift = 1.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def arm(self, name: str, cost: float) -> Callable[[Tensor], object]:
        def call(x: Tensor) -> None:
            assert torch.is_inference_mode_enabled()
            self.calls.append(name)
            self.now += cost * self.drift
            self.drift *= 1.0001

        return call


def test_ratios_survive_a_drifting_clock() -> None:
    clock = Clock()
    arms = {"plain": clock.arm("plain", 0.002), "slow": clock.arm("slow", 0.003)}
    found = measure(arms, torch.zeros(4, 2), baseline="plain", blocks=40, calls=3, clock=clock)
    assert len(clock.calls) == 2 + 40 * 2 * 3
    assert found["plain"].ratio == found["plain"].low == found["plain"].high == 1.0
    assert found["slow"].ratio == pytest.approx(1.5, abs=0.002)
    assert found["slow"].low <= found["slow"].ratio <= found["slow"].high
    assert found["plain"].median_ms == pytest.approx(2.0, rel=0.05)
    assert (found.batch_shape, found.calls, found["slow"].blocks) == ((4, 2), 3, 40)
    assert found.threads == torch.get_num_threads()


def test_the_same_blocks_are_compared_to_another_arm() -> None:
    clock = Clock()
    arms = {name: clock.arm(name, cost) for name, cost in (("plain", 0.002), ("slow", 0.003), ("slower", 0.006))}
    found = measure(arms, torch.zeros(4, 2), baseline="plain", blocks=12, calls=1, clock=clock)
    again = found.versus("slow")
    assert (found.baseline, again.baseline, again["slow"].ratio) == ("plain", "slow", 1.0)
    assert again["slower"].ratio == pytest.approx(2.0, abs=0.002)
    assert again["slower"].median_ms == found["slower"].median_ms
    assert again.versus("plain") == found
    assert {len(seconds) for seconds in found.times.values()} == {12}
    with pytest.raises(HoplonError, match="expected one of plain, slow, slower, got 'slowest'"):
        found.versus("slowest")


def test_the_order_is_shuffled_and_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        clock = Clock()
        arms = {name: clock.arm(name, 1.0) for name in "abc"}
        measure(arms, torch.zeros(1), baseline="a", blocks=10, calls=1, seed=seed, clock=clock)
        return clock.calls[3:]

    assert order(0) == order(0)
    assert order(0) != order(1)
    blocks = [tuple(order(0)[at : at + 3]) for at in range(0, 30, 3)]
    assert all(sorted(block) == ["a", "b", "c"] for block in blocks)
    assert len(set(blocks)) > 1


def halves(count: int) -> Iterator[int]:
    """How many of ``count`` fair coins show heads, over all outcomes."""
    return (outcome.bit_count() for outcome in range(2**count))


@pytest.mark.parametrize("count", [6, 9, 12, 15])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_median_is_the_shortest_that_keeps_its_promise(count: int, confidence: float) -> None:
    low, high = median_interval([float(value) for value in range(count)], confidence=confidence)
    rank = int(low)
    assert high == count - 1 - rank

    def misses(rank: int) -> float:
        below = sum(heads <= rank or heads >= count - rank for heads in halves(count))
        return below / 2**count

    assert misses(rank) <= 1 - confidence < misses(rank + 1)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_ranks_of_a_median_are_those_of_fair_coins(confidence: float) -> None:
    for count in range(5, 201):
        below, rank = 1, -1  # in 2**count outcomes; at most so many values lie on one side
        while 2 * below <= (1 - confidence) * 2**count:
            rank += 1
            below += math.comb(count, rank + 1)
        values = [float(value) for value in range(count, 0, -1)]
        if rank < 0:
            with pytest.raises(HoplonError, match=f"expected more values for .*, got {count}"):
                median_interval(values, confidence=confidence)
        else:
            assert median_interval(values, confidence=confidence) == (rank + 1, count - rank)


def test_refusals() -> None:
    arms = {"plain": torch.relu}
    with pytest.raises(HoplonError, match="expected the baseline to be one of plain, got 'none'"):
        measure(arms, torch.zeros(1), baseline="none")
    with pytest.raises(HoplonError, match="expected more blocks for a 95% interval of a median, got 5"):
        measure(arms, torch.zeros(1), baseline="plain", blocks=5)
    with pytest.raises(HoplonError, match="expected calls of measure to be an integer of at least 1, got 0"):
        measure(arms, torch.zeros(1), baseline="plain", calls=0)
    with pytest.raises(HoplonError, match="expected more values"):
        median_interval([1.0, 2.0])
    found = measure(arms, torch.zeros(1), baseline="plain", blocks=6, calls=1)
    assert math.isfinite(found["plain"].median_ms)
    assert str(found["plain"]).endswith("x 1.000 [1.000, 1.000]")
    with pytest.raises(HoplonError, match="expected one of plain, got 'ranger'"):
        found["ranger"]
