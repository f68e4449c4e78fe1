"""``hoplon demo``: the whole loop on a small network and real handwritten digits, without a download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hoplon.campaign.executors import torch_threads
from hoplon.cli.commands.assess import run_assessment
from hoplon.cli.console import say
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import Plan
from hoplon.zoo.registry import data, model

FULL = Plan(value_faults=16_384, memory_faults=2_048)
QUICK = Plan(value_faults=1_024, memory_faults=64)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and the runs.")] = Path("hoplon-demo"),
    seed: Annotated[int, typer.Option(help="Decides the faults; other than 0, trained weights too.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few faults: seconds, wide intervals.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take the finished arms of an earlier run in --out.")
    ] = False,
) -> None:
    """Flip bits in LeNet, trained on handwritten digits, protect it, and report what that bought.

    Runs on one thread, so that the figures do not depend on the machine's number of cores.
    """
    folder = OutputFolder.prepare(out)
    plan = replace(QUICK if quick else FULL, seed=seed)
    say(f"hoplon demo: LeNet on handwritten digits, seed {seed}; about {'10 s' if quick else '1 minute'}")
    with torch_threads(1):
        lenet = model("lenet-digits", seed=seed)
        command = ["hoplon", "demo", "--seed", str(seed), *(["--quick"] if quick else [])]
        run_assessment(lenet, data("digits"), plan, out=folder, command=command, as_json=as_json, resume=resume)
