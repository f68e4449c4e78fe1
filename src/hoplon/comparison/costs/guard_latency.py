"""What guards of memory cost: checks between forward passes, arming, repair, the check of one layer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast, final

import torch
from torch import Tensor

from hoplon.comparison.costs.latency import ratio_interval, timed
from hoplon.errors import HoplonError
from hoplon.formats.base import integer_view
from hoplon.protections.base import Protection
from hoplon.protections.memory_guard import Guard, GuardReport

MIN_BLOCKS = 6
"""Fewer have no 95 % interval of a median."""

_PLACES_APART, _REPAIRS, _LAYER_CHECKS = 997, 5, 3


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
    times = []
    for place in places[:_REPAIRS].tolist():
        before = int(words[place])
        words[place] ^= 1 << 30
        reports: list[GuardReport] = []
        times.append(timed(lambda reports=reports: reports.append(one.guard.check()), words.device))  # type: ignore[misc]
        restored = int(words[place]) == before
        words[place] = before
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
        alone = protection
        if (scores := getattr(protection, "scores", None)) is not None:
            own = replace(scores, values={name: scores[name]})
            alone = replace(cast(Any, protection), scores=own)
        guard = armed(alone, {name: memory[name]}).guard
        guard.check()
        total += median(timed(guard.check, memory[name].device) for _ in range(_LAYER_CHECKS))
    return 1e3 * total / len(layers)
