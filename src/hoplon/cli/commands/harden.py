"""``hoplon harden MODEL``: the model with bounds as a file that runs without hoplon, or with guards as a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from hoplon.cli.console import say, show, show_json, told_training
from hoplon.cli.options.bounds import Bounded, FormName, PolicyName, coverage_table, listed, ranger, ranges_for
from hoplon.cli.options.guards import GUARDS, SCHEDULES, guards, schedule
from hoplon.errors import HoplonError, StoreError
from hoplon.program.capturing import capture
from hoplon.protections.export.bundle import save_bundle
from hoplon.protections.export.formats import export_aoti, export_onnx, export_pt2
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import harden as hardened
from hoplon.protections.values.ranger import Ranger
from hoplon.zoo.resolve import resolve_model

EXPORTS: Mapping[str, Callable[[HardenedModule, Path], None]] = {
    ".aoti.pt2": export_aoti,
    ".pt2": export_pt2,
    ".onnx": export_onnx,
}
"""By ending of the file, how it is written; the first that fits."""


def harden(
    model: Annotated[
        str, typer.Argument(help="A zoo name, torchvision:NAME, package.module:factory or file.py:factory.")
    ],
    *,
    ranges: Annotated[
        Path | None,
        typer.Option(help="ranges.json of hoplon profile; without, only functions with a range of their own."),
    ] = None,
    where: Annotated[Bounded, typer.Option(help="Which operators get a bound.")] = Bounded.ALGORITHM1,
    policy: Annotated[
        PolicyName, typer.Option(help="What becomes of a value outside; detect cannot be exported.")
    ] = PolicyName.CLAMP,
    leave_unprofiled: Annotated[
        bool, typer.Option("--leave-unprofiled", help="Leave activations without a known bound as they are.")
    ] = False,
    form: Annotated[
        FormName, typer.Option(help="A bound after each operator, or one integer clamp in the place of a ReLU.")
    ] = FormName.SEPARATE,
    bounds: Annotated[bool, typer.Option(help="Put bounds into the graph; without, there are guards alone.")] = True,
    guard: Annotated[
        list[str] | None, typer.Option(help=f"A guard of the weights, as often as you like: {GUARDS}.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Scores of the weights, from hoplon rank, for --guard aspis.")
    ] = None,
    when: Annotated[str, typer.Option(help=f"When guards check: {SCHEDULES}.")] = "every",
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .pt2, .onnx, or .aoti.pt2 for a package compiled ahead of time; or, with guards, "
            "the folder of a bundle."
        ),
    ] = Path("hardened.pt2"),
    seed: Annotated[int, typer.Option(help="Of weights drawn or trained here, and of random replacements.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of a table.")] = False,
) -> None:
    """Bound a model's values, guard its weights, and export it; list what is bounded, what is not, and why."""
    write = _writer(out, guarded=bool(guard))
    protections, due = guards(guard or [], scores=scores), schedule(when)
    if not bounds and not protections:
        raise HoplonError("expected bounds or guards, got --no-bounds and no --guard; --guard parity")
    _require_writable(out)
    chosen = resolve_model(model, seed=seed, progress=told_training)
    say(f"hoplon harden: {model}, seed {seed}")
    program = capture(chosen.module, chosen.example, name=chosen.name)
    rows = []
    if bounds:
        bound = ranger(
            ranges_for(program, ranges), where=where, policy=policy, seed=seed, leave_unprofiled=leave_unprofiled
        )
        protections, rows = [bound, *protections], listed(bound.coverage(program))
    module = hardened(program, protections, form=form.form, when=due)
    write(module, out)
    document: dict[str, Any] = {
        "format": 1,
        "model": model,
        "seed": seed,
        "ranges": None if ranges is None else str(ranges),
        "where": where.value,
        "policy": policy.value,
        "form": form.value,
        "protection": module.overlay.label,
        "guards": _guards_of(module),
        "when": module.monitor.when.text if module.monitor.guards else None,
        "out": str(out),
        "bytes": sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir())),
        "bounded": sum(row["low"] is not None for row in rows),
        "sites": rows,
        "example_unchanged": _unchanged(module, chosen.module, chosen.example),
    }
    if as_json:
        show_json(document)
    else:
        title = f"{document['bounded']} of {len(rows)} operator outputs are bounded"
        told = [f"{row['label']}, {row['extra_bytes']:,} bytes: {row['guarantee']}" for row in document["guards"]]
        show([coverage_table(rows, title)] if bounds else [], [("Guards", [*told, document["when"]])] if told else [])
    if not document["example_unchanged"]:
        say("the model's example batch has values beyond the bounds; hoplon profile tells how often held-out data has")
    say(f"wrote {out}")


def _guards_of(module: HardenedModule) -> list[dict[str, Any]]:
    """What each guard promises and holds."""
    guarding = [protection for protection in module.protections if not isinstance(protection, Ranger)]
    return [
        {"label": protection.label, "guarantee": protection.guarantee, "extra_bytes": armed.extra_bytes}
        for protection, armed in zip(guarding, module.monitor.guards, strict=True)
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


def _require_writable(out: Path) -> None:
    """Refuse before the work what could not be written after it."""
    probe = out.with_name(f".{out.name}.probe")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"expected a writable place, got {out} ({error.strerror or error}); choose another with --out"
        ) from error


def _unchanged(module: HardenedModule, model: torch.nn.Module, example: torch.Tensor) -> bool:
    with torch.inference_mode():
        return bool(torch.equal(torch.as_tensor(module(example)), torch.as_tensor(model(example))))
