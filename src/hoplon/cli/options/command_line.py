"""Arguments and options that several commands take, each with one help text, in titled panels."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from annotated_types import BaseMetadata, Ge
from typer import Argument, Option

from hoplon.cli.options.components import about, fields_of
from hoplon.cli.options.schema import Problems, expected
from hoplon.errors import fits, shown, words
from hoplon.registry import Kind, Shorthand, components

SITES, FAULTS, HARM = "Where faults strike", "How a fault changes words", "What counts as harm"
PROTECTIONS, SIZE, RUN, SCORING = "Protections", "How many, and which inputs", "The run", "Importance of weights"

MODEL_HELP = (
    "A zoo name, torchvision:NAME, timm:NAME, hf:FOLDER, a .pt2 or .onnx file, package.module:factory or "
    "file.py:factory; hoplon ls models."
)
DATA_HELP = (
    "A zoo name, an .npz file with x and y, a .jsonl file (FILE.jsonl@TOKENIZER for texts), a folder of pictures, or a "
    "factory of a data set or loader. Without x_calibration a random 20 % of the samples "
    "calibrates; of a series, with an array time, the first 20 %."
)

Model = Annotated[str, Argument(help=MODEL_HELP)]
Data = Annotated[str, Argument(help=DATA_HELP)]
Seed = Annotated[
    int,
    Ge(0),
    Option(
        help="Seed of everything random: new weights, samples, faults, order of timing.",
        max=2**63 - 1,
        rich_help_panel=RUN,
    ),
]
AsJson = Annotated[
    bool, Option("--json", help="Print one JSON object on stdout instead of tables.", rich_help_panel=RUN)
]
Threads = Annotated[int | None, Ge(1), Option(help="CPU threads (default: torch's own setting).", rich_help_panel=RUN)]
Batch = Annotated[
    int | None,
    Ge(1),
    Option(help="Samples per forward pass (default: chosen from the model's size).", rich_help_panel=RUN),
]
Samples = Annotated[
    int | None, Ge(1), Option(help="Number of calibration samples (default: all).", rich_help_panel=SIZE)
]
ReportFolder = Annotated[Path, Option(help="Folder for report.html, results.json and the runs.", rich_help_panel=RUN)]
ResumeArms = Annotated[
    bool,
    Option(
        "--resume",
        help="Resume the interrupted run in --out: its finished arms are not run again.",
        rich_help_panel=RUN,
    ),
]


@dataclass(frozen=True)
class Said:
    """Metadata of a field of settings: its option on the command line, where it has one, as help text and panel."""

    help: str
    panel: str


_TABLES = ("a table", "a list")  # what no single word says
Parameters = Mapping[str, Any]
"""Annotation by name of options that are all None unless given."""


def takes(*groups: Parameters) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options to those of a command, which gets them as further keyword arguments; its own of a name win."""

    def wrapped(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
        more = {name: annotation for group in groups for name, annotation in group.items()}
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in more.items()
            if name not in {one.name for one in own}
        ]
        parameters = [one.replace(annotation=hints[one.name]) for one in own]

        @functools.wraps(command)
        def run(*positional: Any, **options: Any) -> None:
            command(*positional, **options)

        run.__signature__ = inspect.Signature([*parameters, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*parameters, *added)} | {"return": None}
        return run

    return wrapped


def checked_options(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command refuse options that its annotations do not take, all of them at once, before it does anything."""
    hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def run(*positional: Any, **options: Any) -> None:
        problems = Problems()
        for name, value in options.items():
            notes = getattr(hints.get(name), "__metadata__", ())
            limits = [note for note in notes if isinstance(note, BaseMetadata)]
            if value is not None and limits:
                kind: Any = Annotated[type(value), *limits]
                if not fits(kind, value):
                    problems.add(f"--{name.replace('_', '-')}", f"expected {words(kind)}, got {shown(value)}")
        problems.refuse()
        command(*positional, **options)

    return run


def settings_options(fields: Mapping[str, tuple[Any, Any]], names: tuple[str, ...] | None = None) -> Parameters:
    """Return the options of settings by their annotations; texts, numbers and flags that are None unless given."""
    found: dict[str, Any] = {}
    for name, (annotation, _) in fields.items():
        said = next((note for note in getattr(annotation, "__metadata__", ()) if isinstance(note, Said)), None)
        if said is not None and (names is None or name in names):
            found[name] = _option(annotation, name, said.help, said.panel)
    return found


def component_options(kind: Kind, options: Mapping[str, str], panel: str, *, several: bool = False) -> Parameters:
    """Return options that give fields to the components of a kind.

    Args:
        options: field by name of the option. Fields that no single word says have none, as others whose names are
            taken: they are given in brackets, as in ``--sampling "top-score(count=500)"``.
        several: they may be repeated.
    """
    found: dict[str, Any] = {}
    known = shorthands(kind)
    for option, field in options.items():
        names = known[option][1]
        component = components(kind)[names[0]]
        annotation, _ = fields_of(component)[field]
        if not expected(annotation).startswith(_TABLES):
            text = f"{about(component, field)} ({', '.join(names)})"
            found[option] = _option(annotation, option, text[:1].upper() + text[1:], panel, several=several)
    return found


def shorthands(kind: Kind) -> dict[str, tuple[str, list[str]]]:
    """Return field and components by the option that gives the field to a component of this kind."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, component in components(kind).items():
        for field, (annotation, _) in fields_of(component).items():
            if expected(annotation):
                notes = getattr(annotation, "__metadata__", ())
                option = next((note.name for note in notes if isinstance(note, Shorthand)), field)
                found.setdefault(option, (field, []))[1].append(name)
    return found


def _option(annotation: Any, name: str, text: str, panel: str, *, several: bool = False) -> Any:
    """A typer option for the plain value of an annotated field: a flag, or texts that :func:`from_text` reads.

    What is given more often than the field takes is a list, which the field refuses.
    """
    text = text if text.endswith((".", "]", ")")) else f"{text}."
    if expected(annotation) == "true or false":
        flag = "--" + name.replace("_", "-")
        return Annotated[bool | None, Option(f"{flag}/--no-{flag[2:]}", help=text, rich_help_panel=panel)]
    words = expected(annotation)
    metavar = "INTEGER" if words.startswith("an integer") else "NUMBER" if words.startswith("a number") else "TEXT"
    metavar += "..." if several or "list of such" in words else ""
    return Annotated[list[str] | None, Option(help=text, metavar=metavar, rich_help_panel=panel)]


def command_of(context: typer.Context) -> str:
    """Return the command that gives the same figures again: arguments and options with their values."""
    parts = ["hoplon", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if (
            parameter.name in ("out", "resume", "as_json")
            or value is None
            or (value is False and not parameter.default)
        ):
            continue
        option = [] if parameter.param_type_name == "argument" else parameter.opts[:1]
        if value is False:
            option = list(getattr(parameter, "secondary_opts", ()))[:1] or option
        for one in value if isinstance(value, list) else [value]:
            parts += option + ([] if isinstance(one, bool) else [str(one)])
    return shlex.join(parts)
