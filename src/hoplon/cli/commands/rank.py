"""``hoplon rank MODEL DATA``: a score for every weight, and where the important ones are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from typer import Option

from hoplon.campaign.executors import torch_threads
from hoplon.cli.console import print_status, progress_bars, show
from hoplon.cli.loading import load_program
from hoplon.cli.options import components as parts
from hoplon.cli.options.campaign_file import with_fields
from hoplon.cli.options.command_line import FAULTS, SCORING, AsJson, Data, Model, Samples, Seed, Threads
from hoplon.cli.output_folder import require_file
from hoplon.comparison.learned import Learned
from hoplon.errors import no_match
from hoplon.faults.multi_word import check_words
from hoplon.importance._layerwise import layerwise
from hoplon.importance.analysis import by_layer, heat_map, magnitudes
from hoplon.importance.scores import NOTE, Scores
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.registry import components
from hoplon.report.document import plain
from hoplon.report.ranking import by_layer_figure, heat_map_figure, write_ranking
from hoplon.report.text import percent
from hoplon.report.text_table import TextTable
from hoplon.zoo.resolve import resolve_data


def command(
    model: Model,
    data: Data,
    *,
    out: Annotated[Path, Option(help="File for the scores, safetensors.")] = Path("scores.safetensors"),
    seed: Seed = 0,
    as_json: AsJson = False,
    score: Annotated[
        str, Option(help="Score of a weight's importance; see hoplon ls scores.", rich_help_panel=SCORING)
    ] = "taylor",
    fraction: Annotated[
        float,
        Gt(0),
        Le(1),
        Option(help="Share of all weights that counts as most and as least important.", rich_help_panel=SCORING),
    ] = 0.01,
    within_layers: Annotated[
        bool, Option("--layerwise", help="Rank within each layer only.", rich_help_panel=SCORING)
    ] = False,
    fault: Annotated[
        str, Option(help="Fault model, for scores that depend on one; see hoplon ls faults.", rich_help_panel=FAULTS)
    ] = "bitflip",
    flips: Annotated[str | None, Option(help="Bits flipped per word, likewise.", rich_help_panel=FAULTS)] = None,
    samples: Samples = None,
    sites: Annotated[
        list[str] | None,
        Option(help="Pattern of parameter names; repeatable (default: all).", rich_help_panel=SCORING),
    ] = None,
    kind: Annotated[
        list[str] | None,
        Option(help="Kind of operator that reads them (default: conv, linear).", rich_help_panel=SCORING),
    ] = None,
    batch: Annotated[
        int, Ge(1), Option(help="Samples per gradient; scores by gradients depend on it.", rich_help_panel=SCORING)
    ] = 64,
    page: Annotated[Path | None, Option(help="HTML file for the figures (default: not written).")] = None,
    threads: Threads = None,
) -> None:
    """Score every weight on calibration data, and tell where the most and the least important ones are."""
    for file, mark in ((out, NOTE.encode()), (page, b"<title>hoplon")):
        if file is not None:
            require_file(file, mark)
    if score not in components("score"):
        raise no_match("score", score, [*components("score")])
    model_of_faults = parts.fault_model(with_fields("fault", fault, {} if flips is None else {"count": flips}))
    with torch_threads(threads):
        loaded = resolve_data(data)
        status = f"hoplon rank: {model} on {data}, {score}, seed {seed}"
        _, program = load_program(model, seed=seed, status=status, data=loaded.calibration)
        selected = Memory(tuple(sites or ("*",)), kind=tuple(kind or ("conv", "linear")), buffers=False)
        check_words(model_of_faults, selected.select(program))
        known = loaded.calibration.sample(samples, seed=seed)
        with progress_bars() as report_progress:
            learned = Learned(program, known, seed=seed, progress=report_progress)
            found = learned.scores(score=score, sites=selected, batch=batch, fault_model=model_of_faults)
    found = layerwise(found) if within_layers else found
    document = described(program, found, fraction)
    found.save(out)
    if page is not None:
        figures = [by_layer_figure(by_layer(found, fraction), fraction=fraction), heat_map_figure(heat_map(found))]
        write_ranking(page, f"{found.score} of the weights of {program.name}", figures)
    show(document | {"scores": str(out)}, _tables(document), as_json=as_json)
    print_status(f"wrote {out}" + (f" and {page}" if page else ""))


def described(program: Program, scores: Scores, fraction: float) -> dict[str, Any]:
    """What was found, as plain values."""
    layers = plain(by_layer(scores, fraction).to_dicts())
    names = ("score", "data", "n_samples", "batch", "loss", "fingerprint")
    return {
        "format": 1,
        "model": program.name,
        **{name: getattr(scores, name) for name in names},
        "fraction": fraction,
        "weights": scores.total,
        "important": scores.count(fraction),
        "critical_share_of_first_layer": layers[0]["top_of_layer"],
        "by_layer": layers,
        "magnitudes": plain(magnitudes(program, scores, fraction=fraction).to_dicts()),
    }


def _tables(document: Mapping[str, Any]) -> list[TextTable]:
    percent_sign = f"{100 * document['fraction']:g} %"
    of = f"{document['data']}, {document['n_samples']:,} samples" if document["n_samples"] else "no data"
    title = (
        f"{document['model']}: {document['score']} ({of}); {document['important']:,} of {document['weights']:,} "
        f"weights are the top {percent_sign}"
    )
    layers = []
    for row in document["by_layer"]:
        cells = [cell for end in ("top", "bottom") for cell in (f"{row[end]:,}", percent(row[f"{end}_of_layer"]))]
        mean = "" if row["score"] is None else f"{row['score']:.3g}"
        layers.append([row["layer"], f"{row['weights']:,}", *cells, mean])
    ends = [part for end in ("top", "bottom") for part in (f"{end} {percent_sign}", "of the layer")]
    statistics = ("n", "min", "q25", "median", "q75", "max", "low_cutoff", "high_cutoff")
    sizes = [
        [row["weights"], *("" if row[key] is None else f"{row[key]:,.3g}" for key in statistics)]
        for row in document["magnitudes"]
    ]
    return [
        TextTable(title, ("layer", "weights", *ends, "mean"), layers),
        TextTable(
            "Magnitude of the weights; cutoffs of the 100 smallest and largest",
            ("weights", *(key.replace("_", " ") for key in statistics)),
            sizes,
        ),
    ]
