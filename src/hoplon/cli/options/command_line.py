"""Arguments and options that several commands take, each with one help text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

MODEL_HELP = "A zoo name, torchvision:NAME, package.module:factory or file.py:factory."
DATA_HELP = "A zoo name, an .npz file with x and y, or a factory."

Model = Annotated[str, Argument(help=MODEL_HELP)]
Data = Annotated[str, Argument(help=DATA_HELP)]
Seed = Annotated[int, Option(help="Seed of everything random: new weights, samples, faults, order of timing.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object on stdout instead of tables.")]
Threads = Annotated[int | None, Option(help="CPU threads (default: torch's own setting).")]
Batch = Annotated[int | None, Option(help="Samples per forward pass (default: chosen from the model's size).")]
Samples = Annotated[int | None, Option(help="Number of calibration samples (default: all).")]
ReportFolder = Annotated[Path, Option(help="Folder for report.html, results.json and the runs.")]
ResumeArms = Annotated[
    bool, Option("--resume", help="Resume the interrupted run in --out: its finished arms are not run again.")
]


def command_of(context: typer.Context) -> str:
    """Return the command that gives the same figures again: arguments and options with their values."""
    parts = ["hoplon", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in ("out", "resume", "as_json") or value in (None, False):
            continue
        option = [] if parameter.param_type_name == "argument" else parameter.opts[:1]
        for one in value if isinstance(value, list) else [value]:
            parts += option + ([] if one is True else [str(one)])
    return shlex.join(parts)
