"""What a build of reference did under which faults, so that a later build can meet the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final

import numpy as np
import polars as pl
import torch
from annotated_types import Ge, Le, Len, MinLen
from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.rates import HARMFUL
from hoplon.campaign.runner import UnitRunner
from hoplon.errors import DataError, HoplonError, StoreError, checked
from hoplon.faults.sampling.base import Population
from hoplon.faults.table import FaultTable
from hoplon.files import json_as, read_bytes, write_json
from hoplon.formats.dtypes import NATIVE_DTYPES, native
from hoplon.program.sites import MemorySite, Site, ValueSite
from hoplon.stats.intervals import Floats

_CONFIG = ConfigDict(strict=True, extra="forbid")
_DTYPES = {native(dtype).name: dtype for dtype in NATIVE_DTYPES}
_SIZES = list[Annotated[int, Ge(0), Le(2**48)]]
_APART = 2**20  # units of fresh faults begin there


class _Site(TypedDict):
    __pydantic_config__ = _CONFIG  # type: ignore[misc]

    name: str
    owner: str
    kind: str
    call: Annotated[int, Ge(0)]
    output: Annotated[int, Ge(0)]
    shape: _SIZES
    format: str


class _Document(TypedDict):
    """``base.json``: everything that decides the faults, and by fault what came of them where something did."""

    __pydantic_config__ = _CONFIG  # type: ignore[misc]

    format: Literal[1]
    kind: Literal["hoplon gate baseline"]
    target: Literal["values", "memory"]
    model: str
    fingerprint: str
    data: str
    data_digest: str
    inputs: Annotated[int, Ge(1)]
    eligible: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)]
    sites: Annotated[list[_Site], MinLen(1)]
    fault_model: str
    criterion: str
    placement: Literal["before", "after"]
    arrival: Literal["before", "after"]
    protections: list[str]
    seed: Annotated[int, Ge(0)]
    faults: Annotated[int, Ge(1), Le(10**7)]
    failing: list[Annotated[list[Annotated[int, Ge(0)]], Len(2, 2)]]
    versions: dict[str, str]


@final
@dataclass(frozen=True, eq=False)
class Baseline:
    """A recorded build: its faults, to be drawn again, and how many of its inputs each made fail.

    ``document``: as it is stored.
    """

    document: Mapping[str, Any]

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a baseline.

        Raises:
            StoreError: no such file, a damaged one, or something else.
        """
        try:
            found: dict[str, Any] = json_as(_Document, read_bytes(Path(path)), must_be_sealed=True)
            if unknown := {site["format"] for site in found["sites"]} - set(_DTYPES):
                raise ValueError(f"a number format {min(unknown)!r}")
            if max([fault for fault, _ in found["failing"]], default=0) >= found["faults"]:
                raise ValueError("a failing fault beyond the last one")
        except (OSError, ValueError) as error:
            raise StoreError(f"expected a baseline at {path}, got {error}; hoplon gate --record writes one") from error
        return cls(found)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the baseline, whole or not at all."""
        write_json(path, self.document)
        return Path(path)

    @property
    def faults(self) -> int:
        """How many faults were run."""
        return int(self.document["faults"])

    def shares(self) -> Floats:
        """By fault the share of its runs that fail or crash: float64, shape ``(faults,)``."""
        found = np.zeros(self.faults)
        runs = 1 if self.document["target"] == "values" else len(self.document["eligible"])
        for fault, count in self.document["failing"]:
            found[fault] = count / runs
        return found

    def require_same(self, campaign: Campaign) -> None:
        """Refuse a campaign whose figures could not be compared with these.

        Raises:
            HoplonError, DataError: another target, fault model, criterion, placement, arrival or other data.
        """
        asked = _asked(campaign)
        for key in ("target", "fault_model", "criterion", "placement", "arrival"):
            if asked[key] != self.document[key]:
                raise HoplonError(
                    f"expected {key.replace('_', ' ')} {self.document[key]} as in the baseline, got {asked[key]}; give "
                    "that one, or record another baseline"
                )
        if asked["data_digest"] != self.document["data_digest"]:
            raise DataError(
                f"expected the data of the baseline, {self.document['data']!r} with {self.document['inputs']} inputs, "
                f"got {asked['data']!r} with {asked['inputs']}; give the same samples, or record another baseline"
            )


def recorded(campaign: Campaign, runner: UnitRunner, shares: Floats, versions: Mapping[str, str]) -> Baseline:
    """Make a baseline of a campaign's first faults and the shares of their runs that failed."""
    eligible = runner.injector.reference.eligible.tolist()
    runs = 1 if runner.target == "values" else len(eligible)
    failing = [[int(fault), round(shares[fault] * runs)] for fault in np.flatnonzero(shares)]
    document = {
        "format": 1,
        "kind": "hoplon gate baseline",
        **_asked(campaign),
        "model": campaign.program.name,
        "fingerprint": campaign.program.fingerprint(),
        "eligible": eligible,
        "sites": [_described(site) for site in runner.sites],
        "protections": [protection.label for protection in campaign.protections],
        "seed": runner.seed,
        "faults": len(shares),
        "failing": failing,
        "versions": dict(versions),
    }
    return Baseline(document)


def _asked(campaign: Campaign) -> dict[str, Any]:
    return {
        "target": campaign.target,
        "data": campaign.data.name,
        "data_digest": campaign.data.digest(),
        "inputs": len(campaign.data),
        "fault_model": campaign.fault_model.name,
        "criterion": repr(campaign.criterion),
        "placement": campaign.placement,
        "arrival": campaign.arrival,
    }


def _described(site: Site) -> dict[str, Any]:
    value = isinstance(site, ValueSite)
    who = {key: getattr(site, key) if value else default for key, default in _OF_MEMORY.items()}
    return {"name": site.name, **who, "shape": list(site.shape), "format": native(site.dtype).name}


_OF_MEMORY = {"owner": "", "kind": "", "call": 0, "output": 0}


def _site(described: Mapping[str, Any], target: str) -> Site:
    shape, dtype = tuple(described["shape"]), _DTYPES[described["format"]]
    if target == "memory":
        return MemorySite(described["name"], shape=shape, dtype=dtype)
    who = {key: described[key] for key in _OF_MEMORY}
    return ValueSite(**who, shape=shape, dtype=dtype)


@final
@dataclass(frozen=True, eq=False)
class Coupling:
    """Faults of a build beside those of a baseline: the same where the site is, others drawn in their place.

    ``matching``: names of sites that both have, alike in shape and number format. Where the others come to as many
    elements on both sides, each of their faults gets a fresh one in the place of it, and all others are the same; else
    all are fresh. Either way the faults are spread evenly over each side's elements, so that the mean difference of
    pairs is the difference of both sides.
    """

    runner: UnitRunner
    baseline: UnitRunner | None
    matching: frozenset[str]
    fresh: UnitRunner | None

    @classmethod
    def of(cls, runner: UnitRunner, baseline: Baseline | None) -> Coupling:
        """Couple a prepared campaign with a baseline; without one, its faults are its own.

        Raises:
            DataError: no input that both sides get right.
        """
        if baseline is None:
            return cls(runner, None, frozenset(), None)
        document = baseline.document
        before = [_site(site, document["target"]) for site in document["sites"]]
        inputs = None if runner.target == "memory" else torch.tensor(document["eligible"])
        model = runner.population.fault_model
        old = replace(runner, population=Population(before, model, inputs), seed=document["seed"])
        now = {site.name: _alike(site) for site in runner.sites}
        matching = frozenset(site.name for site in before if now.get(site.name) == _alike(site))
        others = [site for site in runner.sites if site.name not in matching]
        lost = sum(site.numel for site in before if site.name not in matching)
        if sum(site.numel for site in others) != lost:
            matching, others = frozenset(), list(runner.sites)
        known = runner.population.inputs
        if inputs is not None and not set(known.tolist() if known is not None else ()) & set(inputs.tolist()):
            raise DataError("expected inputs that both builds get right, got none")
        fresh = replace(runner, population=replace(runner.population, sites=others)) if others else None
        return cls(runner, old, matching, fresh)

    def draw(self, unit: int, count: int) -> tuple[FaultTable, np.ndarray]:
        """Draw the first faults of a unit for this build.

        Returns:
            The table, numbered as the baseline's, and by number whether the fault is the baseline's own.
        """
        if self.baseline is None:
            return self.runner.draw(unit, count), np.zeros(count, dtype=bool)
        drawn = self.baseline.draw(unit, count)
        here = (
            drawn.frame["site"].cast(pl.String).is_in(self.matching)
            if self.matching
            else pl.repeat(False, drawn.frame.height, eager=True)
        )
        same = np.zeros(count, dtype=bool)
        same[drawn.frame.filter(here)["fault"].unique().to_numpy()] = True
        if self.fresh is None:
            return drawn, same
        # another stream than the baseline's: a fault of a site that is gone must not decide the one in its place
        other = self.fresh.draw(_APART + unit, count)
        parts = [
            table.frame.filter(pl.col("fault").is_in(np.flatnonzero(which)))
            for table, which in ((drawn, same), (other, ~same))
        ]
        return FaultTable(drawn.target, _joined(parts)), same

    def shares(self, table: FaultTable, count: int, criterion: str) -> Floats:
        """Run a table; by fault the share of runs that fail or crash, NaN for an input that this build gets wrong."""
        found = np.full(count, np.nan)
        if table.target == "values":
            eligible = self.runner.injector.reference.eligible.tolist()
            table = FaultTable(table.target, table.frame.filter(pl.col("input").is_in(eligible)))
        if len(table):
            runs, _ = self.runner.injector.runs(table)
            harm = pl.col(criterion).cast(pl.String).is_in(HARMFUL).mean()
            counted = runs.group_by("fault").agg(harm=harm)
            found[counted["fault"].to_numpy()] = counted["harm"].to_numpy()
        return found


def _alike(site: Site) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(site.shape), site.dtype


def _joined(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Rows of tables whose names are not the same ones."""
    plain = [part.with_columns(pl.col("site", "format").cast(pl.String)) for part in parts]
    frame = pl.concat(plain).sort("fault", maintain_order=True)
    names = {name: pl.Enum(frame[name].unique(maintain_order=True)) for name in ("site", "format")}
    return frame.with_columns(pl.col(name).cast(kind) for name, kind in names.items())
