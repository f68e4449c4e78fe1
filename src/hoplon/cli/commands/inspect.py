"""``hoplon inspect MODEL``: layers, sites, and how many different faults there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hoplon.cli.console import say, show, show_json, told_training
from hoplon.cli.output_folder import OutputFolder
from hoplon.program.capturing import capture
from hoplon.program.inspection import FaultSpace, Inspection, inspect as inspected
from hoplon.program.sites import MemorySite, Site, ValueSite
from hoplon.report.document import write_document
from hoplon.zoo.resolve import resolve_model

_SPACE = {
    "single": "one bit",
    "double": "two bits of a word",
    "double_ordered": "two bits in order, as Aspis Table II counts",
    "triple": "three bits of a word",
    "triple_paper": "three bits as Aspis Table II counts",
}


def inspect(
    model: Annotated[
        str, typer.Argument(help="A zoo name, torchvision:NAME, package.module:factory or file.py:factory.")
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for inspection.json; not written by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights that are drawn or trained here.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")] = False,
) -> None:
    """List what in a model can be hit (layers, operator outputs, parameters, buffers), and count possible faults."""
    folder = None if out is None else OutputFolder.prepare(out)
    chosen = resolve_model(model, seed=seed, progress=told_training)
    found = inspected(capture(chosen.module, chosen.example, name=chosen.name))
    document = found.to_dict()
    if folder is not None:
        say(f"wrote {write_document(folder.path / 'inspection.json', document)}")
    if as_json:
        show_json(document)
    else:
        unread = [f"{name} ({numel:,})" for name, numel in found.unread.items()]
        paragraphs = [("Storages that nothing reads, in no count (elements)", unread)] if unread else []
        show([_layers(found), _values(found), _memory(found), _space(found)], paragraphs)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and column in ("elements", "values", "memory") else "left")
    return table


def _layers(found: Inspection) -> Table:
    table = _table(f"{found.program.name}: {len(found.layers)} layers", ("layer", "operators", "values", "memory"))
    for layer in found.layers:
        table.add_row(layer.name, ", ".join(layer.kinds), f"{layer.values:,}", f"{layer.memory:,}")
    return table


def _values(found: Inspection) -> Table:
    title = f"{len(found.values)} value sites: operator outputs of one sample; inputs on request (kind input)"
    table = _table(title, ("site", "kind", "shape", "dtype", "elements"))
    for site in (*found.inputs, *found.values):
        table.add_row(site.name, site.kind, *_shown(site))
    return table


def _memory(found: Inspection) -> Table:
    title = f"{len(found.memory)} memory sites: storages of parameters and buffers"
    table = _table(title, ("site", "read by", "shape", "dtype", "elements"))
    for site in found.memory:
        names = " = ".join((site.name, *site.aliases)) + (" (buffer)" if site.is_buffer else "")
        table.add_row(names, ", ".join(sorted(site.kinds)), *_shown(site))
    return table


def _shown(site: ValueSite | MemorySite) -> tuple[str, str, str]:
    shape = " x ".join(map(str, site.shape)) or "scalar"
    return shape, str(site.dtype).removeprefix("torch."), f"{site.numel:,}"


def _space(found: Inspection) -> Table:
    weights = found.conv_weights
    columns: dict[str, Sequence[Site]] = {
        f"convolution weights ({len(weights)} layers)": weights,
        "all memory": found.memory,
        "values of one input": found.values,
    }
    table = Table(title="Size of the fault space: different faults of one word", title_justify="left")
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("elements", *(f"{sum(site.numel for site in sites):,}" for sites in columns.values()))
    spaces = [FaultSpace.of(sites).to_dict() for sites in columns.values()]
    for key, title in _SPACE.items():
        table.add_row(title, *(f"{space[key]:,}" for space in spaces))
    return table
