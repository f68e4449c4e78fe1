"""``hoplon inspect MODEL``: layers, sites, and how many different faults there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Option

from hoplon.cli.console import print_status, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.command_line import AsJson, Model, Seed
from hoplon.cli.output_folder import require_writable
from hoplon.program.inspection import FaultSpace, Inspection, inspect as inspected
from hoplon.program.sites import MemorySite, Site, ValueSite
from hoplon.report.document import write_document
from hoplon.report.text_table import TextTable

_SPACE = {
    "single": "one bit",
    "double": "two bits of a word",
    "double_ordered": "two bits in order, as Aspis Table II counts",
    "triple": "three bits of a word",
    "triple_paper": "three bits as Aspis Table II counts",
}


def command(
    model: Model,
    *,
    out: Annotated[Path | None, Option(help="Folder for inspection.json (default: not written).")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """List what in a model can be hit (layers, operator outputs, parameters, buffers), and count possible faults."""
    if out is not None:
        require_writable(out)
    _, program = load_program(model, seed=seed)
    inspection = inspected(program)
    document = inspection.to_dict()
    if out is not None:
        print_status(f"wrote {write_document(out / 'inspection.json', document)}")
    unread = [f"{name} ({numel:,})" for name, numel in inspection.unread.items()]
    paragraphs = [("Storages that nothing reads, in no count (elements)", unread)] if unread else []
    if unstruck := [
        f"{name}: {row.nbytes:,} bytes, {row.nbytes / inspection.stored_bytes:.1%} ({row.reason})"
        for name, row in inspection.unstruck.items()
    ]:
        paragraphs.append(("Neither struck nor guarded, in no count (share of all bytes)", unstruck))
    views = [view(inspection) for view in (_layers, _values, _memory, _space)]
    show(document, views, paragraphs, as_json=as_json)


def _layers(inspection: Inspection) -> TextTable:
    return TextTable(
        f"{inspection.program.name}: {len(inspection.layers)} layers",
        ("layer", "operators", "values", "memory"),
        [(layer.name, ", ".join(layer.kinds), f"{layer.values:,}", f"{layer.memory:,}") for layer in inspection.layers],
        left=("layer", "operators"),
    )


def _values(inspection: Inspection) -> TextTable:
    title = f"{len(inspection.values)} value sites: operator outputs of one sample; inputs on request (kind input)"
    return _sites(title, "kind", [(site.name, site.kind, site) for site in (*inspection.inputs, *inspection.values)])


def _memory(inspection: Inspection) -> TextTable:
    title = f"{len(inspection.memory)} memory sites: storages of parameters and buffers"
    rows = []
    for site in inspection.memory:
        names = " = ".join((site.name, *site.aliases)) + (" (buffer)" if site.is_buffer else "")
        rows.append((names, ", ".join(sorted(site.kinds)), site))
    return _sites(title, "read by", rows)


def _sites(title: str, kind: str, sites: Sequence[tuple[str, str, ValueSite | MemorySite]]) -> TextTable:
    words = ("site", kind, "shape", "dtype")
    rows = []
    for name, kinds, site in sites:
        shape = " x ".join(map(str, site.shape)) or "scalar"
        rows.append((name, kinds, shape, str(site.dtype).removeprefix("torch."), f"{site.numel:,}"))
    return TextTable(title, (*words, "elements"), rows, left=words)


def _space(inspection: Inspection) -> TextTable:
    weights = inspection.conv_weights
    columns: dict[str, Sequence[Site]] = {
        f"convolution weights ({len(weights)} layers)": weights,
        "all memory": inspection.memory,
        "values of one input": inspection.values,
    }
    spaces = [FaultSpace.of(sites).to_dict() for sites in columns.values()]
    elements = [f"{sum(site.numel for site in sites):,}" for sites in columns.values()]
    rows = [(title, *(f"{space[key]:,}" for space in spaces)) for key, title in _SPACE.items()]
    title = "Size of the fault space: different faults of one word"
    return TextTable(title, ("", *columns), [("elements", *elements), *rows])
