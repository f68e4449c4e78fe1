"""The floating-point work that faults really need, and what the machine does at its peak.

Needed are the operations (2 for a multiply-add) of convolutions, linear layers and other matrix products whose results
a fault can have reached: of a value fault, the positions that its pixel spreads to, all channels of them; of a memory
fault, the channel that it feeds, then all of what depends on it. Runs whose outputs came out bit-identical to golden
count as nothing, and so do golden runs, and everything elementwise.

As a script it prints, for every work of ``works.py``, which part of a forward lies after a fault's site, and hence how
many times faster than a loop of whole forwards a campaign can be: (N + F) / (N + F x part) with N inputs, each run once
without faults in both arms, and F faults. Faults are drawn as a campaign draws them, uniform over the elements of
outputs of convolutions and linear layers. The part is of the time that the program's own operators take, each timed in
fault-free runs of a batch, or of operations; in windows, of operations at the positions that the fault can have
reached. Faults that end on their way, as those do that a ReLU masks, need less still: where outcomes are known
(``loops.py``), runs that came out identical need nothing in windows. Of no campaign that uses windows is the limit of
whole forwards one.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from works import QUICK, WORKS, campaign_of, loaded

import hoplon as hp
from hoplon.faults.table import FaultTable
from hoplon.injection.golden_run import default_batch
from hoplon.injection.replay.row_dependence import maps_of_one
from hoplon.injection.replay.rules import Rule, rules_of
from hoplon.program.program import Program, Step

Ints = NDArray[np.int64]
_WHOLE = None
_ANY_SIZE = (2**31,) * 4
_PRODUCTS = ("conv", "linear", "matmul", "baddbmm", "attention")


class Needed:
    """Work by struck place."""

    def __init__(self, program: Program, leaves: Sequence[Any]) -> None:
        self.program = program
        self.shapes = maps_of_one(program, leaves, 1)
        self.rules = rules_of(program, self.shapes)
        plain = replace(program, steps=tuple(replace(step, kernel=None) for step in program.steps))
        batch = program.signature.fixed_batch or 1
        counted = hp.costs.count_flops(plain, batch=batch, convention="fused").operators
        # operations of a sample by step
        self.work = {program.site_steps[one.name]: one.flops / batch for one in counted if one.kind in _PRODUCTS}

    def after(self, site: str) -> float:
        """Operations of a run that goes on with whole values from this site."""
        return sum(self.work.get(step.index, 0.0) for step in self._after(self.program.site_steps[site]))

    def of_values(self, site: str, elements: Sequence[int]) -> float:
        """Operations of runs with one word struck at each of these elements of a site."""
        start = self.program.site_steps[site]
        if start not in self.shapes:
            return len(elements) * self.after(site)
        _, _, height, width = self.shapes[start]
        lines, columns = (part.astype(np.int64) for part in divmod(np.asarray(elements) % (height * width), width))
        boxes: dict[int, Ints | None] = {start: np.stack([lines, lines, columns, columns], axis=1)}
        total = 0.0
        for step in self._after(start):
            live = [read for read in step.reads if read in boxes]
            if live:
                boxes[step.index] = box = self._reached(step, live, boxes)
                runs = len(elements) if box is _WHOLE else _areas(box).sum() / self._places(step)
                total += float(runs) * self.work.get(step.index, 0.0)
        return total

    def of_memory(self, site: str, runs: int) -> float:
        """Operations of runs with one word struck in a weight, one sample each."""
        reader = next(s for s in self.program.steps if self._weight(s) == site)
        own = self.work.get(reader.index, 0.0) / len(self.program.memory()[site])
        return runs * (own + sum(self.work.get(step.index, 0.0) for step in self._after(reader.index)))

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


@dataclass(frozen=True)
class Parts:
    """Which part of a forward faults need after their sites, on average.

    ``seconds``: of its time; ``work``: of its operations; ``windows``: of these, at positions that they can reach.
    """

    seconds: float
    work: float
    windows: float

    @classmethod
    def of(cls, program: Program, leaves: Sequence[Any], faults: FaultTable, ended: Collection[int] = ()) -> Parts:
        """Of value faults of one word, with times of a batch of these flat inputs.

        Args:
            ended: faults whose outputs came out identical, which need nothing in windows.
        """
        need, spent = Needed(program, leaves), seconds_of_steps(program, leaves)
        later, work, windows = 0.0, 0.0, 0.0
        for (site,), struck in faults.frame.group_by("site"):
            reach = program.descendants[program.site_steps[str(site)]]
            later += len(struck) * sum(each for step, each in spent.items() if reach >> step & 1)
            work += len(struck) * need.after(str(site))
            alive = struck.filter(~pl.col("fault").is_in(list(ended)))
            windows += need.of_values(str(site), alive["element"].to_list()) if len(alive) else 0.0
        count = len(faults.frame)
        whole, products = count * sum(spent.values()), count * sum(need.work.values())
        return cls(later / whole, work / products, windows / products)


def seconds_of_steps(program: Program, leaves: Sequence[Any], *, repeats: int = 5) -> dict[int, float]:
    """Processor time of each step in fault-free runs, the least of some."""
    found: dict[int, float] = {}
    last = 0.0

    def hook(step: int, value: Any) -> Any:
        nonlocal last
        now = time.process_time()
        found[step] = min(found.get(step, now), now - last)
        last = time.process_time()
        return value

    with torch.inference_mode():
        for _ in range(repeats):
            last = time.process_time()
            program.run(leaves, hook=hook)
    return found


def times_a_loop(inputs: int, faults: int, part: float) -> float:
    """How many times faster than a loop of whole forwards a campaign can be that needs this part of one for a fault.

    Example:
        >>> times_a_loop(32, 0, 0.5), times_a_loop(0, 32, 0.5)
        (1.0, 2.0)
    """
    return (inputs + faults) / (inputs + faults * part)


def main(given: Sequence[str] | None = None) -> None:
    """Print the parts and limits of all works."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of models")
    parser.add_argument("--quick", action="store_true", help="the encoder alone")
    parser.add_argument("--draws", type=int, default=2000, help="faults that parts are averaged over")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    table = Table("model", "part of time", "of operations", "in windows", "inputs", "faults", "times a loop, at most")
    table.caption = "at most: by time; by operations; in windows, by operations"
    known: dict[str, Parts] = {}
    for name, inputs, faults in QUICK if options.quick else WORKS:
        if options.only and not any(part in name for part in options.only):
            continue
        if name not in known:
            if (found := loaded(name, 2, options.seed)) is None:
                continue
            program = hp.capture(found[0], found[1])
            batch = default_batch(program)
            x = found[1][torch.arange(batch) % 2]
            drawn = campaign_of(program, x).draw(count=options.draws, seed=options.seed)
            known[name] = Parts.of(program, program.leaves(hp.Inputs(x), torch.arange(batch), batch=batch), drawn)
        parts = known[name]
        shares = (parts.seconds, parts.work, parts.windows)
        limits = "  ".join(f"{times_a_loop(inputs, faults, part):.2f}" for part in shares)
        table.add_row(name, *(f"{part:.1%}" for part in shares), str(inputs), f"{faults:,}", limits)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
