"""``hoplon ls KIND``: the names that commands and campaign files accept, with their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from typer import Argument

from hoplon.cli.commands.study import study_names
from hoplon.cli.console import show
from hoplon.cli.options.command_line import AsJson
from hoplon.cli.options.components import described, guard_components
from hoplon.registry import Component, components
from hoplon.report.text_table import TextTable
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
    *,
    as_json: AsJson = False,
) -> None:
    """List the components of a kind by the names that commands and campaign files accept."""
    rows: list[dict[str, Any]]
    if what in _COMPONENTS:
        rows = [described(component) for component in _COMPONENTS[what]().values()]
    else:
        rows = [{"name": name} for name in (model_names() if what == "models" else study_names())]
    columns = ("name", "what it does", "options") if what in _COMPONENTS else ("name",)
    cells = [(row["name"], row["sentence"], _options(row)) if len(columns) > 1 else (row["name"],) for row in rows]
    table = TextTable(f"{len(rows)} {what}", columns, cells, left=columns)
    show({"format": 1, what: rows}, [table], as_json=as_json)


def _options(row: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}{' (required)' if option['required'] else ''}: {option['expected']}"
        for name, option in row["options"].items()
    )
