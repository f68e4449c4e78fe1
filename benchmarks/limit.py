"""The floating-point work that faults really need, and what the machine does at its peak.

Needed are the multiply-adds (2 operations each) of convolutions and linear layers whose results a fault can have
reached: of a value fault, the positions that its pixel spreads to, all channels of them; of a memory fault, the channel
that it feeds, then all of what depends on it. Runs whose outputs came out bit-identical to golden count as nothing, and
so do golden runs, and everything elementwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hoplon.injection.replay.row_dependence import maps_of_one
from hoplon.injection.replay.rules import Rule, rules_of
from hoplon.program.program import Program, Step

Ints = NDArray[np.int64]
_WHOLE = None
_ANY_SIZE = (2**31,) * 4


class Needed:
    """Work by struck place."""

    def __init__(self, program: Program, leaves: Sequence[Any]) -> None:
        self.program = program
        self.shapes = maps_of_one(program, leaves, 1)
        self.rules = rules_of(program, self.shapes)

    def of_values(self, site: str, elements: Sequence[int]) -> float:
        """Operations of runs with one word struck at each of these elements of a site."""
        start = self.program.site_steps[site]
        _, _, height, width = self.shapes[start]
        lines, columns = (part.astype(np.int64) for part in divmod(np.asarray(elements) % (height * width), width))
        boxes: dict[int, Ints | None] = {start: np.stack([lines, lines, columns, columns], axis=1)}
        total = 0.0
        for step in self._after(start):
            live = [read for read in step.reads if read in boxes]
            if live:
                boxes[step.index] = box = self._reached(step, live, boxes)
                places = len(elements) * self._places(step) if box is _WHOLE else int(_areas(box).sum())
                total += 2.0 * places * self._products(step)
        return total

    def of_memory(self, site: str, runs: int) -> float:
        """Operations of runs with one word struck in a weight, one sample each."""
        reader = next(s for s in self.program.steps if self._weight(s) == site)
        own = 2.0 * self._places(reader) * self._products(reader) / len(self.program.memory()[site])
        later = sum(2.0 * self._places(step) * self._products(step) for step in self._after(reader.index))
        return runs * (own + later)

    def _after(self, start: int) -> Iterable[Step]:
        reach = self.program.descendants[start]
        return (step for step in self.program.steps if reach >> step.index & 1)

    def _reached(self, step: Step, live: Sequence[int], boxes: Mapping[int, Ints | None]) -> Ints | None:
        rule = self.rules.get(step.index)
        if rule is None or any(boxes[read] is _WHOLE for read in live):
            return _WHOLE
        size = self.shapes.get(step.index, _ANY_SIZE)[2:]
        parts = [_spread(rule, boxes[read], size) for read in live]
        found: Ints = np.stack([part[:, 0] for part in parts]).min(0)[:, None]
        ends = [np.stack([part[:, edge] for part in parts]) for edge in (1, 2, 3)]
        return np.concatenate(
            [found, ends[0].max(0)[:, None], ends[1].min(0)[:, None], ends[2].max(0)[:, None]], axis=1
        )

    def _weight(self, step: Step) -> str | None:
        names = [self.program.memory_steps[read] for read in step.reads if read in self.program.memory_steps]
        return next((name for name in names if self.program.memory()[name].dim() in (2, 4)), None)

    def _products(self, step: Step) -> int:
        """Multiply-adds for each place of the result."""
        weight = self._weight(step)
        return 0 if weight is None else self.program.memory()[weight].numel()

    def _places(self, step: Step) -> int:
        shape = self.shapes.get(step.index)
        return 1 if shape is None else shape[2] * shape[3]


def _spread(rule: Rule, box: Any, size: Sequence[int]) -> Ints:
    ends = [rule.axes[axis].reached(box[:, 2 * axis], box[:, 2 * axis + 1], size[axis]) for axis in (0, 1)]
    return np.stack([*ends[0], *ends[1]], axis=1)


def _areas(box: Any) -> Ints:
    found: Ints = np.maximum(box[:, 1] - box[:, 0] + 1, 0) * np.maximum(box[:, 3] - box[:, 2] + 1, 0)
    return found


def peak(device: str, clock: Callable[[], float], *, size: int = 1024, repeats: int = 12) -> float:
    """Operations per second of float32 matrix products, the best of some."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        begun = clock()
        float((a @ b)[0, 0])
        best = min(best, clock() - begun)
    return 2.0 * size**3 / best
