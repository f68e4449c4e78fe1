"""Faults per second: hoplon, PyTorchFI 0.6.0, MRFI 2.1.0 and plain hooks, on the same faults, inputs and batch.

The arms of a case alternate in one run. hoplon runs the whole table, golden runs of its batches included; the others
run as many of the same faults as fit into the seconds given, full batches of value faults, or whole memory faults.
Outcomes are compared fault by fault wherever another arm ran. A ratio is the median of those of the rounds.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import os
import statistics
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from injectors import Injector as Peer, Shot, available
from limit import Needed, peak
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hoplon as hp
from hoplon.comparison.costs.latency import conditions
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.injection.packing import Kernels, packed
from hoplon.program.program import Program
from hoplon.protections.base import Overlay
from hoplon.zoo import resolve_data, resolve_model

ARMS = ("pytorchfi", "mrfi", "hooks")
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Work:
    """One row of the benchmark: a model, what is struck, and how much of it."""

    model: str
    target: str
    batch: int
    inputs: int
    faults: int
    pixels: int = 32


WORKS = (
    Work("resnet20-cifar10", "values", 64, 256, 32768),
    Work("torchvision:vgg16", "values", 4, 4, 2048, 224),
    Work("torchvision:resnet50", "values", 8, 8, 2048, 224),
    Work("resnet20-cifar10", "memory", 64, 256, 128),
)
QUICK = (
    Work("resnet20-cifar10", "values", 64, 64, 8192),
    Work("torchvision:vgg16", "values", 4, 4, 96, 224),
    Work("torchvision:resnet50", "values", 4, 4, 96, 224),
    Work("resnet20-cifar10", "memory", 64, 256, 32),
)


@dataclass(frozen=True)
class Case:
    """What came of one row; faults per second are medians over rounds.

    ``outcomes_equal``: every outcome of another arm equals hoplon's; ``compared``: how many were, ``different``: how
    many do not (the others run the model's own kernels, so with packed ones a few may). ``seconds``:
    hoplon's, for all faults. ``needed_gflop``: what the faults really need (see ``limit.py``); ``peak_gflop_per_s``:
    what matrix products reach here; ``share_of_limit``: needed over what the peak would do in hoplon's time.
    """

    model: str
    target: str
    batch: int
    inputs: int
    faults: int
    rounds: int
    hoplon_faults_per_s: float
    pytorchfi_faults_per_s: float | None
    mrfi_faults_per_s: float | None
    hooks_faults_per_s: float | None
    speedup_pytorchfi: float | None
    speedup_mrfi: float | None
    speedup_hooks: float | None
    speedup_pytorchfi_range: tuple[float, float] | None
    outcomes_equal: bool
    compared: int
    different: int
    seconds: float
    needed_gflop: float
    peak_gflop_per_s: float
    share_of_limit: float


@cache
def captured(name: str, pixels: int, seed: int, device: str) -> tuple[nn.Module, Program]:
    """A model and its program, for all rows that use it; made on all cores, since none of it is timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or threads)
    try:
        model = resolve_model(name, seed=seed).module.to(device)
        return model, hp.capture(model, torch.randn(2, 3, pixels, pixels, device=device))
    finally:
        torch.set_num_threads(threads)


@cache
def images() -> Tensor:
    """CIFAR-10's test images, read once."""
    return resolve_data("cifar10").held_out.x


class Bench:
    """A model with its inputs, its faults, and all arms on them."""

    def __init__(self, work: Work, options: argparse.Namespace) -> None:
        self.work, self.clock = work, CLOCKS[options.clock]
        self.model, program = captured(work.model, work.pixels, options.seed, options.device)
        if work.model.startswith("torchvision"):
            generator = torch.Generator().manual_seed(options.seed)
            x = torch.randn(work.inputs, 3, work.pixels, work.pixels, generator=generator)
        else:
            x = images()[: work.inputs]
        self.x = x
        data = hp.Inputs(x)
        self.reference = self.plain = GoldenRun.run(program, data, hp.TopK(1), batch=work.batch)
        if options.kernels == "packed":
            self.reference = GoldenRun.run(packed(program), data, hp.TopK(1), batch=work.batch)
        sites: Any = hp.Values(kind="conv") if work.target == "values" else hp.Memory(kind="conv", buffers=False)
        campaign = hp.Campaign(program, data, sites=sites, criterion=hp.TopK(1), batch=work.batch)
        self.table = campaign.draw(count=work.faults, seed=options.seed)
        self.program, self.device = program, options.device
        self.layer = {name: number for number, name in enumerate(self._owners())}
        self.outcomes: dict[tuple[int, int], str] = {}
        self.observed = self.table
        self.compared = self.different = 0

    def _owners(self) -> list[str]:
        return [name for name, module in self.model.named_modules() if isinstance(module, torch.nn.Conv2d)]

    def hoplon(self) -> float:
        """Faults per second over the whole table."""
        begun = self.clock()
        runs, observed = Injector(self.reference, Overlay()).runs(self.table)
        spent = self.clock() - begun
        keys = zip(runs["fault"].to_list(), runs["input"].to_list(), strict=True)
        self.outcomes = dict(zip(keys, runs["top-1"].cast(pl.String).to_list(), strict=True))
        self.observed = observed
        return len(self.table) / spent

    def needed(self) -> float:
        """Floating-point operations of all runs that did not come out identical."""
        need = Needed(self.program, self.reference.leaves(0)[0])
        words = {word["fault"]: word for word in self.observed.frame.iter_rows(named=True)}
        elements: dict[str, list[int]] = {}
        for (fault, _), outcome in self.outcomes.items():
            if outcome != "identical":
                elements.setdefault(str(words[fault]["site"]), []).append(words[fault]["element"])
        if self.work.target == "memory":
            return sum(need.of_memory(site, len(runs)) for site, runs in elements.items())
        return sum(need.of_values(site, runs) for site, runs in elements.items())

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        """Full batches of value faults, each in a row of its own; memory faults one by one."""
        words = list(self.observed.frame.iter_rows(named=True))
        if self.work.target == "memory":
            yield from ([word] for word in words)
            return
        by_batch: dict[int, list[dict[int, dict[str, Any]]]] = {}
        for word in words:
            open_passes = by_batch.setdefault(word["input"] // self.work.batch, [])
            free = next((held for held in open_passes if word["input"] not in held), None)
            if free is None:
                open_passes.append(free := {})
            free[word["input"]] = word
            if len(free) == self.work.batch:
                open_passes.remove(free)
                yield list(free.values())

    def shot(self, word: dict[str, Any]) -> Shot:
        site = str(word["site"])
        layer = self.layer[site.rpartition(":")[0] if self.work.target == "values" else site.rpartition(".")[0]]
        shape = self.program.value_site(site).shape if self.work.target == "values" else self._weight(site).shape
        index = tuple(int(i) for i in np.unravel_index(word["element"], shape))
        value = struct.unpack("<f", struct.pack("<I", word["after"]))[0]
        return Shot(layer, word.get("input", 0) % self.work.batch, index, word["flip"], value)

    def _weight(self, site: str) -> Tensor:
        return self.program.memory()[site]

    def batches(self) -> list[Tensor]:
        return [part.to(self.device) for part in self.x.split(self.work.batch)]

    def run(self, injector: Peer, chunk: Sequence[dict[str, Any]], batches: Sequence[Tensor]) -> float:
        """Seconds of one chunk; its outcomes are compared afterwards."""
        shots = [self.shot(word) for word in chunk]
        begun = self.clock()
        if self.work.target == "values":
            number = chunk[0]["input"] // self.work.batch
            outputs = [injector.values(batches[number], shots)]
            spent = self.clock() - begun
            self._compare(chunk, number * self.work.batch, outputs[0], [word["input"] for word in chunk])
            return spent
        outputs = injector.memory(batches, shots[0])
        spent = self.clock() - begun
        self._compare(chunk * self.work.inputs, 0, torch.cat(outputs), range(self.work.inputs))
        return spent

    def _compare(self, chunk: Sequence[dict[str, Any]], first: int, outputs: Tensor, inputs: Sequence[int]) -> None:
        positions = torch.tensor(list(inputs))
        golden = [self.plain.golden[0][first:].to(outputs.device)]
        found, _ = self.plain.judge(positions, positions - first, golden=golden, faulty=[outputs])
        names = np.array(hp.criteria.OUTCOME_NAMES)[found[:, 0]].tolist()
        for word, sample, name in zip(chunk, inputs, names, strict=True):
            self.compared += 1
            if self.outcomes[word["fault"], sample] != name:
                self.different += 1


def one_round(bench: Bench, arms: Sequence[Peer], seconds: float) -> dict[str, float]:
    """Faults per second of every arm; the others take turns, chunk by chunk, until each had its seconds."""
    rates = {"hoplon": bench.hoplon()}
    batches = bench.batches()
    chunks = {arm.name: bench.chunks() for arm in arms}
    spent, done = dict.fromkeys(chunks, 0.0), dict.fromkeys(chunks, 0)
    running = list(arms)
    while running:
        for arm in list(running):
            chunk = next(chunks[arm.name], None)
            if chunk is not None:
                spent[arm.name] += bench.run(arm, chunk, batches)
                done[arm.name] += len(chunk)
            if chunk is None or spent[arm.name] >= seconds:
                running.remove(arm)
    return rates | {name: done[name] / spent[name] for name in spent}


def case_of(work: Work, options: argparse.Namespace, injectors: Sequence[type[Peer]]) -> Case:
    """All rounds of one row."""
    bench = Bench(work, options)
    arms = [kind(bench.model, work.batch, tuple(bench.x.shape[1:])) for kind in injectors]
    with torch.inference_mode():
        bench.model(bench.batches()[0])  # kernels are chosen and memory is taken once
    rounds = [one_round(bench, arms, options.seconds) for _ in range(options.rounds)]
    rates = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    seconds, needed, fastest = len(bench.table) / rates["hoplon"], bench.needed(), peak(options.device, bench.clock)
    ratios = {arm.name: [found["hoplon"] / found[arm.name] for found in rounds] for arm in arms}
    speedups = {name: statistics.median(values) for name, values in ratios.items()}
    spread = (min(ratios["pytorchfi"]), max(ratios["pytorchfi"])) if "pytorchfi" in ratios else None
    return Case(
        model=work.model,
        target=work.target,
        batch=work.batch,
        inputs=work.inputs,
        faults=work.faults,
        rounds=options.rounds,
        hoplon_faults_per_s=rates["hoplon"],
        pytorchfi_faults_per_s=rates.get("pytorchfi"),
        mrfi_faults_per_s=rates.get("mrfi"),
        hooks_faults_per_s=rates.get("hooks"),
        speedup_pytorchfi=speedups.get("pytorchfi"),
        speedup_mrfi=speedups.get("mrfi"),
        speedup_hooks=speedups.get("hooks"),
        speedup_pytorchfi_range=spread,
        outcomes_equal=not bench.different,
        compared=bench.compared,
        different=bench.different,
        seconds=seconds,
        needed_gflop=needed / 1e9,
        peak_gflop_per_s=fastest / 1e9,
        share_of_limit=needed / fastest / seconds,
    )


def shown(cases: Sequence[Case], title: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", expand=True)
    table.caption = "faults per second; x: how many times faster hoplon is, median over rounds; of limit: of peak work"
    for heading in (
        "model",
        "target",
        "batch",
        "faults",
        "hoplon",
        *ARMS,
        *(f"x {arm}" for arm in ARMS),
        "of limit",
        "outcomes",
    ):
        table.add_column(heading)
    for case in cases:
        found = asdict(case)
        equal = "equal" if case.outcomes_equal else f"{case.different} DIFFER"
        table.add_row(
            case.model,
            case.target,
            str(case.batch),
            str(case.faults),
            f"{case.hoplon_faults_per_s:.4g}",
            *(_figure(found[f"{arm}_faults_per_s"]) for arm in ARMS),
            *(_figure(found[f"speedup_{arm}"]) for arm in ARMS),
            f"{case.share_of_limit:.0%}",
            f"{equal} ({case.compared})",
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def conditions_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        **conditions(torch.device(options.device)),
        "clock": options.clock,
        "kernels": options.kernels,
        "seed": options.seed,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and cases there")
    parser.add_argument("--quick", action="store_true", help="fewer faults, one round, under 50 seconds")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose model:target holds one of these")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, help="3 by default, 1 with --quick")
    parser.add_argument("--seconds", type=float, help="for each other arm in a round; 20 by default, 0.35 with --quick")
    parser.add_argument("--faults", type=int, help="of every row, in place of its own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu leaves out time given to others")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", choices=get_args(Kernels), default="exact", help="of hoplon; packed: value faults")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.35 if options.quick else 20.0)
    return options


def works(options: argparse.Namespace) -> Iterator[Work]:
    for work in QUICK if options.quick else WORKS:
        if options.kernels == "packed" and work.target == "memory":
            continue
        if options.only is None or any(text in f"{work.model}:{work.target}" for text in options.only):
            yield work if options.faults is None else replace(work, faults=options.faults)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    console, progress = Console(width=150), Console(stderr=True)
    injectors, missing = available(options.arms)
    for name, reason in missing.items():
        progress.print(f"without {name}: {reason}")
    cases = []
    for work in works(options):
        with progress.status(f"{work.model}, {work.target}"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")  # torch about its own exporter
            cases.append(case_of(work, options, injectors))
    found = conditions_of(options)
    console.print(shown(cases, ", ".join(f"{key} {value}" for key, value in found.items())))
    if options.json is not None:
        content = {"conditions": found, "missing": missing, "cases": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
