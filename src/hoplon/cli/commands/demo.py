"""``hoplon demo``: the whole loop on a small network and real handwritten digits, without a download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hoplon.campaign.executors import torch_threads
from hoplon.cli.commands.assess import run_assessment
from hoplon.cli.console import print_status
from hoplon.cli.options.command_line import AsJson, ReportFolder, ResumeArms, Seed
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import AssessmentPlan
from hoplon.zoo.registry import data, model

FULL = AssessmentPlan(value_faults=16_384)
QUICK = AssessmentPlan(value_faults=1_024, memory_faults=64)


def command(
    context: typer.Context,
    *,
    out: ReportFolder = Path("hoplon-demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quick: Annotated[bool, Option("--quick", help="Few faults: seconds, wide intervals.")] = False,
    resume: ResumeArms = False,
) -> None:
    """Flip bits in LeNet, trained on handwritten digits, protect it, and report what that bought.

    Runs on one thread, so that the figures do not depend on the machine's number of cores.
    """
    folder = OutputFolder.prepare(out)
    plan = replace(QUICK if quick else FULL, seed=seed)
    print_status(f"hoplon demo: LeNet on handwritten digits, seed {seed}; about {'10 s' if quick else '1 minute'}")
    with torch_threads(1):
        run_assessment(context, model("lenet-digits", seed=seed), data("digits"), plan, out=folder)
