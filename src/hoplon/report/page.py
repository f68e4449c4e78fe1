"""``report.html``: one file that opens offline, made from the document alone."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hoplon.errors import checked
from hoplon.files import write_atomically
from hoplon.report import figures, text as wording
from hoplon.report.document import Document, require_assessment
from hoplon.report.verdicts import baseline, fault_in, helps, improvement, paragraphs_of, rows_of, tables_of, title_of

_PLANNED = "from a timed beginning without protections"


@checked
def write_page(path: str | os.PathLike[str], document: Document) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StoreError: the folder is not writable.
    """
    target = Path(path)
    write_atomically(target, render(document))
    return target


@checked
def render(document: Document) -> str:
    """The page of an assessment as one HTML text that loads nothing from anywhere."""
    require_assessment(document)
    sections = [_section(document, faults, f"table-{n}") for n, faults in enumerate(tables_of(document))]
    specs = {figure["id"]: figure["spec"] for section in sections for figure in section["plots"]}
    return from_template(
        "template.html.j2",
        document=document,
        verdict=paragraphs_of(document),
        sections=sections,
        specs=script_safe(specs),
        protections=_described(document),
        wording=wording,
        provenance=_provenance(document),
    )


def from_template(name: str, **values: Any) -> str:
    """Return a template of this package filled in, with plotly.js as ``plotly``."""
    environment = Environment(
        loader=PackageLoader("hoplon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name).render(plotly=Markup(plotly_script()), **values)


def _section(document: Document, faults: str, anchor: str) -> dict[str, Any]:
    rows = rows_of(document, faults)
    base = baseline(rows)
    groups = [
        ("By arm", (figures.by_arm(document, faults),)),
        ("By flipped bit", figures.by_bit(document, faults)),
        ("By struck layer", figures.by_layer(document, faults)),
    ]
    named = [
        (title, [{"id": f"{anchor}-{number}-{index}", **vars(figure)} for index, figure in enumerate(found)])
        for number, (title, found) in enumerate(groups)
        if found
    ]
    return {
        "anchor": anchor,
        "target": rows[0]["target"],
        "title": title_of(document, faults),
        "fault": fault_in(document, faults),
        "rows": [{**row, "gain": improvement(row, base) if base and helps(row) else ""} for row in rows],
        "base": base,
        "groups": named,
        "plots": [plot for _, plots in named for plot in plots],
        "meant": [row["name"] for row in rows if row["acts_on_target"]],
        "population": document["population"][faults],
    }


def _described(document: Document) -> list[tuple[str, str, list[str]]]:
    """Each protection once: its name, what it does, and the arms that have it."""
    found: dict[str, tuple[str, list[str]]] = {}
    for arm, labels in document["protections"].items():
        for label in labels:
            name, text = wording.protection(label)
            if label in document.get("guarantees", {}):
                text = f"{text} Its class: {document['guarantees'][label]}."
            found.setdefault(name, (text, []))[1].append(arm)
    return [(name, text, arms) for name, (text, arms) in found.items()]


def _provenance(document: Document) -> list[tuple[str, str]]:
    calibration = document["calibration"]
    faults = "; ".join(
        f"{target}: {table['count']:,}, SHA-256 {table['digest']}" for target, table in document["faults"].items()
    )
    predicted = document.get("prediction")
    planned = [("Planned", f"Value and memory faults of all arms, {_PLANNED}: {predicted}.")] if predicted else []
    checks = "; ".join(f"{arm}: {text}" for arm, text in document.get("schedules", {}).items())
    return [
        ("Model", f"{document['model']}, fingerprint {document['fingerprint']}"),
        (
            "Data",
            f"{document['data']}; {document['inputs']:,} inputs for faults, {document['accuracy_inputs']:,} for "
            f"accuracy; calibration: {calibration['data']}, {calibration['inputs']:,} inputs",
        ),
        ("Seed", str(document["seed"])),
        ("Command", str(document.get("command", "hoplon.assess from Python"))),
        ("Fault tables", faults),
        *([("Checks of guards", checks)] if checks else []),
        (
            "Batch and threads",
            f"{document['batch']} samples per pass, {document['threads']} threads, device {document['device']}",
        ),
        *planned,
        ("Versions", ", ".join(f"{name} {version}" for name, version in document["versions"].items())),
    ]


def script_safe(value: Any) -> Markup:
    """JSON of specifications that cannot end the script element it stands in."""
    text = json.dumps(_without_tags(value), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _without_tags(value: Any) -> Any:
    """Specifications in which plotly finds no tags of its own in names; it reads some, links among them."""
    if isinstance(value, dict):
        return {key: part if key == "hovertemplate" else _without_tags(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tags(part) for part in value]
    return value.replace("&", "&amp;").replace("<", "&lt;") if isinstance(value, str) else value


@cache
def plotly_script() -> str:
    """plotly.js, safe inside a script element."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")
