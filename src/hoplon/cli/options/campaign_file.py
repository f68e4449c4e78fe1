"""A whole campaign as settings: from a TOML file, overridden on the command line, checked, and kept beside the run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final

import torch
from annotated_types import Ge

from hoplon.campaign.campaign import Campaign
from hoplon.cli.options import components as parts
from hoplon.cli.options.schema import check_values
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.errors import HoplonError, StoreError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.single_word import BitFlip
from hoplon.files import write_atomically
from hoplon.injection.replay.golden import Placement
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory, Values
from hoplon.protections.base import Protection
from hoplon.registry import Reader, fields_of

SETTINGS = "settings.json"


Count = Annotated[int, Ge(1)]


@final
@dataclass(frozen=True, eq=False)
class Settings:
    """One campaign, checked; ``raw``: as it was given."""

    model: str
    data: str
    raw: Mapping[str, Any] = field(repr=False)
    target: Literal["values", "memory"] = "values"
    sites: tuple[str, ...] = ("*",)
    kind: tuple[str, ...] | None = None
    dtype: torch.dtype | None = None
    buffers: bool = True
    fault: Annotated[FaultModel, Reader("a fault model", parts.fault_model)] = field(default_factory=BitFlip)
    criterion: Annotated[Criterion, Reader("a criterion", parts.criterion)] = field(default_factory=TopK)
    sampling: Annotated[Sampling, Reader("a sampling", partial(parts.build, "sampling"))] = field(
        default_factory=ElementUniform
    )
    protection: Annotated[tuple[Protection, ...], Reader("a protection", parts.protections)] = ()
    placement: Placement = "before"
    inputs: Count | None = None
    count: Count | None = None
    half_width: float | None = None
    confidence: float = 0.95
    seed: Annotated[int, Ge(0)] = 0
    batch: Count | None = None
    threads: Count | None = None
    workers: Count = 1
    out: str = "hoplon-run"

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, source: str = "") -> Self:
        """Check settings and build what they describe.

        Args:
            source: the file that messages name.
        Raises:
            HoplonError: unknown keys, missing ones, values of another type or out of range; names all of them.
        """
        try:
            fields = {name: entry for name, entry in fields_of(cls).items() if name != "raw"}
            settings = check_values(raw, fields, missing="give MODEL and DATA, or --config")
            if "buffers" in raw and settings.get("target") != "memory":
                raise HoplonError("buffers: expected target 'memory' beside it, got 'values'")
        except HoplonError as error:
            raise HoplonError(f"{source}: {error}" if source else str(error)) from error
        return cls(raw=dict(raw), **settings)

    def selection(self) -> Values | Memory:
        """Return the selection of sites that faults strike."""
        if self.target == "memory":
            return Memory(self.sites, kind=self.kind, dtype=self.dtype, buffers=self.buffers)
        return Values(self.sites, kind=self.kind, dtype=self.dtype)

    def campaign(self, program: Program, held_out: Inputs) -> Campaign:
        """Return the campaign on a captured model and its data."""
        return Campaign(
            program,
            held_out.sample(self.inputs, seed=self.seed),
            sites=self.selection(),
            fault_model=self.fault,
            criterion=self.criterion,
            sampling=self.sampling,
            protections=self.protection,
            placement=self.placement,
            batch=self.batch,
        )

    def keep(self, folder: Path) -> None:
        """Write the settings beside the run."""
        write_atomically(folder / SETTINGS, json.dumps(self.raw, indent=1) + "\n")


def read_raw(path: Path) -> dict[str, Any]:
    """Read the settings of a TOML file, or in the ``settings.json`` of a run, unchecked.

    Raises:
        StoreError: no such file, or one that is neither.
    """
    try:
        content = path.read_text(encoding="utf-8")
        found = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (OSError, ValueError) as error:  # both parsers raise kinds of ValueError
        raise StoreError(
            f"expected a campaign file in TOML at {path}, got {error}; give another with --config"
        ) from error
    if not isinstance(found, dict):
        raise StoreError(f"expected keys and values in {path}, got {type(found).__name__}")
    return found


def merged(raw: Mapping[str, Any], given: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Lay the settings of the command line over those of a file.

    Args:
        raw: of the file.
        options: of the command line by key; None: not given.
        parts: options within "fault" and "sampling", likewise; a name there starts that table afresh.
    Raises:
        HoplonError: options for one of several fault models of the file.
    """
    found = {**raw, **{key: value for key, value in given.items() if value is not None}}
    for goal, other in (("count", "half_width"), ("half_width", "count")):
        if given.get(goal) is not None and given.get(other) is None:
            found.pop(other, None)
    for key, options in parts.items():
        chosen = {name: value for name, value in options.items() if value is not None}
        if not chosen:
            continue
        before = found.get(key, {})
        if "name" in chosen:
            before = {}
        if isinstance(before, list):
            raise HoplonError(f"{key}: expected one table to override options of, got a list; name it anew")
        table = {"name": before} if isinstance(before, str) else dict(before)
        found[key] = {"name": _DEFAULT_NAMES[key], **table, **chosen}
    return found


_DEFAULT_NAMES = {"fault": "bitflip", "sampling": "element"}
