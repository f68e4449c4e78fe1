"""What known bits repair: the share of failing memory faults, alone and with Ranger and Parity, and what a check costs.

Faults are drawn over the weights of convolutions and linear layers and run unprotected. Those under which an input
fails are run again in every arm; the others are taken for harmless there too. A fault is repaired where no input
fails under it any more, and its harm is the share of inputs that fail. Checks alternate with a sum of the same memory
as int64, the fastest read that torch has, and with a forward pass of batch 1.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hoplon as hp
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.protections.base import Overlay, overlay
from hoplon.protections.guards.memory.arena import lay_end_to_end
from hoplon.stats.intervals import wilson
from hoplon.zoo import resolve_data, resolve_model

ARMS = ("known-bits", "known-bits/1024", "ranger", "parity", "ranger+known-bits", "ranger+known-bits+parity")
FAILED = ("sdc", "nonfinite")


@dataclass(frozen=True)
class Work:
    """A model with its data, how many faults are drawn of each kind, and how many inputs meet them."""

    model: str
    data: str
    faults: int
    inputs: int = 64


WORKS = (
    Work("lenet-digits", "digits", 4000),
    Work("resnet20-cifar10", "cifar10", 4000),
    Work("resnet56-cifar10", "cifar10", 2000),
)
TIMED = ("resnet20-cifar10", "resnet56-cifar10", "torchvision:mobilenet_v2", "torchvision:resnet50")


@dataclass(frozen=True)
class Repair:
    """What an arm makes of the faults that fail unprotected; shares with Wilson's 95 % interval.

    ``harm_removed``: of the failing inputs of all faults together. ``refused``: faults that a guard reported as
    uncorrectable, which are not repaired.
    """

    model: str
    bits: int
    arm: str
    faults: int
    failing: int
    repaired: int
    refused: int
    repaired_share: float
    interval: tuple[float, float]
    harm_removed: float


@dataclass(frozen=True)
class Cost:
    """What a check costs; times are medians of alternated rounds, in milliseconds of the clock."""

    model: str
    forward_ms: float
    check_ms: float
    sum_ms: float
    check_over_sum: float
    check_over_forward: float
    extra_bytes: int
    memory_fraction: float
    known_share: float


def repairs(work: Work, options: argparse.Namespace) -> list[Repair]:
    """All arms, under single and double flips."""
    data = resolve_data(work.data)
    module = resolve_model(work.model, seed=options.seed).module
    program = hp.capture(module, data.held_out.x[:2])
    reference = GoldenRun.run(program, data.held_out.take(range(work.inputs)), hp.TopK(1), batch=work.inputs)
    ranges = hp.profile_ranges(program, data.calibration.take(range(256)))
    known, ranger, parity = hp.KnownBits(), hp.Ranger(ranges), hp.Parity()
    described: Mapping[str, tuple[hp.protections.Protection, ...]] = {
        "known-bits": (known,),
        "known-bits/1024": (hp.KnownBits(block=1024),),
        "ranger": (ranger,),
        "parity": (parity,),
        "ranger+known-bits": (ranger, known),
        "ranger+known-bits+parity": (ranger, known, parity),
    }
    found = []
    for bits in (1, 2):
        sites = hp.Memory("*.weight", kind=("conv", "linear"))
        campaign = hp.Campaign(program, data.held_out, sites=sites, fault_model=hp.BitFlip(count=bits))
        table = campaign.draw(count=work.faults, seed=options.seed)
        harm = _harm(reference, Overlay(), table)
        failing = harm.filter(pl.col("failed") > 0)
        critical = replace(table, frame=table.frame.filter(pl.col("fault").is_in(failing["fault"].to_list())))
        for arm in ARMS:
            left = _harm(reference, overlay(program, described[arm], label=arm), critical)
            found.append(_repair(work, bits, arm, failing, left))
    return found


def _harm(reference: GoldenRun, protections: Overlay, table: hp.FaultTable) -> pl.DataFrame:
    """By fault, the inputs that fail, and whether a guard called it uncorrectable."""
    runs, _ = Injector(reference, protections).runs(table)
    outcome = pl.col("top-1").cast(pl.String)
    return runs.group_by("fault").agg(
        outcome.is_in(FAILED).sum().alias("failed"), (outcome == "uncorrectable").any().alias("refused")
    )


def _repair(work: Work, bits: int, arm: str, before: pl.DataFrame, after: pl.DataFrame) -> Repair:
    repaired = after.filter((pl.col("failed") == 0) & ~pl.col("refused")).height
    refused = after.filter(pl.col("refused")).height
    share = repaired / before.height if before.height else float("nan")
    ends = wilson(repaired, before.height)
    return Repair(
        model=work.model,
        bits=bits,
        arm=arm,
        faults=work.faults,
        failing=before.height,
        repaired=repaired,
        refused=refused,
        repaired_share=share,
        interval=(ends.low, ends.high),
        harm_removed=1 - after["failed"].sum() / before["failed"].sum() if before.height else float("nan"),
    )


def cost(name: str, options: argparse.Namespace) -> Cost:
    """A check beside a sum of the same memory and a forward pass, in turns."""
    found = resolve_model(name, seed=options.seed)
    module, x = found.module, found.example[:1]
    lay_end_to_end(module)  # as harden() hands modules out
    memory = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    guard = hp.KnownBits().arm(memory)
    rows = [_wide(tensor.detach()) for tensor in memory.values() if tensor.numel()]
    work: Mapping[str, Callable[[], Any]] = {
        "forward": lambda: module(x),
        "check": guard.check,
        "sum": lambda: [row.sum() for row in rows],
    }
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    times: dict[str, list[float]] = {key: [] for key in work}
    with torch.inference_mode():
        for turn in range(options.rounds + 1):
            for key, call in work.items():
                begun = clock()
                call()
                if turn:
                    times[key].append(1000 * (clock() - begun))
    middle = {key: statistics.median(values) for key, values in times.items()}
    return Cost(
        model=name,
        forward_ms=middle["forward"],
        check_ms=middle["check"],
        sum_ms=middle["sum"],
        check_over_sum=statistics.median(a / b for a, b in zip(times["check"], times["sum"], strict=True)),
        check_over_forward=statistics.median(a / b for a, b in zip(times["check"], times["forward"], strict=True)),
        extra_bytes=guard.extra_bytes,
        memory_fraction=guard.extra_bytes / guard.protected_bytes,
        known_share=guard.known_share,
    )


def _wide(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat.view(torch.int64) if flat.nbytes % 8 == 0 else flat


def shown(found: Sequence[Repair], costs: Sequence[Cost]) -> list[Table]:
    table = Table(title="memory faults that fail unprotected", title_justify="left", expand=True)
    for heading in ("model", "bits", "arm", "failing of", "repaired", "95 %", "refused", "harm removed"):
        table.add_column(heading)
    for row in found:
        low, high = row.interval
        table.add_row(
            row.model,
            str(row.bits),
            row.arm,
            f"{row.failing} of {row.faults}",
            f"{row.repaired} ({row.repaired_share:.2%})",
            f"{low:.2%} to {high:.2%}",
            str(row.refused),
            f"{row.harm_removed:.3%}",
        )
    prices = Table(title="a check of all parameters and buffers", title_justify="left", expand=True)
    for heading in ("model", "check ms", "over int64 sum", "over forward", "extra bytes", "of memory", "known bits"):
        prices.add_column(heading)
    for price in costs:
        prices.add_row(
            price.model,
            f"{price.check_ms:.3g}",
            f"{price.check_over_sum:.2f}",
            f"{price.check_over_forward:.3f}",
            str(price.extra_bytes),
            f"{price.memory_fraction:.4%}",
            f"{price.known_share:.1%}",
        )
    return [table, prices]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and cases there")
    parser.add_argument("--quick", action="store_true", help="LeNet alone, fewer faults, under 50 seconds")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="models whose name holds one of these")
    parser.add_argument("--faults", type=int, help="of every model and kind, in place of its own number")
    parser.add_argument("--inputs", type=int, help="that meet every fault; 64 by default")
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu leaves out time given to others")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    console, progress = Console(width=150), Console(stderr=True)
    works = (Work("lenet-digits", "digits", 1000),) if options.quick else WORKS
    timed = TIMED[-1:] if options.quick else TIMED
    chosen = [work for work in works if options.only is None or any(text in work.model for text in options.only)]
    found: list[Repair] = []
    costs: list[Cost] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")  # torch about its own exporter
        for work in chosen:
            with progress.status(work.model):
                sized = replace(work, faults=options.faults or work.faults, inputs=options.inputs or work.inputs)
                found += repairs(sized, options)
        for name in timed:
            if options.only is None or any(text in name for text in options.only):
                with progress.status(name):
                    costs.append(cost(name, options))
    for table in shown(found, costs):
        console.print(table)
    if options.json is not None:
        conditions = {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "clock": options.clock,
            "seed": options.seed,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        cases = {"repairs": [asdict(row) for row in found], "costs": [asdict(price) for price in costs]}
        options.json.write_text(json.dumps({"conditions": conditions, **cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
