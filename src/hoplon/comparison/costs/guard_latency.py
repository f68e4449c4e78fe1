"""What guards of memory cost: checks between forward passes, arming, repair, the check and the repair of one tensor."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal, cast, final

import torch
from torch import Tensor

from hoplon.comparison.costs.latency import median_interval, ratio_interval, timed
from hoplon.errors import HoplonError
from hoplon.formats.base import integer_view
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.memory_guard import Guard, GuardReport

MIN_BLOCKS = 6
"""Fewer have no 95 % interval of a median."""

_PLACES_APART, _REPAIRS, _LAYER_CHECKS, _ONE_TENSOR = 997, 5, 3, 15

Case = Literal["copy", "main tensor", "uncorrectable", "main tensor, bit 30"]
CASES: Mapping[Case, tuple[int, int]] = {
    "copy": (0, 1),
    "main tensor": (1, 0),
    "uncorrectable": (1, 2),
    "main tensor, bit 30": (1 << 30, 0),
}
"""What is flipped in a word of a tensor and in the first copy of that word, as masks."""


@final
@dataclass(frozen=True)
class Armed:
    """A guard on live memory, how it is called before a forward pass, and the milliseconds that arming took."""

    guard: Guard
    check: Callable[[], object]
    set_up_ms: float


@final
@dataclass(frozen=True)
class CheckCost:
    """The checks of one guard: the median in milliseconds, and ratios within a block with 95 % limits of their median.

    ``over_forward``: check over the plain forward pass; ``ratio``: check and the forward pass after it over the plain
    one; each as (median, low, high).
    """

    check_ms: float
    over_forward: tuple[float, float, float]
    ratio: tuple[float, float, float]
    blocks: int


@final
@dataclass(frozen=True)
class Interleaved:
    """Seconds by block: ``forward`` of the plain pass, ``checks`` by guard of its check and of the pass after it."""

    forward: tuple[float, ...]
    checks: Mapping[str, tuple[tuple[float, float], ...]]

    def cost(self, name: str) -> CheckCost:
        """What one guard's checks cost."""
        times = self.checks[name]
        checks = [check for check, _ in times]
        return CheckCost(
            check_ms=1e3 * median(checks),
            over_forward=ratio_interval(checks, self.forward),
            ratio=ratio_interval([check + after for check, after in times], self.forward),
            blocks=len(times),
        )


def armed(protection: Protection, memory: Mapping[str, Tensor]) -> Armed:
    """Arm a protection on live memory, timed.

    Raises:
        HoplonError: a protection that guards no memory.
    """
    start = time.perf_counter()
    guard = protection.arm(memory)
    if guard is None:
        raise HoplonError(f"expected a protection that guards memory, got {protection.label}; its cost is no check's")
    return Armed(guard, guard.check, 1e3 * (time.perf_counter() - start))


def interleaved(
    forward: Callable[[], object],
    checks: Mapping[str, Callable[[], object]],
    *,
    blocks: int = MIN_BLOCKS,
    seconds: float = 0.0,
    seed: int = 0,
    device: torch.device,
) -> Interleaved:
    """Time checks between forward passes: caches are as a check finds them in use.

    A block times one plain forward pass, then for each guard, in an order drawn anew, its check and the forward pass
    after it.

    Args:
        blocks: at least so many, and 6.
        seconds: go on for so long.
        seed: of the order.
    """
    generator, order = random.Random(seed), list(checks)
    plain: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in checks}
    forward()
    for check in checks.values():
        check()
    end = time.perf_counter() + seconds
    while len(plain) < max(blocks, MIN_BLOCKS) or time.perf_counter() < end:
        plain.append(timed(forward, device))
        generator.shuffle(order)
        for name in order:
            check_seconds = timed(checks[name], device)
            found[name].append((check_seconds, timed(forward, device)))
    return Interleaved(tuple(plain), {name: tuple(times) for name, times in found.items()})


@final
@dataclass(frozen=True)
class TensorRepair:
    """One case of repair: milliseconds beyond an intact check (median, low, high), and what became of the word."""

    ms: tuple[float, float, float]
    outcome: Literal["corrected", "mitigated", "uncorrectable"]
    repeats: int


def repair_ms(one: Armed, protection: Protection, memory: Mapping[str, Tensor], layers: Sequence[str]) -> float | None:
    """Median time of a check that finds one flipped exponent bit; None where the guard leaves it unrepaired.

    Args:
        one: the protection, armed on this memory.
        layers: names of storages; words of the last one in which the protection holds any are struck and put back.
    """
    held = {name: torch.arange(0, memory[name].numel(), _PLACES_APART) for name in layers}
    if (scores := getattr(protection, "scores", None)) is not None:
        held = {name: chosen for name, chosen in scores.top(cast(Any, protection).fraction).items() if name in held}
    struck = [name for name, places in held.items() if len(places)]
    if not struck:
        raise HoplonError(f"expected words of {protection.label} in one of {', '.join(layers)}, got none")
    words, places = integer_view(memory[struck[-1]].data).view(-1), held[struck[-1]]
    times, before = [], words.clone()
    for place in places[:_REPAIRS].tolist():
        words[place] ^= 1 << 30
        reports: list[GuardReport] = []
        times.append(timed(lambda reports=reports: reports.append(one.guard.check()), words.device))  # type: ignore[misc]
        restored = torch.equal(words, before)
        words.copy_(before)  # a guard that sets groups to zero changes more than was struck
        if not reports[0].detected or not restored:
            one.guard.refresh()
            return None
    return 1e3 * median(times)


def check_ms_per_layer(protection: Protection, memory: Mapping[str, Tensor], layers: Sequence[str]) -> float:
    """Mean time of a check that watches the weights of one layer alone.

    Args:
        layers: names of the layers' weights in ``memory``.
    """
    total = 0.0
    for name in layers:
        guard = armed(_alone(protection, name), {name: memory[name]}).guard
        guard.check()
        total += median(timed(guard.check, memory[name].device) for _ in range(_LAYER_CHECKS))
    return 1e3 * total / len(layers)


def repairs_of_one_tensor(
    protection: Protection, memory: Mapping[str, Tensor], layers: Sequence[str]
) -> dict[Case, TensorRepair]:
    """Time the repair of one tensor in each of :data:`CASES`: what a check of it takes longer when it finds a fault.

    The tensor is the one of median size, with as large a share of its words as the protection holds of all. Every
    repeat strikes another word, puts all back, and checks again; the difference is taken within the repeat.

    Args:
        protection: triplication, dense or sparse: its guard has copies of each word as ``NAME#1``.
        layers: names of tensors in ``memory``, dense in memory.
    """
    name = sorted(layers, key=lambda one: memory[one].numel())[len(layers) // 2]
    alone = _alone(protection, name)
    guard = armed(alone, {name: memory[name]}).guard
    live, copies = integer_view(memory[name].data).view(-1), guard.copies
    copy = integer_view(copies[f"{name}#1"] if f"{name}#1" in copies else copies[f"{name}#1.values"]).view(-1)
    scores = _scores(alone)
    chosen = torch.arange(len(live)) if scores is None else scores.top(cast(Any, alone).fraction)[name]
    places = chosen.to(live.device)
    if len(copy) < len(places):  # a sparse copy leaves out what is zero
        places = places[memory[name].view(-1)[places] != 0]
    drawn = [len(places) * number // _ONE_TENSOR for number in range(_ONE_TENSOR)]
    guard.check()
    return {
        case: _repair_of(live, copy, masks, guard, [(int(places[at]), at) for at in drawn])
        for case, masks in CASES.items()
    }


def _repair_of(
    live: Tensor, copy: Tensor, masks: tuple[int, int], guard: Guard, words: Sequence[tuple[int, int]]
) -> TensorRepair:
    """Strike word by word, each as (place in the tensor, place in the copy)."""
    longer: list[float] = []
    found: list[GuardReport] = []
    for place, at in words:
        before = int(live[place]), int(copy[at])
        live[place] ^= masks[0]
        copy[at] ^= masks[1]
        struck = timed(lambda: found.append(guard.check()), live.device)
        live[place], copy[at] = before
        longer.append(1e3 * (struck - timed(guard.check, live.device)))
    if not all(report.detected for report in found):
        raise HoplonError(f"expected the guard to find every flip of {masks}, got {found}; it cannot be timed")
    reports = sum(found, GuardReport())
    outcome: Literal["corrected", "mitigated", "uncorrectable"] = "corrected"
    if reports.uncorrectable or reports.mitigated:
        outcome = "uncorrectable" if reports.uncorrectable else "mitigated"
    return TensorRepair((median(longer), *median_interval(longer)), outcome, len(longer))


def _scores(protection: Protection) -> Scores | None:
    """What a protection chooses its words by; None where it takes all."""
    return getattr(protection, "scores", None)


def _alone(protection: Protection, name: str) -> Protection:
    """The same protection of one tensor: as large a share of its words as of all."""
    if (scores := _scores(protection)) is None:
        return protection
    return cast(Protection, replace(cast(Any, protection), scores=replace(scores, values={name: scores[name]})))
