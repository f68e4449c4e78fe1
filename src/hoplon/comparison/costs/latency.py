"""What a protection costs in time: arms interleaved in one process, compared block by block."""

from __future__ import annotations

import math
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import final

import scipy
import torch
from torch import Tensor

from hoplon.errors import Count, HoplonError, Seed, Share, checked


@final
@dataclass(frozen=True)
class LatencyRatio:
    """The latency of one arm: median in milliseconds, and its ratio to the baseline with an interval.

    ``ratio`` is the median over blocks of (this arm's time / the baseline's time in the same block); ``low`` and
    ``high`` enclose the true median at the stated confidence, whatever the distribution.
    """

    name: str
    median_ms: float
    ratio: float
    low: float
    high: float
    blocks: int

    def to_dict(self, name: str) -> dict[str, float]:
        """The ratio and its limits as ``name``, ``name_low`` and ``name_high``."""
        return {name: self.ratio, f"{name}_low": self.low, f"{name}_high": self.high}

    def __str__(self) -> str:
        return f"{self.name}: {self.median_ms:.3g} ms, x {self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


@final
@dataclass(frozen=True)
class Overheads:
    """Latencies measured together, and under what conditions.

    ``times``: by arm, the seconds per call in each block, so that arms can be compared block by block anew.
    """

    arms: tuple[LatencyRatio, ...]
    baseline: str
    calls: int
    confidence: float
    batch_shape: tuple[int, ...]
    device: str
    threads: int
    torch_version: str
    times: Mapping[str, tuple[float, ...]]

    def __getitem__(self, name: str) -> LatencyRatio:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise HoplonError(f"expected one of {', '.join(arm.name for arm in self.arms)}, got {name!r}")

    def versus(self, baseline: str) -> Overheads:
        """The same measurement with its ratios taken to another arm."""
        return replace(self, arms=_compared(self.times, self[baseline].name, self.confidence), baseline=baseline)


@checked
def measure(
    modules: Mapping[str, Callable[[Tensor], object]],
    x: Tensor,
    *,
    baseline: str,
    blocks: Count = 30,
    calls: Count = 5,
    confidence: Share = 0.95,
    seed: Seed = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Overheads:
    """Time several callables on one input, so that drift of the machine hits all alike.

    Every block runs each arm ``calls`` times in an order drawn anew; an arm's ratio is taken within the block.

    Args:
        modules: arms by name, called as ``module(x)`` in inference mode.
        x: the input, on the device to be measured.
        baseline: the arm that ratios refer to.
        blocks: at least 6 for a 95 % interval of a median.
        calls: calls of one arm in one block.
        seed: of the order of arms.
        clock: seconds, as ``time.perf_counter``.
    Raises:
        HoplonError: an unknown baseline, or too few blocks for the confidence.
    """
    if baseline not in modules:
        raise HoplonError(f"expected the baseline to be one of {', '.join(modules) or 'no arms'}, got {baseline!r}")
    if 2 * 0.5**blocks >= 1 - confidence:  # even the smallest and the largest of so many may miss the median
        raise HoplonError(f"expected more blocks for a {confidence:.0%} interval of a median, got {blocks}")
    order, generator = list(modules), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in modules}
    with torch.inference_mode():
        for module in modules.values():
            module(x)  # warm-up: allocation, kernel selection
        for _ in range(blocks):
            generator.shuffle(order)
            for name in order:
                times[name].append(timed(partial(modules[name], x), x.device, calls=calls, clock=clock))
    return Overheads(
        arms=_compared(times, baseline, confidence),
        baseline=baseline,
        calls=calls,
        confidence=confidence,
        batch_shape=tuple(x.shape),
        device=str(x.device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        times={name: tuple(seconds) for name, seconds in times.items()},
    )


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics that enclose the median with at least this confidence, for any distribution.

    Raises:
        HoplonError: too few values; 6 are needed for 95 %.
    Source:
        Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2 (interval of a quantile).
    Example:
        >>> median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
        (1.0, 6.0)
    """
    limits = scipy.stats.quantile_test(values, p=0.5).confidence_interval(confidence)
    if math.isnan(limits.low):
        raise HoplonError(f"expected more values for a {confidence:.0%} interval of a median, got {len(values)}")
    return float(limits.low), float(limits.high)


def ratio_interval(
    seconds: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Median of the ratios within a block, and the order statistics that enclose it."""
    ratios = [own / other for own, other in zip(seconds, baseline, strict=True)]
    return median(ratios), *median_interval(ratios, confidence=confidence)


def conditions(device: torch.device) -> dict[str, str | int]:
    """What times depend on: the device and the processor by name, threads, and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": torch.get_device_module(device).get_device_name() if device.type != "cpu" else "cpu",
        "cpu": cpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def timed(
    call: Callable[[], object], device: torch.device, *, calls: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds per call, on an accelerator until it has finished.

    Args:
        calls: so many in a row.
        clock: seconds, as ``time.perf_counter``.
    """
    _finish(device)
    start = clock()
    for _ in range(calls):
        call()
    _finish(device)
    return (clock() - start) / calls


def _finish(device: torch.device) -> None:
    """Wait until an accelerator has done what was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _compared(times: Mapping[str, Sequence[float]], baseline: str, confidence: float) -> tuple[LatencyRatio, ...]:
    return tuple(
        LatencyRatio(
            name,
            median(seconds) * 1e3,
            *ratio_interval(seconds, times[baseline], confidence=confidence),
            len(seconds),
        )
        for name, seconds in times.items()
    )
