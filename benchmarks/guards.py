"""What guards of memory cost: checks against forward passes, set-up, repair, and bytes.

Every guard watches the same live model. A block times one plain forward pass, then for each guard, in an order drawn
anew, its check and the forward pass after it: caches are as a check finds them in use. Weights are random, as are the
scores: time does not depend on them. Forward passes are the user's module under inference mode.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hoplon as hp
from hoplon.comparison.costs.guard_latency import Armed, CheckCost, armed, check_ms_per_layer, interleaved, repair_ms
from hoplon.comparison.costs.latency import conditions, timed
from hoplon.protections.guards.memory.arena import lay_end_to_end
from hoplon.zoo import resolve_model

MODELS = ("resnet50", "vgg19", "inception_v3")
PIXELS = {"inception_v3": 299}
BATCHES = (1, 32)
TURNS = 16
QUICK_SECONDS = 22.0


@dataclass(frozen=True)
class GuardCase:
    """One guard: milliseconds are medians; ratios are taken within a block, with 95 % limits of their median.

    ``check_over_forward``: check over the plain forward pass; ``ratio``: check and forward pass over the plain one.
    ``memory_fraction``: of the bytes of all parameters and buffers; ``process_fraction``: of the process.
    ``bandwidth``: bytes watched per second of check over what a plain sum reads.
    """

    name: str
    protected_fraction: float
    check_ms: float
    check_over_forward: float
    check_over_forward_low: float
    check_over_forward_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    memory_fraction: float
    process_fraction: float
    extra_bytes: int
    set_up_ms: float
    repair_ms: float | None
    check_ms_per_layer: float
    bandwidth: float
    blocks: int


@dataclass(frozen=True)
class Case:
    """One model at one batch size."""

    model: str
    batch: int
    forward_ms: float
    weight_bytes: int
    guards: tuple[GuardCase, ...]


def protections(
    memory: Mapping[str, Tensor], convolutions: Sequence[str], options: argparse.Namespace
) -> dict[str, hp.protections.Protection]:
    """The guards asked for, by name: those of important weights by magnitude, and by chance, which scatters them most.

    The paper's sparse copies hold convolution weights only.
    """
    generator = torch.Generator().manual_seed(options.seed)
    scores = hp.Scores({name: memory[name].abs() for name in convolutions})
    scattered = hp.Scores({name: torch.rand(memory[name].shape, generator=generator) for name in convolutions})
    known: dict[str, Callable[[], hp.protections.Protection]] = {
        "tmr": hp.TMR,
        "tmr-tensor": lambda: hp.TMR(vote="tensor"),
        "tmr-sparse": lambda: hp.guards.TMRSparse(scores, 1.0),
        "aspis-1%": lambda: hp.Aspis(scores, 0.01),
        "aspis-1%, scattered": lambda: hp.Aspis(scattered, 0.01),
        "aspis-10%": lambda: hp.Aspis(scores, 0.1),
        "block-aspis-1%": lambda: hp.guards.BlockAspis(scores, 0.01),
        "parity": lambda: hp.Parity(),
        "known-bits": lambda: hp.KnownBits(),
        "checksum": lambda: hp.guards.Checksum(),
    }
    return {name: known[name]() for name in options.guards or known}


def memory_of(model: nn.Module) -> dict[str, Tensor]:
    parameters, buffers = model.named_parameters(), model.named_buffers()
    return {name: tensor.detach() for named in (parameters, buffers) for name, tensor in named}


def rotating(whole: Armed) -> Armed:
    """The same guard, one slice per forward pass."""
    turn = 0

    def check() -> None:
        nonlocal turn
        whole.guard.check(turn=turn, turns=TURNS)
        turn = (turn + 1) % TURNS

    return Armed(whole.guard, check, whole.set_up_ms)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain sum reads."""
    words = torch.ones(2**25, dtype=torch.int64, device=device)
    words.sum()
    return words.nbytes / median(timed(words.sum, device) for _ in range(7))


def cases_of(name: str, options: argparse.Namespace) -> Iterator[Case]:
    device = torch.device(options.device)
    model = resolve_model(f"torchvision:{name}", seed=options.seed).module.to(device).eval()
    if options.layout == "end-to-end":
        lay_end_to_end(model)
    memory = memory_of(model)
    convolutions = [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    chosen = protections(memory, convolutions, options)
    guards = {guard: armed(protection, memory) for guard, protection in chosen.items()}
    if "parity" in guards:
        guards[f"parity, rotating {TURNS}"] = rotating(guards["parity"])
    weight_bytes = sum(tensor.nbytes for tensor in memory.values())
    layers = {
        guard: 0.0 if options.quick else check_ms_per_layer(one, memory, convolutions) for guard, one in chosen.items()
    }
    repairs = {guard: repair_ms(guards[guard], one, memory, convolutions) for guard, one in chosen.items()}
    speed = bandwidth(device)
    for number, batch in enumerate(options.batches):
        pixels = PIXELS.get(name, 224)
        generator = torch.Generator().manual_seed(options.seed)
        x = torch.randn(batch, 3, pixels, pixels, generator=generator).to(device)
        seconds = options.seconds
        if options.quick:
            seconds = (options.end - time.perf_counter()) / (len(options.batches) - number)
        forward = torch.inference_mode()(partial(model, x))
        checks = {guard: one.check for guard, one in guards.items()}
        found = interleaved(forward, checks, seconds=seconds, seed=options.seed, device=device)
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        yield Case(
            model=name,
            batch=batch,
            forward_ms=1e3 * median(found.forward),
            weight_bytes=weight_bytes,
            guards=tuple(
                case_of(guard, one, found.cost(guard), weight_bytes, process, speed)(
                    repair_ms=repairs.get(guard), check_ms_per_layer=layers.get(guard, 0.0)
                )
                for guard, one in guards.items()
            ),
        )


def case_of(
    name: str, one: Armed, cost: CheckCost, weight_bytes: int, process: int, speed: float
) -> Callable[..., GuardCase]:
    read = one.guard.protected_bytes / (TURNS if "rotating" in name else 1)
    share, ratio = cost.over_forward, cost.ratio
    return partial(
        GuardCase,
        name=name,
        protected_fraction=one.guard.protected_bytes / weight_bytes,
        check_ms=cost.check_ms,
        check_over_forward=share[0],
        check_over_forward_low=share[1],
        check_over_forward_high=share[2],
        ratio=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        memory_fraction=one.guard.extra_bytes / weight_bytes,
        process_fraction=one.guard.extra_bytes / process,
        extra_bytes=one.guard.extra_bytes,
        set_up_ms=one.set_up_ms,
        bandwidth=1e3 * read / cost.check_ms / speed,
        blocks=cost.blocks,
    )


def shown(case: Case, title: str) -> Table:
    heading = f"{case.model}, batch {case.batch}: forward {case.forward_ms:.1f} ms, weights {case.weight_bytes:,} bytes"
    table = Table(title=heading, title_justify="left", caption=title, caption_justify="left", expand=True)
    columns = ("guard", "protected", "check ms", "check / forward", "with forward", "memory", "set-up ms", "repair ms")
    for column in columns:
        table.add_column(column)
    for one in case.guards:
        table.add_row(
            one.name,
            f"{100 * one.protected_fraction:.1f} %",
            f"{one.check_ms:.3f}",
            f"{one.check_over_forward:.4f} [{one.check_over_forward_low:.4f}, {one.check_over_forward_high:.4f}]",
            f"{one.ratio:.3f} [{one.ratio_low:.3f}, {one.ratio_high:.3f}]",
            f"{100 * one.memory_fraction:.3f} %",
            f"{one.set_up_ms:.0f}",
            "not repaired" if one.repair_ms is None else f"{one.repair_ms:.2f}",
        )
    return table


def conditions_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        **conditions(torch.device(options.device)),
        "layout": options.layout,
        "seed": options.seed,
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and cases there")
    parser.add_argument("--quick", action="store_true", help="ResNet-50 at batch 1, under 50 seconds")
    parser.add_argument("--models", nargs="+", default=MODELS, help="torchvision classification models")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--guards", nargs="+", help="only these")
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring, per model and batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--layout",
        choices=("end-to-end", "as-is"),
        default="end-to-end",
        help="of memory: as harden() and guard(end_to_end=True) lay it out, or as torch did",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.batches = ("resnet50",), (1,)
    options.end = time.perf_counter() + QUICK_SECONDS
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    console, progress = Console(width=150), Console(stderr=True)
    about = conditions_of(options)
    cases: list[Case] = []
    for name in options.models:
        with progress.status(name):
            for case in cases_of(name, options):
                cases.append(case)
                console.print(shown(case, ", ".join(f"{key} {value}" for key, value in about.items())))
    if options.json is not None:
        content = {"conditions": about, "cases": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
