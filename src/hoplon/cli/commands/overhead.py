"""``hoplon overhead MODEL``: what bounds cost in time, memory and operations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from typer import Option

from hoplon.campaign.executors import torch_threads
from hoplon.cli.console import print_status, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.bounds import LastLinear, PolicyOption, Where
from hoplon.cli.options.command_line import AsJson, Model, Seed, Threads
from hoplon.cli.options.components import named
from hoplon.cli.output_folder import require_writable
from hoplon.comparison.costs.flops import CONVENTIONS, count_flops
from hoplon.comparison.costs.latency import Overheads, measure
from hoplon.program.given.example import Example
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.base import Overlay, overlay
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.runtime.passes import added_passes
from hoplon.protections.values.ranger import Ranger
from hoplon.report.document import plain, write_document
from hoplon.report.text_table import TextTable

BASELINE, ORIGINAL = "none", "original"


def command(
    model: Model,
    *,
    ranges: Annotated[Path | None, Option(help="ranges.json of hoplon profile (default: example batch).")] = None,
    where: Where = "algorithm1",
    last_linear: LastLinear = False,
    policy: PolicyOption = "clamp",
    batch: Annotated[int | None, Ge(1), Option(help="Samples per call (default: those of the example).")] = None,
    blocks: Annotated[int, Ge(6), Option(help="Number of blocks in which every arm runs; at least 6.")] = 30,
    calls: Annotated[int, Ge(1), Option(help="Number of calls of each arm in a block.")] = 5,
    threads: Threads = None,
    out: Annotated[Path | None, Option(help="Folder for overhead.json (default: not written).")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Time a model with its bounds in both forms, arms interleaved, beside no protection and the original."""
    if out is not None:
        require_writable(out)
    replacement = named("--policy", policy, "policy", learn={"seed": lambda: seed})
    given = None if ranges is None else Ranges.load(ranges.expanduser())
    with torch_threads(threads):
        chosen, program = load_program(model, seed=seed, status=f"hoplon overhead: {model}, seed {seed}")
        samples = Inputs(Example.of(chosen.example).x)
        known = _of_example(program, samples) if given is None else given
        size = batch or len(samples)
        leaves = program.leaves(samples.take(torch.arange(size) % len(samples)))
        args, kwargs = program.signature.call(leaves)
        first = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
        protection = Ranger(known, where=where, last_linear=last_linear, policy=replacement)
        arms = _arms(program, chosen.module, protection)
        calls_of = {name: lambda _, module=module: module(*args, **kwargs) for name, module in arms.items()}
        found = measure(calls_of, first, baseline=BASELINE, blocks=blocks, calls=calls, seed=seed)
        document = {
            "format": 1,
            "model": model,
            "seed": seed,
            "protection": protection.label,
            **_document(program, protection, arms, found),
            "batch": size,
        }
    if out is not None:
        print_status(f"wrote {write_document(out / 'overhead.json', document)}")
    show(document, [_table(document)], _sentences(document), as_json=as_json)


def _of_example(program: Program, example: Inputs) -> Ranges:
    """Bounds that cost what any others do."""
    return profile_activations(program, example, sites=Values(), quantiles=False, tolerance=math.inf).ranges()


def _arms(program: Program, model: nn.Module, protection: Ranger) -> dict[str, nn.Module]:
    bounds = overlay(program, [protection])
    forms = ("separate",) if not program.has_graph else ("separate", "fused")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what watching costs is what is measured here
        return {
            BASELINE: lower(program, Overlay(), copy=False),
            ORIGINAL: model,
            **{form: lower(program, bounds, copy=False, form=form) for form in forms},  # type: ignore[arg-type]
        }


def _document(program: Program, protection: Ranger, arms: Mapping[str, nn.Module], found: Overheads) -> dict[str, Any]:
    to_original = found.versus(ORIGINAL)
    effects = protection.values(program)
    rows = [
        {
            "name": arm.name,
            "median_ms": arm.median_ms,
            **arm.to_dict("ratio"),
            **to_original[arm.name].to_dict("ratio_original"),
            "added_passes": _passes(arms[arm.name]) if program.has_graph else None,
            **_flops(program, protection, arm.name),
        }
        for arm in found.arms
    ]
    return {
        "arms": rows,
        "bounded": len(effects),
        "extra_bytes": sum(effect.extra_bytes for effect in effects.values()),
        "blocks": found.arms[0].blocks,
        **{name: getattr(found, name) for name in ("calls", "confidence", "device", "threads")},
        "flops_conventions": dict(CONVENTIONS),
        "versions": {"torch": found.torch_version},
    }


def _passes(module: nn.Module) -> int:
    return sum(added_passes(module).values()) if isinstance(module, HardenedModule) else 0


def _flops(program: Program, protection: Ranger, form: str) -> dict[str, Any]:
    """Operations that an arm adds to those of the model, by convention; None where they cannot be counted."""
    names = [f"flops_{convention}" for convention in CONVENTIONS]
    if not program.has_graph or form in (BASELINE, ORIGINAL):
        return dict.fromkeys(names, None if not program.has_graph else 0.0)
    counts = [count_flops(program, [protection], convention=one, form=form) for one in CONVENTIONS]  # type: ignore[arg-type]
    return {name: plain(count.overhead) for name, count in zip(names, counts, strict=True)}


def _table(document: dict[str, Any]) -> TextTable:
    size, shape = document["bounded"], f"batch of {document['batch']}, {document['threads']} threads"
    rows = []
    for row in document["arms"]:
        ratios = [
            f"x {row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"
            for key in ("ratio", "ratio_original")
        ]
        flops = ["" if row[f"flops_{c}"] is None else f"+ {100 * row[f'flops_{c}']:.3f} %" for c in CONVENTIONS]
        passes = "" if row["added_passes"] is None else str(row["added_passes"])
        rows.append((row["name"], f"{row['median_ms']:.3g} ms", *ratios, passes, *flops))
    columns = ("arm", "median", "to none", "to original", "added passes", *(f"FLOPs, {c}" for c in CONVENTIONS))
    return TextTable(f"{document['model']}, {size} bounded operators, {shape}", columns, rows)


def _sentences(document: dict[str, Any]) -> list[tuple[str, list[str]]]:
    conditions = (
        f"medians over {document['blocks']} blocks of {document['calls']} calls, ratios within a block, "
        f"{100 * document['confidence']:g} %; none is the same lowering without bounds"
    )
    return [
        ("How", [conditions, f"bounds hold {document['extra_bytes']:,} bytes"]),
        ("FLOPs", list(document["flops_conventions"].values())),
    ]
