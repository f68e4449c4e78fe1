"""``hoplon harden MODEL``: the model with bounds as a file that runs without hoplon, or with guards as a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typer import Option

from hoplon.cli.console import print_status, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.bounds import (
    InherentOption,
    LastLinear,
    PolicyOption,
    SaturatingOption,
    Where,
    coverage_table,
    inherent_for,
    listed,
)
from hoplon.cli.options.command_line import AsJson, Model, Seed
from hoplon.cli.options.components import guards, named
from hoplon.cli.options.schema import Problems
from hoplon.cli.output_folder import require_file, require_folder, require_writable
from hoplon.errors import HoplonError
from hoplon.program.given.example import Example
from hoplon.protections.export.bundle import save_bundle
from hoplon.protections.export.formats import export_aoti, export_onnx, export_pt2
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import Form, harden as hardened
from hoplon.protections.values.ranger import Ranger

EXPORTS: Mapping[str, Callable[[HardenedModule, Path], None]] = {
    ".aoti.pt2": export_aoti,
    ".pt2": export_pt2,
    ".onnx": export_onnx,
}
"""By ending of the file, how it is written; the first that fits."""


def command(
    model: Model,
    *,
    ranges: Annotated[
        Path | None,
        Option(help="ranges.json of hoplon profile (default: own ranges of functions)."),
    ] = None,
    where: Where = "algorithm1",
    last_linear: LastLinear = False,
    inherent: InherentOption = "one-sided",
    saturating: SaturatingOption = "output",
    policy: PolicyOption = "clamp",
    leave_unprofiled: Annotated[bool, Option("--leave-unprofiled", help="Keep activations without a bound.")] = False,
    form: Annotated[Form, Option(help="A bound after each operator, or one integer clamp per ReLU.")] = "separate",
    bounds: Annotated[
        bool | None,
        Option("--bounds/--no-bounds", help="Bounds in the graph (default: unless there are guards and no --ranges)."),
    ] = None,
    guard: Annotated[
        list[str] | None,
        Option(help="Guard of the weights: parity, aspis:1%, ...; repeatable."),
    ] = None,
    scores: Annotated[Path | None, Option(help="Scores from hoplon rank, for --guard aspis.")] = None,
    when: Annotated[
        str | None, Option(help="When guards check: every, every:4, rotating:16, demand (default: every).")
    ] = None,
    out: Annotated[
        Path,
        Option(
            help="File to write: .pt2, .onnx, or .aoti.pt2 for a package compiled ahead of time; or, with guards, "
            "the folder of a bundle."
        ),
    ] = Path("hardened.pt2"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Bound a model's values, guard its weights, and export it; list what is bounded, what is not, and why."""
    if bounds is None:
        bounds = not guard or ranges is not None
    write = _writer(out, guarded=bool(guard))
    problems = Problems()
    protections = problems.of(guards, guard or [], scores=scores)
    due = problems.of(named, "--when", when or "every", "schedule")
    if when is not None and not guard:
        problems.add("--when", f"expected a guard that checks, got {when} and no --guard; add --guard parity")
    replacement = problems.of(named, "--policy", policy, "policy", learn={"seed": lambda: seed})
    problems.refuse()
    if not bounds and not protections:
        raise HoplonError("expected bounds or guards, got --no-bounds and no --guard; --guard parity")
    require_writable(out.parent)
    if write is save_bundle:
        require_folder(out)
    else:
        require_file(out, b"aotinductor" if write is export_aoti else b"hoplon")
    known = None if ranges is None else Ranges.load(ranges.expanduser())
    chosen, program = load_program(model, seed=seed, status=f"hoplon harden: {model}, seed {seed}")
    rows = []
    if bounds:
        bound = Ranger(
            inherent_for(program) if known is None else known,
            where=where,
            last_linear=last_linear,
            policy=replacement,
            unprofiled="leave" if leave_unprofiled else "refuse",
            inherent=inherent,
            saturating=saturating,
        )
        protections, rows = [bound, *protections], listed(bound.coverage(program))
    module = hardened(program, protections, form=form, when=due)
    write(module, out)
    document: dict[str, Any] = {
        "format": 1,
        "model": model,
        "seed": seed,
        "ranges": None if ranges is None else str(ranges),
        "where": where,
        "policy": policy,
        "form": form,
        "protection": module.overlay.label,
        "guards": _guards_of(module),
        "when": module.monitor.when.text if module.monitor.guards else None,
        "out": str(out),
        "bytes": sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir())),
        "bounded": sum(row["low"] is not None for row in rows),
        "sites": rows,
        "example_unchanged": _unchanged(module, chosen.module, chosen.example),
    }
    title = f"{document['bounded']} of {len(rows)} operator outputs are bounded"
    told = [f"{row['label']}, {row['extra_bytes']:,} bytes: {row['guarantee']}" for row in document["guards"]]
    paragraphs = [("Guards", [*told, document["when"]])] if told else []
    show(document, [coverage_table(rows, title)] if bounds else [], paragraphs, as_json=as_json)
    if not document["example_unchanged"]:
        print_status("The model's example batch has values outside of the bounds; see hoplon profile on held-out data.")
    print_status(f"wrote {out}")


def _guards_of(module: HardenedModule) -> list[dict[str, Any]]:
    """List what each guard promises and holds."""
    guards = [protection for protection in module.protections if not isinstance(protection, Ranger)]
    return [
        {"label": protection.label, "guarantee": protection.guarantee, "extra_bytes": armed.extra_bytes}
        for protection, armed in zip(guards, module.monitor.guards, strict=True)
    ]


def _writer(out: Path, *, guarded: bool) -> Callable[[HardenedModule, Path], None]:
    for ending, write in EXPORTS.items():
        if out.name.endswith(ending):
            if guarded:
                raise HoplonError(
                    f"expected a folder for bounds and guards, got --out {out}; a file holds bounds alone"
                )
            return write
    if out.suffix and not guarded:
        raise HoplonError(f"expected --out to end in {', '.join(EXPORTS)}, got {out}; a folder becomes a bundle")
    return save_bundle


def _unchanged(module: HardenedModule, model: torch.nn.Module, example: Tensor | Example) -> bool:
    args, kwargs = Example.of(example).call
    with torch.inference_mode():
        pairs = zip(
            pytree.tree_leaves(module(*args, **kwargs)), pytree.tree_leaves(model(*args, **kwargs)), strict=True
        )
        return all(torch.equal(torch.as_tensor(one), torch.as_tensor(other)) for one, other in pairs)
