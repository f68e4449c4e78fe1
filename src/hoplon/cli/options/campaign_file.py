"""A whole campaign as settings: from a TOML file, overridden on the command line, checked, and kept beside the run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, final

import torch

from hoplon.campaign.campaign import Campaign
from hoplon.cli.options import components as parts
from hoplon.cli.options.schema import FLAG, INTEGER, NUMBER, TEXT, OptionType, one_of, read_options, several
from hoplon.criteria.base import Criterion
from hoplon.errors import HoplonError, StoreError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Sampling
from hoplon.files import write_atomically
from hoplon.formats.dtypes import NATIVE_DTYPES, native
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory, Values
from hoplon.protections.base import Protection

SETTINGS = "settings.json"


def _dtype(value: Any) -> torch.dtype:
    return {native(dtype).name: dtype for dtype in NATIVE_DTYPES}[TEXT.read(value)]


def _at_least(lowest: int) -> OptionType:
    def read(value: Any) -> int:
        number: int = INTEGER.read(value)
        if number < lowest:
            raise ValueError
        return number

    return OptionType(f"an integer of at least {lowest}", read)


_ONE = _at_least(1)
KEYS: Mapping[str, OptionType] = {
    "model": TEXT,
    "data": TEXT,
    "target": one_of("values", "memory"),
    "sites": several(TEXT),
    "kind": several(TEXT),
    "dtype": OptionType("the name of a dtype, such as 'int8'", _dtype),
    "buffers": FLAG,
    "fault": OptionType("a fault model", parts.fault_model),
    "criterion": OptionType("a criterion", parts.criterion),
    "sampling": OptionType("a sampling", parts.sampling),
    "protection": OptionType("a protection", parts.protections),
    "placement": one_of("before", "after"),
    "inputs": _ONE,
    "count": _ONE,
    "half_width": NUMBER,
    "confidence": NUMBER,
    "seed": _at_least(0),
    "batch": _ONE,
    "threads": _ONE,
    "workers": _ONE,
    "out": TEXT,
}
"""Every key of a campaign file, and its type."""

_DESCRIBED = ("fault", "criterion", "sampling", "protection")  # their errors name the key themselves


@final
@dataclass(frozen=True, eq=False)
class Settings:
    """One campaign, checked; ``raw``: as it was given."""

    model: str
    data: str
    raw: Mapping[str, Any] = field(repr=False)
    target: str = "values"
    sites: tuple[str, ...] = ("*",)
    kind: tuple[str, ...] | None = None
    dtype: torch.dtype | None = None
    buffers: bool = True
    fault: FaultModel = field(default_factory=lambda: parts.fault_model("bitflip"))
    criterion: Criterion = field(default_factory=lambda: parts.criterion("top-1"))
    sampling: Sampling = field(default_factory=lambda: parts.sampling("element"))
    protection: tuple[Protection, ...] = ()
    placement: Any = "before"
    inputs: int | None = None
    count: int | None = None
    half_width: float | None = None
    confidence: float = 0.95
    seed: int = 0
    batch: int | None = None
    threads: int | None = None
    workers: int = 1
    out: str = "hoplon-run"

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, source: str = "") -> Self:
        """Check settings and build what they describe.

        Args:
            source: the file that messages name.
        Raises:
            HoplonError: an unknown key, a missing one, a value of another kind or out of range; names the key.
        """
        described = {key: raw[key] for key in _DESCRIBED if key in raw}
        plain = {key: value for key, value in raw.items() if key not in described}
        try:
            for key in ("model", "data"):
                if key not in raw:
                    raise HoplonError(
                        f"{key}: expected {KEYS[key].expected}, got nothing; give MODEL and DATA, or --config"
                    )
            found = read_options(plain, KEYS)
            for key, value in described.items():
                found[key] = KEYS[key].read(value)
            if "buffers" in raw and found.get("target") != "memory":
                raise HoplonError("buffers: expected target 'memory' beside it, got 'values'")
        except HoplonError as error:
            raise HoplonError(f"{source}: {error}" if source else str(error)) from error
        return cls(raw=dict(raw), **found)

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
