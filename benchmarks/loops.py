"""A campaign of few or many value faults against the loop that one writes first: plain hooks on the user's module.

The loop runs all inputs once, then one forward per fault, at the best of several batches; hoplon's arm is the whole of
`Campaign.run` after capture, which has a column of its own. Faults are single bits in outputs of convolutions and
linear layers, the same in both arms; top-1 outcomes are compared fault by fault. The arms alternate in one run; a ratio
is the median of those of the rounds. Time is processor time of one thread. Weights are random where none are at hand:
time hardly depends on them, the share of masked faults does. The limit is that of whole forwards which begin at these
faults (``limit.py``). EfficientNet-Lite0 needs its packages (``answers.py``) and images, and is left out without them.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import torch
from limit import Parts, times_a_loop
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from works import QUICK, WORKS, campaign_of, loaded

import hoplon as hp
from hoplon.comparison.costs.latency import conditions

BATCHES = (1, 4, 32)


@dataclass(frozen=True)
class Row:
    """One model and number of faults; seconds are medians over rounds, of processor time.

    ``first``: hoplon's first run in the process, with what it loads then. ``ratio``: the loop's time over hoplon's, its
    range beside it. ``hooks_ran``: faults that the loop ran; more are taken to cost as much each. ``agree``: of these,
    how many have the same top-1 outcome (rounding differs between batches, and a hook strikes the result of attention
    where the fault is inside of it). ``parts``: which part of a forward lies after these faults; ``limit``: the ratio
    that the part of its time allows, ``of_limit`` the share of it that is reached; ``limit_in_windows``: what the
    operations allow that a fault can have reached, of runs that did not come out identical.
    """

    model: str
    inputs: int
    faults: int
    capture_seconds: float
    hooks_seconds: float
    hooks_batch: int
    hooks_ran: int
    first: float
    hoplon_seconds: float
    ratio: float
    ratio_range: tuple[float, float]
    agree: int
    parts: Parts
    limit: float
    of_limit: float
    limit_in_windows: float
    of_limit_in_windows: float


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gives."""
    begun = time.process_time()
    result = run()
    return time.process_time() - begun, result


class Loop:
    """Plain hooks: every fault is one sample of a forward of the user's module."""

    def __init__(self, model: nn.Module, x: Tensor, faults: list[dict[str, Any]]) -> None:
        self.model, self.x, self.faults = model, x, faults
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())

    def golden(self, batch: int) -> Tensor:
        """Top-1 classes of all inputs."""
        with torch.inference_mode():
            return torch.cat([self.model(part).argmax(1) for part in self.x.split(batch)])

    def classes(self, batch: int, count: int) -> Tensor:
        """Top-1 classes under the first faults."""
        found = []
        with torch.inference_mode():
            for begin in range(0, count, batch):
                chunk = self.faults[begin : min(begin + batch, count)]
                hooks = [
                    self.modules[str(fault["site"]).rpartition(":")[0]].register_forward_hook(
                        partial(_flip, row, fault)
                    )
                    for row, fault in enumerate(chunk)
                ]
                found.append(self.model(self.x[[fault["input"] for fault in chunk]]).argmax(1))
                for hook in hooks:
                    hook.remove()
        return torch.cat(found)


def _flip(row: int, fault: Mapping[str, Any], module: nn.Module, given: Any, output: Any) -> None:
    value = output[0] if isinstance(output, tuple) else output  # of attention: a hook cannot reach what is inside
    words = value[row].view(torch.int32)
    element = torch.tensor(fault["element"] % words.numel())
    index = tuple(int(i) for i in torch.unravel_index(element, words.shape))
    flip = int(fault["flip"])
    words[index] = words[index] ^ (flip - (1 << 32) if flip >> 31 else flip)


def measured(name: str, inputs: int, faults: int, options: argparse.Namespace) -> Row | None:
    """Time both arms on one model; None where that is not at hand."""
    if (found := loaded(name, inputs, options.seed)) is None:
        return None
    model, x = found
    capture, program = seconds(lambda: hp.capture(model, x[:2]))
    campaign = campaign_of(program, x, batch=options.batch)
    first, results = seconds(lambda: campaign.run(count=faults, seed=options.seed))
    loop = Loop(model, x, list(results.faults.frame.iter_rows(named=True)))
    ran = min(faults, options.most)

    def hooks(batch: int) -> float:
        golden, _ = seconds(lambda: loop.golden(batch))
        struck, _ = seconds(lambda: loop.classes(batch, ran))
        return golden + struck * faults / ran

    best = min(BATCHES, key=hooks)
    rounds = [
        (hooks(best), seconds(lambda: campaign.run(count=faults, seed=options.seed))[0]) for _ in range(options.rounds)
    ]
    ratios = [theirs / ours for theirs, ours in rounds]
    changed = loop.classes(best, ran) != loop.golden(best)[[fault["input"] for fault in loop.faults[:ran]]]
    outcomes = [str(outcome) in ("sdc", "nonfinite") for outcome in results.runs["top-1"][:ran]]
    batch = results.manifest["batch"]
    leaves = program.leaves(campaign.data, torch.arange(batch), batch=batch)
    ended = results.runs.filter(pl.col("top-1") == "identical")["fault"].to_list()
    parts = Parts.of(program, leaves, results.faults, ended)
    limits = [times_a_loop(inputs, faults, part) for part in (parts.seconds, parts.windows)]
    return Row(
        *(name, inputs, faults, capture, median(theirs for theirs, _ in rounds), best, ran, first),
        *(median(ours for _, ours in rounds), median(ratios), (min(ratios), max(ratios))),
        sum(a == b for a, b in zip(changed.tolist(), outcomes, strict=True)),
        *(parts, limits[0], median(ratios) / limits[0], limits[1], median(ratios) / limits[1]),
    )


def main(given: Sequence[str] | None = None) -> None:
    """Print the table; with ``--json`` write it too, with the machine beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of models")
    parser.add_argument("--quick", action="store_true", help="50 faults in the encoder alone")
    parser.add_argument("--faults", nargs="*", type=int, default=[], help="numbers of faults")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=96, help="faults that the loop runs in a round, at most")
    parser.add_argument("--batch", type=int, default=None, help="hoplon's batch; by default its own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    table = Table(
        "model",
        "inputs",
        "faults",
        "capture s",
        "hooks s (batch)",
        "first s",
        "hoplon s",
        "ratio",
        "limit",
        "in windows",
        "agree",
    )
    rows = []
    for name, inputs, faults in QUICK if options.quick else WORKS:
        chosen = not options.only or any(part in name for part in options.only)
        if chosen and (not options.faults or faults in options.faults):
            if (row := measured(name, inputs, faults, options)) is None:
                continue
            rows.append(row)
            if options.json:
                document = {"conditions": conditions(torch.device("cpu")), "rows": [asdict(one) for one in rows]}
                options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            span = f"{row.ratio:.2f} [{row.ratio_range[0]:.2f}, {row.ratio_range[1]:.2f}]"
            table.add_row(
                *(name, str(inputs), str(faults), f"{row.capture_seconds:.1f}"),
                *(f"{row.hooks_seconds:.2f} ({row.hooks_batch})", f"{row.first:.2f}", f"{row.hoplon_seconds:.2f}"),
                *(span, f"{row.limit:.2f} ({row.of_limit:.0%})"),
                *(f"{row.limit_in_windows:.2f} ({row.of_limit_in_windows:.0%})", f"{row.agree} of {row.hooks_ran}"),
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
