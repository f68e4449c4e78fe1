"""The runs of one fault table in arm after arm, kept in run directories."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl

from hoplon.campaign.manifest import FORMAT, protected_by, provenance
from hoplon.campaign.results import Results, held_results, site_kinds
from hoplon.campaign.store import RunDirectory
from hoplon.faults.table import FaultTable
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.program.sites import Site
from hoplon.protections.base import Overlay


def slug(name: str) -> str:
    """The name of a folder for an arm or a fault table.

    Example:
        >>> slug("checksum, groups set to 0")
        'checksum-groups-set-to-0'
    """
    return re.sub(r"[^a-z0-9.+-]+", "-", name.lower()).strip("-.")


@dataclass(frozen=True)
class ArmStore:
    """A run directory per arm of one fault table: written when an arm is finished, read instead of running it again."""

    path: Path
    resume: bool

    def load_or_run(
        self,
        manifest: Mapping[str, Any],
        run: Callable[[], tuple[pl.DataFrame, FaultTable]],
        advance: Callable[[int], None],
    ) -> tuple[pl.DataFrame, FaultTable]:
        """Load the runs of the arm that the manifest describes and tell ``advance``, or run and store them."""
        directory = RunDirectory.create(self.path / slug(manifest["arm"]), manifest, resume=self.resume)
        with directory.writing():
            if directory.finished():
                observed, runs = directory.unit(0, manifest["target"])
                advance(len(observed))
            else:
                runs, observed = run()
                directory.write(0, observed, runs)
        return runs, observed


@dataclass(frozen=True, eq=False)
class ArmRuns:
    """Runs one table in arm after arm; arms that do the same to this kind of fault share their runs."""

    reference: GoldenRun
    table: FaultTable
    placement: Placement
    arrival: Arrival
    confidence: float
    store: ArmStore | None
    _seen: list[tuple[Overlay, pl.DataFrame, FaultTable]] = field(default_factory=list, init=False)

    def run(self, over: Overlay, advance: Callable[[int], None]) -> Results:
        """Run one arm and return its results; ``advance`` is told of finished faults."""
        manifest = {**self._shared, "arm": over.label, **protected_by(over.protections)}
        run = partial(self._runs, over, advance)
        runs, observed = run() if self.store is None else self.store.load_or_run(manifest, run, advance)
        return held_results(manifest, [(observed, runs)])

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """What all arms share, for their manifests."""
        return {
            **provenance(self.reference, placement=self.placement, confidence=self.confidence),
            "format": FORMAT,
            "target": self.table.target,
            "faults": {"count": len(self.table), "digest": self.table.plan().digest()},
            "kinds": site_kinds(self._sites()),
            "arrival": self.arrival,
        }

    def _sites(self) -> Iterator[Site]:
        program = self.reference.program
        for name in self.table.frame["site"].unique(maintain_order=True).cast(pl.String):
            yield program.value_site(name) if self.table.target == "values" else program.memory_site(name)

    def _runs(self, over: Overlay, advance: Callable[[int], None]) -> tuple[pl.DataFrame, FaultTable]:
        for other, runs, observed in self._seen:
            if self._same_effect(over, other):
                advance(len(self.table))
                return runs, observed
        runs, observed = Injector(self.reference, over, self.placement, self.arrival).runs(self.table, advance=advance)
        self._seen.append((over, runs, observed))
        return runs, observed

    def _same_effect(self, one: Overlay, other: Overlay) -> bool:
        """Guards see memory only, so under value faults two arms with the same bounds run the same."""
        return self.table.target == "values" and dict(one.values) == dict(other.values)
