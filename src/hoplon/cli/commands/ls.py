"""``hoplon ls KIND``: the names that commands and campaign files accept, with their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from typer import Argument

from hoplon.assurance.raw_rate import known_rates
from hoplon.cli.commands.study import study_names
from hoplon.cli.console import show
from hoplon.cli.options.command_line import AsJson
from hoplon.cli.options.components import described, guard_components
from hoplon.errors import no_match
from hoplon.registry import Component, components
from hoplon.report.text_table import TextTable
from hoplon.zoo.libraries import LIBRARIES
from hoplon.zoo.registry import model_names

What = Literal[
    "faults",
    "samplings",
    "criteria",
    "guards",
    "protections",
    "policies",
    "schedules",
    "scores",
    "models",
    "studies",
    "rates",
]
_COMPONENTS: Mapping[str, Callable[[], Mapping[str, Component]]] = {
    "faults": lambda: components("fault"),
    "samplings": lambda: components("sampling"),
    "criteria": lambda: components("criterion"),
    "guards": guard_components,
    "protections": lambda: components("protection"),
    "policies": lambda: components("policy"),
    "schedules": lambda: components("schedule"),
    "scores": lambda: components("score"),
}


def command(
    what: Annotated[What, Argument(help="Kind of component.")],
    library: Annotated[
        str | None, Argument(help="With models: list those of a library, such as timm, by its own names.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the components of a kind by the names that commands and campaign files accept."""
    rows: list[dict[str, Any]]
    if what == "rates":
        _list_rates(as_json=as_json)
        return
    if what in _COMPONENTS:
        rows = [described(component) for component in _COMPONENTS[what]().values()]
    elif what == "models":
        rows = _models() if library is None else _models_of(library)
    else:
        rows = [{"name": name} for name in study_names()]
    columns = tuple(word for key, word in _COLUMNS.items() if rows and key in rows[0])
    cells = [tuple(_options(row) if key == "options" else row[key] for key in _COLUMNS if key in row) for row in rows]
    table = TextTable(f"{len(rows)} {what}", columns, cells, left=columns)
    show({"format": 1, what: rows}, [table], as_json=as_json)


_COLUMNS = {"name": "name", "sentence": "what it does", "options": "options"}


def _models() -> list[dict[str, Any]]:
    """The zoo's models, and what stands for those of libraries and files."""
    others = {f"{prefix}:{one.placeholder}": f"{one.sentence} (extra {one.extra})" for prefix, one in LIBRARIES.items()}
    files = {
        "FILE.pt2": "a program of torch.export",
        "FILE.onnx": "an ONNX model, compared with onnxruntime (extra onnx)",
        "FILE.py:FACTORY": "your own function: it returns (module, example)",
        "PACKAGE.MODULE:FACTORY": "the same in an installed package",
    }
    named = dict.fromkeys(model_names(), "of the zoo, with weights")
    return [{"name": name, "sentence": sentence} for name, sentence in (named | others | files).items()]


def _models_of(library: str) -> list[dict[str, Any]]:
    if library not in LIBRARIES:
        raise no_match("library", library, [*LIBRARIES])
    return [{"name": f"{library}:{name}"} for name in LIBRARIES[library].names()]


def _list_rates(*, as_json: bool) -> None:
    """Raw rates from the literature, each with where it can be checked."""
    rows = [{"name": name, **row} for name, row in known_rates().items()]
    columns = ("name", "FIT/Mbit", "kind", "of what", "source")
    cells = [(str(row["name"]), _range(row), str(row["kind"]), str(row["what"]), _source(row)) for row in rows]
    table = TextTable(f"{len(rows)} raw rates; one of the device at hand is better", columns, cells, left=columns)
    show({"format": 1, "rates": rows}, [table], as_json=as_json)


def _range(row: Mapping[str, Any]) -> str:
    low, high = (f"{row[end]:g}" for end in ("low_fit_per_mbit", "high_fit_per_mbit"))
    return low if low == high else f"{low} to {high}"


def _source(row: Mapping[str, Any]) -> str:
    return f"{row['source']}; {'secondary, ' if row['secondary'] else ''}read at {row['read_at']}"


def _options(row: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}{' (required)' if option['required'] else ''}: {option['expected']}"
        for name, option in row["options"].items()
    )
