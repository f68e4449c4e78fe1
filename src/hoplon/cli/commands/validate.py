"""``hoplon validate FILE``: a campaign, checked with all that it needs, and what it will cost; nothing is struck."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import torch_threads
from hoplon.campaign.forecasting import planned_cost
from hoplon.cli.console import show
from hoplon.cli.loading import load_program
from hoplon.cli.options.campaign_file import Settings, read_raw
from hoplon.cli.options.command_line import AsJson
from hoplon.zoo.resolve import resolve_data


def command(
    file: Annotated[Path, Argument(help="TOML file of a campaign, as hoplon inject --config takes it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Check a campaign file and say which sites it strikes with how many faults and runs; strike nothing."""
    settings = Settings.read(read_raw(file), source=str(file))
    settings.require_goal()
    with torch_threads(settings.threads):
        loaded = resolve_data(settings.data)
        _, program = load_program(
            settings.model,
            seed=settings.seed,
            data=loaded.held_out,
            new_tokens=settings.new_tokens,
            prompt_tokens=settings.prompt_tokens,
        )
        document = _checked(settings.campaign(program, loaded), settings)
    at_most = "at most " if document["half_width"] is not None else ""
    lines = [
        f"{document['model']} on {document['data']}, {document['inputs']:,} inputs",
        f"{len(document['sites'])} {document['target']} sites with {document['elements']:,} elements",
        f"{document['fault_model']}, {document['sampling']}, {', '.join(document['criteria'])}",
        f"protections: {', '.join(document['protections']) or 'none'}",
        f"{at_most}{document['faults']:,} faults, {document['runs']:,} runs",
    ]
    show(document, [], [(f"{file} is a campaign that can run", lines)], as_json=as_json)


def _checked(campaign: Campaign, settings: Settings) -> dict[str, Any]:
    """What the campaign is, as plain values."""
    cost = planned_cost(
        campaign,
        count=settings.count,
        half_width=settings.half_width,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return {
        "format": 1,
        "model": settings.model,
        "data": settings.data,
        "target": campaign.target,
        "sites": [site.name for site in cost.sites],
        "elements": sum(site.numel for site in cost.sites),
        "inputs": cost.inputs,
        "fault_model": campaign.fault_model.name,
        "sampling": repr(campaign.sampling),
        "criteria": list(settings.criterion.names),
        "protections": [protection.label for protection in campaign.protections],
        "half_width": settings.half_width,
        "faults": cost.faults,
        "runs": cost.runs,
    }
