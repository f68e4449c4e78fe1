"""``hoplon demo``: the whole loop on a small network and real handwritten digits, without a download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hoplon.cli.commands.assess import run_assessment, threads
from hoplon.cli.console import progress_bars, say
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import Plan
from hoplon.zoo.networks.lenet_digits import lenet_digits
from hoplon.zoo.registry import data

FULL = Plan(value_faults=16_384, memory_faults=2_048)
QUICK = Plan(value_faults=1_024, memory_faults=64)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and the runs.")] = Path("hoplon-demo"),
    seed: Annotated[int, typer.Option(help="Decides the trained weights and the faults.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few faults: seconds, wide intervals.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take the finished arms of an earlier run in --out.")
    ] = False,
) -> None:
    """Train LeNet on scikit-learn's digits, flip bits in it, protect it, and report what that bought.

    Runs on one thread, so that the figures do not depend on the machine's number of cores.
    """
    folder = OutputFolder.prepare(out)
    plan = replace(QUICK if quick else FULL, seed=seed)
    say(
        f"hoplon demo: LeNet on scikit-learn's handwritten digits, seed {seed}; about {'10 s' if quick else '1 minute'}"
    )
    with threads(1):
        with progress_bars() as tell:
            model = lenet_digits(seed=seed, progress=lambda epoch, epochs, loss: tell("training epochs", epoch, epochs))
        command = ["hoplon", "demo", "--seed", str(seed), *(["--quick"] if quick else [])]
        run_assessment(model, data("digits"), plan, out=folder, command=command, as_json=as_json, resume=resume)
