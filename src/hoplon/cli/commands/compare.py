"""``hoplon compare MODEL DATA``: the same faults under each protection, for any model and data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer import Option

from hoplon.campaign.executors import torch_threads
from hoplon.cli.commands.assess import run_assessment
from hoplon.cli.console import print_status, report_training
from hoplon.cli.options import components as parts
from hoplon.cli.options.campaign_file import DEFAULTS, Settings, own_options, plain_options, with_fields
from hoplon.cli.options.command_line import (
    FAULTS,
    PROTECTIONS,
    SITES,
    SIZE,
    AsJson,
    Batch,
    Data,
    Model,
    ReportFolder,
    ResumeArms,
    Seed,
    Threads,
    component_options,
    settings_options,
    takes,
)
from hoplon.cli.options.schema import Problems, ValuesError, check_values, expected
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import MEMORY, VALUES, ArmPlan, AssessmentPlan, standard_arms
from hoplon.errors import DataError, HoplonError, StoreError
from hoplon.program.sites import Memory, Values
from hoplon.protections.values.ranger import Where
from hoplon.registry import Kind, fields_of
from hoplon.zoo.resolve import resolve_data, resolve_model

_SETTINGS = fields_of(Settings)
_SHARED = ("target", "sites", "kind", "dtype", "buffers", "criterion", "placement", "arrival")
_PLAN = ("value_faults", "memory_faults", "guard_faults", "inputs", "calibration", "batch", "seed")
_SIZES = {name: entry for name, entry in fields_of(AssessmentPlan).items() if name in _PLAN}
_SETTINGS_SHARED = {name: _SETTINGS[name] for name in _SHARED}


@takes(
    settings_options(_SETTINGS, _SHARED),
    component_options("fault", own_options("fault"), FAULTS, several=True),
    component_options("sampling", own_options("sampling"), SITES, several=True),
)
def command(
    context: typer.Context,
    model: Model,
    data: Data,
    *,
    out: ReportFolder = Path("hoplon-runs"),
    seed: Seed = 0,
    as_json: AsJson = False,
    fault: Annotated[
        list[str] | None,
        Option(help="Fault model; see hoplon ls faults. Repeated: a table of faults each.", rich_help_panel=FAULTS),
    ] = None,
    sampling: Annotated[
        list[str] | None,
        Option(help="Which faults are drawn; see hoplon ls samplings. Repeated: a table each.", rich_help_panel=SITES),
    ] = None,
    value_faults: Annotated[
        int, Option(help="Number of faults in operator outputs, per table; 0 for none.", rich_help_panel=SIZE)
    ] = AssessmentPlan.value_faults,
    memory_faults: Annotated[
        int, Option(help="Number of faults in weights, per table; 0 for none.", rich_help_panel=SIZE)
    ] = AssessmentPlan.memory_faults,
    guard_faults: Annotated[
        int, Option(help="Number of faults in memory of guards; 0 for none.", rich_help_panel=SIZE)
    ] = AssessmentPlan.guard_faults,
    arm: Annotated[
        list[str] | None,
        Option(
            help="Arm as NAME=PROTECTION+PROTECTION@SCHEDULE, such as aspis:5%, tight=ranger(quantile=99.9%) or "
            "both=ranger+parity@rotating:16; repeatable.",
            rich_help_panel=PROTECTIONS,
        ),
    ] = None,
    standard_arms: Annotated[
        bool, Option(help="The standard arms too, or none and those of --arm alone.", rich_help_panel=PROTECTIONS)
    ] = True,
    where: Annotated[
        str | None,
        Option(
            help=f"Operators that arms bound which do not say: {', '.join(get_args(Where))}.",
            rich_help_panel=PROTECTIONS,
        ),
    ] = None,
    inputs: Annotated[
        int, Option(help="Number of held-out inputs for faults; accuracy is that of all.", rich_help_panel=SIZE)
    ] = 256,
    calibration: Annotated[
        int, Option(help="Number of calibration samples for ranges and scores.", rich_help_panel=SIZE)
    ] = 2000,
    batch: Batch = None,
    threads: Threads = None,
    resume: ResumeArms = False,
    **options: Any,
) -> None:
    """Inject the same faults into a model under each protection and report failures, accuracy, time and memory."""
    plan, arms = planned(context.params)
    folder = OutputFolder.prepare(out)
    with torch_threads(threads):
        loaded = resolve_data(data)
        print_status(f"hoplon compare: {model} on {data}, seed {seed}")
        chosen = resolve_model(model, seed=seed, progress=report_training)
        run_assessment(context, chosen, loaded, plan, out=folder, arms=arms)


def planned(given: Mapping[str, Any]) -> tuple[AssessmentPlan, dict[str, ArmPlan]]:
    """The assessment that the options of ``compare`` describe, and its arms.

    Raises:
        ValuesError: names, values or arms that do not fit; all of them.
    """
    problems = Problems()
    settings = problems.of(check_values, plain_options(given, _SHARED), _SETTINGS_SHARED) or {}
    counts = {name: given[name] for name in _PLAN}
    problems.of(check_values, {name: value for name, value in counts.items() if value is not None}, _SIZES)
    models = problems.of(_each, "fault", given, parts.fault_model) or {}
    samplings = problems.of(_each, "sampling", given, parts.sampling) or {}
    arms = problems.of(_arms, given) or {}
    target = settings.get("target")
    if "buffers" in settings and target != "memory":
        problems.add("buffers", f"expected target 'memory' beside it, got {target or 'both targets'!r}")
    problems.refuse()
    for name, other in (("value_faults", "memory"), ("memory_faults", "values")):
        counts[name] = 0 if target == other else counts[name]
    values, memory = _selections(settings)
    plan = AssessmentPlan(
        values=values,
        memory=memory,
        fault_models=models,
        samplings=samplings,
        **{key: settings[key] for key in ("criterion", "placement", "arrival") if key in settings},
        **counts,
    )
    return plan, arms


def _selections(settings: Mapping[str, Any]) -> tuple[Values, Memory]:
    """The sites of both targets: those of an assessment, or where some are chosen those that ``inject`` takes."""
    chosen = {name: settings[name] for name in ("kind", "dtype") if name in settings}
    if "kind" not in chosen and "sites" not in settings:
        buffers = settings.get("buffers", MEMORY.buffers)
        return replace(VALUES, **chosen), replace(MEMORY, **chosen, buffers=buffers)
    pattern = settings.get("sites", ("*",))
    return Values(pattern, **chosen), Memory(pattern, **chosen, buffers=settings.get("buffers", True))


def _each(kind: Kind, given: Mapping[str, Any], read: Any) -> dict[str, Any]:
    """Every combination of a kind's repeated options, read, by what tells it from the others."""
    fields = own_options(kind)
    repeated = {kind: given[kind]} | {option: _listed(given.get(option)) for option in fields}
    asked = {option: values for option, values in repeated.items() if values}
    found: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for values in itertools.product(*asked.values()):
        chosen = dict(zip(asked, values, strict=True))
        label = ", ".join(_words(kind, option, text) for option, text in chosen.items() if len(asked[option]) > 1)
        described = chosen.pop(kind, DEFAULTS[kind])
        try:
            table = with_fields(kind, described, {fields[option]: value for option, value in chosen.items()})
            found[label] = read(table)
        except ValuesError as error:
            problems += error.problems if error.problems[0][0].startswith(kind) else error.below(kind)
    if problems:
        raise ValuesError(list(dict.fromkeys(problems)))
    return found


def _words(kind: Kind, option: str, text: Any) -> str:
    return str(text) if option == kind else f"{option.replace('_', ' ')} {text}"


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


def _arms(given: Mapping[str, Any]) -> dict[str, ArmPlan]:
    """The arms by name, "none" first.

    Raises:
        ValuesError: arms that cannot be read, or two of one name; all of them.
    """
    where = given["where"]
    learn = {} if where is None else {"where": lambda: where}
    standard = standard_arms(where=where or "algorithm1")
    found = standard if given["standard_arms"] else {"none": standard["none"]}
    problems, own = [], set()
    for text in given["arm"] or ():
        try:
            name, plan = parts.arm(text, learn=learn)
        except (DataError, StoreError):
            raise
        except HoplonError as error:
            problems.append(("", str(error)))
            continue
        taken = name in found and name != text and text != f"{name}=none"
        if name in own or taken:
            problems.append(("", f"--arm {text}: expected a new name, got {name!r} twice; --arm NAME=..."))
        own.add(name)
        found[name] = plan
    if where is not None and where not in get_args(Where):
        problems.append(("where", f"expected {expected(Where)}, got {where!r}"))
    if problems:
        raise ValuesError(problems)
    return found
