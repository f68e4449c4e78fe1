"""``hoplon profile MODEL DATA``: the fault-free range of every activation, and how much to trust it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from typer import Option

from hoplon.campaign.executors import torch_threads
from hoplon.cli.console import duration, print_status, progress_bars, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.bounds import SaturatingOption, coverage_table, listed
from hoplon.cli.options.command_line import AsJson, Data, Model, Samples, Seed, Threads
from hoplon.cli.output_folder import require_writable
from hoplon.errors import HoplonError
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.ranges.activation_sites import activations
from hoplon.protections.ranges.profile import Profile, QuantileOf
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.ranges.saturation import Saturating, saturating_inputs
from hoplon.protections.values.exceedance import Exceedances, exceedances
from hoplon.protections.values.ranger import Ranger, Where, last_linear
from hoplon.report.document import with_limits, write_document
from hoplon.report.text import interval, percent
from hoplon.report.text_table import TextTable
from hoplon.zoo.resolve import resolve_data

_TOLERANCE_HELP = "Relative growth of a bound in the second half of the data above which it counts as not converged."
_Names = Annotated[list[str] | None, Option(help="Pattern on names of sites to profile; repeatable.")]


def command(
    model: Model,
    data: Data,
    *,
    out: Annotated[Path, Option(help="Folder for ranges.json, profile.json and results.json.")] = Path(
        "hoplon-profile"
    ),
    seed: Seed = 0,
    as_json: AsJson = False,
    samples: Samples = None,
    quantile: Annotated[float | None, Gt(0), Le(1), Option(help="Share of all values within the bounds.")] = None,
    image_quantile: Annotated[
        float | None, Gt(0), Le(1), Option(help="Share of images with all values within the bounds.")
    ] = None,
    per_channel: Annotated[bool, Option("--per-channel", help="Add a bound for each channel.")] = False,
    medians: Annotated[bool, Option("--medians", help="Add bound and median of each channel.")] = False,
    channel_axis: Annotated[int | None, Option(help="Axis of channels in a sample; -1: channels last.")] = None,
    sites: _Names = None,
    all_operators: Annotated[bool, Option("--all", help="Profile all operators, not activations alone.")] = False,
    saturating: SaturatingOption = "output",
    merge: Annotated[list[Path] | None, Option(help="profile.json to add; repeatable.")] = None,
    tolerance: Annotated[float, Ge(0), Option(help=_TOLERANCE_HELP)] = 0.1,
    batch: Annotated[int, Ge(1), Option(help="Samples per forward pass.")] = 64,
    threads: Threads = None,
) -> None:
    """Observe fault-free values on calibration data and write bounds; tell convergence, exceedances and cost."""
    share, of = _quantile(quantile, image_quantile)
    require_writable(out)
    others = [Profile.load(path) for path in merge or ()]
    with torch_threads(threads):
        loaded = resolve_data(data)
        _, program = load_program(
            model, seed=seed, status=f"hoplon profile: {model} on {data}, seed {seed}", data=loaded.calibration
        )
        wanted = Values(tuple(sites)) if sites else Values() if all_operators else None
        with progress_bars() as report_progress:
            found = profile_activations(
                program,
                loaded.calibration.sample(samples, seed=seed),
                sites=wanted,
                saturating=saturating,
                quantiles=share != 1 or medians,
                per_channel=per_channel or medians,
                channel_axis=channel_axis,
                batch=batch,
                tolerance=math.inf,
                progress=partial(report_progress, "samples"),
            )
        for other in others:
            found = found.merge(other)
        options: dict[str, Any] = {"per_channel": per_channel, "medians": medians}
        ranges = found.ranges(quantile=share, quantile_of=of, **options)
        document = {
            "format": 1,
            "model": model,
            "data": data,
            "seed": seed,
            "ranges": str(out / "ranges.json"),
            **_document(program, found, _bounding(program, ranges, saturating), loaded.held_out, tolerance),
        }
    ranges.save(out / "ranges.json")
    found.save(out / "profile.json")
    write_document(out / "results.json", document)
    tables = [coverage_table(document["sites"], _title(document)), _convergence(document)]
    show(document, tables, _sentences(document), as_json=as_json)
    if document["unconverged"]:
        growing = f"{len(document['unconverged'])} of {len(found.sites)}"
        print_status(f"Not converged: {growing} ranges still grew; profile more data.")
    files = [str(out / name) for name in ("ranges.json", "profile.json", "results.json")]
    print_status(f"wrote {', '.join(files)}")


def _quantile(of_values: float | None, of_images: float | None) -> tuple[float, QuantileOf]:
    if of_values is not None and of_images is not None:
        raise HoplonError("expected --quantile (of values) or --image-quantile (of image maxima), got both")
    if of_images is not None:
        return of_images, "image-maxima"
    return 1.0 if of_values is None else of_values, "values"


def _bounding(program: Program, ranges: Ranges, saturating: Saturating) -> Ranger:
    """The protection that bounds whatever was profiled."""
    entering = saturating_inputs(program) if saturating == "input" else {}
    where: Where = "algorithm1" if ranges.bounds.keys() <= activations(program).sites.keys() | entering else "all"
    last = any(name in ranges and (where == "all" or name not in entering) for name in last_linear(program))
    return Ranger(ranges, where=where, last_linear=last, unprofiled="leave", saturating=saturating)


def _document(
    program: Program, found: Profile, protection: Ranger, held_out: Inputs, tolerance: float
) -> dict[str, Any]:
    ranges = protection.ranges
    exceeded = exceedances(program, [protection], held_out)
    return {
        "choice": ranges.choice,
        "n_samples": found.n_samples,
        "calibration": found.data,
        "cost": {"seconds": found.seconds, "ms_per_sample": 1e3 * found.seconds / found.n_samples},
        "bounds": {name: {"low": bound.low, "high": bound.high} for name, bound in ranges.bounds.items()},
        "channels": {name: len(bounds.channels) for name, bounds in ranges.channels.items()},
        "sites": listed(protection.coverage(program)),
        "convergence": [
            {"samples": count, "least": min(shares.values()), "median": median(shares.values())}
            for count, shares in found.convergence()
        ],
        "unconverged": found.unconverged(tolerance=tolerance),
        "held_out": _exceeded(exceeded),
        "versions": dict(found.versions),
    }


def _exceeded(found: Exceedances) -> dict[str, Any]:
    return {
        "images": found.images,
        "n_images": found.n_images,
        **with_limits("image_rate", found.image_rate),
        "values": sum(site.values for site in found.sites.values()),
        "n_values": sum(site.n_values for site in found.sites.values()),
        "by_site": {name: site.values for name, site in found.sites.items() if site.values},
    }


def _title(document: dict[str, Any]) -> str:
    return f"Bounds of {document['model']}: {document['choice']} over {document['n_samples']:,} samples"


def _convergence(document: dict[str, Any]) -> TextTable:
    rows = [
        (f"{row['samples']:,}", percent(row["least"], decimals=1), percent(row["median"], decimals=1))
        for row in document["convergence"]
    ]
    columns = ("samples", "least site", "median site")
    return TextTable("Convergence: share of its final range that a site had reached", columns, rows)


def _sentences(document: dict[str, Any]) -> list[tuple[str, list[str]]]:
    held, cost = document["held_out"], document["cost"]
    lines = [
        f"{held['images']:,} of {held['n_images']:,} images have a fault-free value outside of its bound: "
        f"{interval(held, 'image_rate')}, Wilson 95 %",
        f"{held['values']:,} of {held['n_values']:,} values lie outside",
    ]
    return [
        ("Calibration data", [f"{document['n_samples']:,} samples of {document['calibration'] or 'no name'}"]),
        ("Held-out data", lines),
        ("Cost", [f"{duration(cost['seconds'])}, {cost['ms_per_sample']:.2f} ms per sample, forward passes included"]),
    ]
