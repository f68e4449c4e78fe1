"""``hoplon compare MODEL DATA``: the same loop for any model and data."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Annotated

import typer

from hoplon.campaign.executors import torch_threads
from hoplon.cli.commands.assess import run_assessment
from hoplon.cli.console import say, told_training
from hoplon.cli.options import guards as guarding
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import Plan
from hoplon.criteria.classification import TopK
from hoplon.errors import HoplonError
from hoplon.zoo.resolve import resolve_data, resolve_model


class Place(enum.StrEnum):
    """When a fault strikes, seen from the protection of its own site, or from the guards' check."""

    BEFORE = "before"
    AFTER = "after"


def compare(
    model: Annotated[
        str, typer.Argument(help="A zoo name, torchvision:NAME, package.module:factory or file.py:factory.")
    ],
    data: Annotated[str, typer.Argument(help="A zoo name, an .npz file with x and y, or a factory.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and the runs.")] = Path("hoplon-runs"),
    seed: Annotated[int, typer.Option(help="Decides faults and samples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")] = False,
    value_faults: Annotated[int, typer.Option(help="Faults in operator outputs; 0 for none.")] = 8192,
    memory_faults: Annotated[int, typer.Option(help="Faults in weights, each met by all inputs; 0 for none.")] = 400,
    guard_faults: Annotated[int, typer.Option(help="Faults in what the guards of an arm hold; 0 for none.")] = 256,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="A further arm, such as parity, or ranger+known-bits+parity, aspis:5%; may be repeated."),
    ] = None,
    inputs: Annotated[int, typer.Option(help="Held-out inputs that faults meet; accuracy is that of all.")] = 256,
    calibration: Annotated[int, typer.Option(help="Calibration samples for ranges and scores.")] = 2000,
    criterion: Annotated[str, typer.Option(help="What counts as harm: top-1, top-5, ...")] = "top-1",
    placement: Annotated[
        Place, typer.Option(help="Faults before or after the protection of their site.")
    ] = Place.BEFORE,
    arrival: Annotated[Place, typer.Option(help="Memory faults before or after the guards' check.")] = Place.BEFORE,
    batch: Annotated[int | None, typer.Option(help="Samples per pass; chosen from the model by default.")] = None,
    thread_count: Annotated[int | None, typer.Option("--threads", help="Threads; torch's default by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take the finished arms of an earlier run in --out.")
    ] = False,
) -> None:
    """Inject the same faults into a model under each protection and report failures, accuracy, time and memory."""
    more_arms = {text: guarding.arm(text) for text in arm or ()}
    folder = OutputFolder.prepare(out)
    plan = Plan(
        value_faults=value_faults,
        memory_faults=memory_faults,
        inputs=inputs,
        calibration=calibration,
        criterion=parsed_criterion(criterion),
        guard_faults=guard_faults,
        placement="before" if placement is Place.BEFORE else "after",
        arrival="before" if arrival is Place.BEFORE else "after",
        batch=batch,
        seed=seed,
    )
    options = {
        "--seed": seed,
        "--value-faults": value_faults,
        "--memory-faults": memory_faults,
        "--inputs": inputs,
        "--calibration": calibration,
        "--criterion": criterion,
        "--guard-faults": guard_faults,
        "--placement": placement.value,
        "--arrival": arrival.value,
        **({} if batch is None else {"--batch": batch}),
        **({} if thread_count is None else {"--threads": thread_count}),
    }
    command = ["hoplon", "compare", model, data, *(str(part) for pair in options.items() for part in pair)]
    command += [part for text in more_arms for part in ("--arm", text)]
    with torch_threads(thread_count):
        loaded = resolve_data(data)
        say(f"hoplon compare: {model} on {data}, seed {seed}")
        chosen = resolve_model(model, seed=seed, progress=told_training)
        run_assessment(
            chosen, loaded, plan, out=folder, command=command, as_json=as_json, resume=resume, more_arms=more_arms
        )


def parsed_criterion(text: str) -> TopK:
    """The criterion that the command line names.

    Raises:
        HoplonError: anything but top-k.
    Example:
        >>> parsed_criterion("top-5") == TopK(5)
        True
    """
    match = re.fullmatch(r"top-([1-9]\d*)", text)
    if match is None:
        raise HoplonError(f"expected a criterion of the form top-k, such as top-1 or top-5, got {text!r}")
    return TopK(int(match[1]))
