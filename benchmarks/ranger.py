"""What Ranger costs in time: both forms against no protection, the user's own module, and "ReLU, then clamp".

Arms of a case share their weights and alternate in blocks, in an order drawn anew for each block; a ratio is the median
over blocks of the ratio within a block, its interval holds whatever the distribution. Weights are random: time does
not depend on them.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hoplon as hp
from hoplon.comparison.costs.latency import Overheads, conditions, measure
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.protections.base import Overlay, ValueProtection, overlay
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.passes import added_passes
from hoplon.zoo import resolve_model

MODELS = ("resnet50", "vgg16", "mobilenet_v3_large")
BATCHES = (1, 8)
MODES = ("eager", "compiled")
FORMS = ("fused", "separate")
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MIN_BLOCKS = 6  # fewer have no 95 % interval of a median
# On a busy machine too: time given to others is left out, and a large batch is made of small images.
QUICK = {"models": ("resnet50",), "batches": BATCHES, "modes": ("eager",), "clock": "cpu"}
QUICK_SECONDS = 34.0  # until the last case ends; importing, and the fewest blocks there can be, come on top
QUICK_PIXELS = {8: 112}


@dataclass(frozen=True)
class Naive(ValueProtection):
    """What one writes by hand: a float clamp after the operator, out of place. NaN passes through it."""

    low: float
    high: float

    def __call__(self, value: Tensor) -> Tensor:
        return value.clamp(self.low, self.high)

    apply_ = __call__


@dataclass(frozen=True)
class Case:
    """One model at one batch size in one mode, one form of the bounds.

    ``ratio`` is to the same lowering without protection, ``ratio_high`` the upper end of its 95 % interval;
    ``ratio_original`` is to the user's module; ``ratio_naive`` is that of the naive clamp to the same lowering.
    ``added_passes`` walk over outputs of activations, ``added_passes_elsewhere`` over those of pools and the like.
    """

    model: str
    batch: int
    pixels: int
    mode: str
    form: str
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_original: float
    ratio_original_high: float
    ratio_naive: float
    added_passes: int
    added_passes_elsewhere: int
    added_bytes: int
    bounded_ops: int
    median_ms: float
    baseline_ms: float
    blocks: int


def naive(program: hp.Program, bounds: Overlay) -> HardenedModule:
    """The program with a clamp at every site that the overlay bounds."""
    effects = {name: Naive(effect.low, effect.high) for name, effect in bounds.values.items()}
    return hp.runtime.lower(program, Overlay("naive", effects), copy=False)


def arms_of(model: nn.Module, program: hp.Program, calibration: Tensor) -> dict[str, nn.Module]:
    """Every arm of a model, on the same weights."""
    bounds = overlay(program, [hp.Ranger(hp.profile_ranges(program, calibration))])
    return {
        "none": hp.runtime.lower(program, Overlay(), copy=False),
        "original": model,
        "naive": naive(program, bounds),
        **{form: hp.runtime.lower(program, bounds, copy=False, form=form) for form in FORMS},
    }


def timed(arms: Mapping[str, nn.Module], x: Tensor, seconds: float, options: argparse.Namespace) -> Overheads:
    """As many blocks as fit into the seconds, after a first look at how long a call takes."""
    start = time.perf_counter()
    with torch.inference_mode():  # kernels are chosen and memory is taken once
        if not torch.allclose(arms["none"](x), arms["original"](x), rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"expected what the user's module gives at {tuple(x.shape)}, got other outputs")
        before = time.perf_counter()
        for arm in arms.values():
            arm(x)
    spent = time.perf_counter() - before
    calls = max(1, round(0.02 * len(arms) / spent))  # at least about 20 ms per arm and block
    left = seconds - (time.perf_counter() - start) - spent  # it warms up once more
    blocks = max(MIN_BLOCKS, math.floor(left / (spent * calls)))
    clock = CLOCKS[options.clock]
    return measure(arms, x, baseline="none", blocks=blocks, calls=calls, seed=options.seed, clock=clock)


def compiled(arms: Mapping[str, nn.Module], x: Tensor) -> dict[str, nn.Module]:
    """The arms compiled for this very shape."""
    torch.compiler.reset()
    made = {name: torch.compile(arm, dynamic=False) for name, arm in arms.items()}
    with torch.inference_mode():
        for arm in made.values():
            arm(x)
    return made


def passes_of(program: hp.Program, module: HardenedModule) -> tuple[int, int]:
    """Passes added over activations' outputs, and over others'."""
    kinds = {site.name: site.kind for site in program.value_sites}
    found = added_passes(module)
    own = sum(count for site, count in found.items() if kinds[site] in ACTIVATION_KINDS)
    return own, sum(found.values()) - own


def cases_of(name: str, options: argparse.Namespace) -> Iterator[Case]:
    """All cases of one model."""
    made = resolve_model(f"torchvision:{name}", seed=options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    shape = (3, options.pixels, options.pixels)
    model = made.module.to(options.device)
    program = hp.capture(model, torch.randn(2, *shape, generator=generator).to(options.device))
    arms = arms_of(model, program, torch.randn(4, *shape, generator=generator).to(options.device))
    for mode in options.modes:
        for number, batch in enumerate(options.batches):
            pixels = QUICK_PIXELS.get(batch, options.pixels) if options.quick else options.pixels
            x = torch.randn(batch, 3, pixels, pixels, generator=generator).to(options.device)
            running = arms if mode == "eager" else compiled(arms, x)
            seconds = options.seconds
            if options.quick:
                seconds = (options.end - time.perf_counter()) / (len(options.batches) - number)
            found = timed(running, x, seconds, options)
            for form in options.forms:
                module = arms[form]
                yield case_of(name, x, mode, form, found, module, passes_of(program, module))


def case_of(
    name: str, x: Tensor, mode: str, form: str, found: Overheads, module: HardenedModule, passes: tuple[int, int]
) -> Case:
    own, original = found[form], found.versus("original")[form]
    effects = module.overlay.values.values()
    return Case(
        model=name,
        batch=x.shape[0],
        pixels=x.shape[-1],
        mode=mode,
        form=form,
        ratio=own.ratio,
        ratio_low=own.low,
        ratio_high=own.high,
        ratio_original=original.ratio,
        ratio_original_high=original.high,
        ratio_naive=found["naive"].ratio,
        added_passes=passes[0],
        added_passes_elsewhere=passes[1],
        added_bytes=sum(effect.extra_bytes for effect in effects),
        bounded_ops=len(effects),
        median_ms=own.median_ms,
        baseline_ms=found["none"].median_ms,
        blocks=own.blocks,
    )


def shown(cases: Sequence[Case], title: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", expand=True)
    table.caption = (
        "ratio: to the same lowering without protection, median over blocks [95 %]; naive: the same for a clamp after "
        "each operator; passes: added over activations + over other bounded operators"
    )
    for heading in (
        "model",
        "batch",
        "pixels",
        "mode",
        "form",
        "ratio",
        "to original",
        "naive",
        "blocks",
        "passes",
        "bytes/op",
    ):
        table.add_column(heading)
    for case in cases:
        table.add_row(
            case.model,
            str(case.batch),
            str(case.pixels),
            case.mode,
            case.form,
            f"{case.ratio:.4f} [{case.ratio_low:.4f}, {case.ratio_high:.4f}]",
            f"{case.ratio_original:.4f}",
            f"{case.ratio_naive:.4f}",
            str(case.blocks),
            f"{case.added_passes} + {case.added_passes_elsewhere}",
            f"{case.added_bytes / case.bounded_ops:.0f}",
        )
    return table


def conditions_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        **conditions(torch.device(options.device)),
        "clock": options.clock,
        "dtype": "float32",
        "seed": options.seed,
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and cases there")
    parser.add_argument("--quick", action="store_true", help="ResNet-50, eager, under 50 seconds")
    parser.add_argument("--models", nargs="+", default=MODELS, help="torchvision classification models")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of measuring, per model, batch and mode")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu leaves out time given to others")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, value)
    options.end = time.perf_counter() + QUICK_SECONDS
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    console, progress = Console(width=140), Console(stderr=True)
    cases: list[Case] = []
    for name in options.models:
        with progress.status(name), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")  # torch about its own compiler
            warnings.filterwarnings("ignore", message="ranges not converged")  # any bounds cost the same time
            cases.extend(cases_of(name, options))
    found = conditions_of(options)
    console.print(shown(cases, ", ".join(f"{key} {value}" for key, value in found.items())))
    if options.json is not None:
        content = {"conditions": found, "cases": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
