"""``hoplon compare MODEL DATA``: the same loop for any model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hoplon.campaign.executors import torch_threads
from hoplon.cli.commands.assess import run_assessment
from hoplon.cli.console import print_status, report_training
from hoplon.cli.options import components as parts
from hoplon.cli.options.command_line import AsJson, Batch, Data, Model, ReportFolder, ResumeArms, Seed, Threads
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import AssessmentPlan
from hoplon.criteria.classification import TopK
from hoplon.errors import HoplonError
from hoplon.injection.replay.golden import Placement
from hoplon.zoo.resolve import resolve_data, resolve_model

_FAULTS = ("value_faults", "memory_faults", "guard_faults")
_PLAN = (*_FAULTS, "inputs", "calibration", "placement", "arrival", "batch", "seed")


def command(
    context: typer.Context,
    model: Model,
    data: Data,
    *,
    out: ReportFolder = Path("hoplon-runs"),
    seed: Seed = 0,
    as_json: AsJson = False,
    value_faults: Annotated[int, Option(help="Number of faults in operator outputs; 0 for none.")] = 8192,
    memory_faults: Annotated[int, Option(help="Number of faults in weights; 0 for none.")] = 400,
    guard_faults: Annotated[int, Option(help="Number of faults in memory of guards; 0 for none.")] = 256,
    arm: Annotated[
        list[str] | None,
        Option(help="A further arm, such as parity, ranger+known-bits+parity or aspis:5%; repeatable."),
    ] = None,
    inputs: Annotated[int, Option(help="Number of held-out inputs for faults; accuracy is that of all.")] = 256,
    calibration: Annotated[int, Option(help="Number of calibration samples for ranges and scores.")] = 2000,
    criterion: Annotated[str, Option(help="What counts as harm: top-1, top-5, ...")] = "top-1",
    placement: Annotated[Placement, Option(help="Value faults: before or after their site's protection.")] = "before",
    arrival: Annotated[Placement, Option(help="Memory faults: before or after the guards' check.")] = "before",
    batch: Batch = None,
    threads: Threads = None,
    resume: ResumeArms = False,
) -> None:
    """Inject the same faults into a model under each protection and report failures, accuracy, time and memory."""
    more_arms = {text: parts.arm(text) for text in arm or ()}
    folder = OutputFolder.prepare(out)
    options = {name: context.params[name] for name in _PLAN}
    plan = AssessmentPlan(criterion=parsed_criterion(criterion), **options)
    with torch_threads(threads):
        loaded = resolve_data(data)
        print_status(f"hoplon compare: {model} on {data}, seed {seed}")
        chosen = resolve_model(model, seed=seed, progress=report_training)
        run_assessment(context, chosen, loaded, plan, out=folder, more_arms=more_arms)


def parsed_criterion(text: str) -> TopK:
    """Return the criterion that the command line names.

    Raises:
        HoplonError: anything but top-k.
    Example:
        >>> parsed_criterion("top-5") == TopK(5)
        True
    """
    criterion = TopK.named(text)
    if criterion is None or criterion.reference != "golden":
        raise HoplonError(f"expected a criterion of the form top-k, such as top-1 or top-5, got {text!r}")
    return criterion
