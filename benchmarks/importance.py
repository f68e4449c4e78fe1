"""What scores of weights cost: each against one forward and backward pass of the user's own module over the same data.

All scores and the plain pass alternate in rounds, in an order drawn anew for each; a ratio is the median over rounds of
the ratio within a round, with the least and the greatest beside it. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import hoplon as hp
from hoplon.zoo import resolve_model
from hoplon.zoo.networks.cifar_resnet import CifarResNet

SCORES: Mapping[str, Callable[..., hp.Scores]] = {
    name: getattr(hp.importance, name)
    for name in ("taylor", "gradient", "fisher", "magnitude", "random", "nisp", "expected_damage")
}
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Case:
    """One score of one model. ``ratio``: its time over that of the plain pass, in the same round."""

    model: str
    score: str
    samples: int
    batch: int
    rounds: int
    ratio: float
    ratio_low: float
    ratio_high: float
    median_ms: float
    baseline_ms: float


def made(name: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A model with random weights, and the shape of its samples."""
    torch.manual_seed(seed)
    if name == "resnet20":
        return CifarResNet(20).eval(), (3, 32, 32)
    return resolve_model(f"torchvision:{name}", seed=seed).module, (3, 224, 224)


def plain(model: nn.Module, data: hp.Inputs, batch: int) -> None:
    """Forward and backward over the data, gradients of all parameters."""
    parameters = list(model.parameters())
    for part in data.batches(batch):
        loss = F.cross_entropy(model(part.tensors[0]), part.y)
        torch.autograd.grad(loss, parameters, allow_unused=True)


def cases_of(name: str, options: argparse.Namespace) -> list[Case]:
    """All scores of one model."""
    model, shape = made(name, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randn(options.samples, *shape, generator=generator)
    program = hp.capture(model, x[:2])
    with torch.inference_mode():
        labels = torch.cat([model(part).argmax(1) for part in x.split(options.batch)])
    data = hp.Inputs(x, labels.clone())
    works: dict[str, Callable[[], object]] = {"plain": lambda: plain(model, data, options.batch)}
    for score, function in SCORES.items():
        works[score] = lambda function=function: function(program, data, loss=F.cross_entropy, batch=options.batch)
    clock, order, times = CLOCKS[options.clock], random.Random(options.seed), {work: [] for work in works}
    plain(model, data.take(range(min(len(data), options.batch))), options.batch)  # memory is taken once
    start = time.perf_counter()
    rounds = 0
    while rounds < options.rounds and (rounds < 1 or time.perf_counter() - start < options.seconds):
        for work in order.sample(list(works), len(works)):
            before = clock()
            works[work]()
            times[work].append(clock() - before)
        rounds += 1
    found = []
    for score in SCORES:
        ratios = [own / base for own, base in zip(times[score], times["plain"], strict=True)]
        found.append(
            Case(
                model=name,
                score=score,
                samples=options.samples,
                batch=options.batch,
                rounds=rounds,
                ratio=statistics.median(ratios),
                ratio_low=min(ratios),
                ratio_high=max(ratios),
                median_ms=1e3 * statistics.median(times[score]),
                baseline_ms=1e3 * statistics.median(times["plain"]),
            )
        )
    return found


def shown(cases: Sequence[Case], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("model", "score", "samples x batch", "rounds", "ratio to forward + backward", "ms", "plain ms"):
        table.add_column(heading)
    for case in cases:
        table.add_row(
            case.model,
            case.score,
            f"{case.samples} x {case.batch}",
            str(case.rounds),
            f"{case.ratio:.3f} [{case.ratio_low:.3f}, {case.ratio_high:.3f}]",
            f"{case.median_ms:.1f}",
            f"{case.baseline_ms:.1f}",
        )
    return table


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and cases there")
    parser.add_argument("--quick", action="store_true", help="ResNet-20, under 50 seconds")
    parser.add_argument("--models", nargs="+", default=("resnet20", "resnet50"), help="resnet20, or torchvision models")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600.0, help="no further round begins after them, per model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="cpu leaves out time given to others")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.samples, options.seconds = ("resnet20",), 128, 8.0
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    cases = [case for name in options.models for case in cases_of(name, options)]
    conditions = {
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "dtype": "float32",
        "seed": options.seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    Console(width=140).print(shown(cases, ", ".join(f"{key} {value}" for key, value in conditions.items())))
    if options.json is not None:
        content = {"conditions": conditions, "cases": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
