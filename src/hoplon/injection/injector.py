"""Runs of fault tables in one arm, judged against the golden run of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NotRequired

import numpy as np
import polars as pl
from numpy.typing import NDArray
from typing_extensions import TypedDict

from hoplon.errors import checked
from hoplon.faults.table import FaultTable
from hoplon.formats.dtypes import native
from hoplon.injection.arm import Arm
from hoplon.injection.golden_values import FaultFree, SharedReplay
from hoplon.injection.memory_budget import WHOLE_BUDGET_BYTES, WINDOW_BUDGET_BYTES
from hoplon.injection.memory_faults import MemoryFaultRuns
from hoplon.injection.packing import Kernels
from hoplon.injection.replay.regions import RegionReplay
from hoplon.injection.value_faults import ValueFaultRuns
from hoplon.program.decoding.program import DecodingProgram
from hoplon.program.program import Program
from hoplon.program.sites import Site, ValueSite

ProgressCallback = Callable[[int], None]


class Execution(TypedDict):
    """How the faults of a campaign are run, for a manifest: a record, which nothing depends on.

    ``batch``: inputs of a pass; ``kernels``: what computes it; ``replay``: "by region", many runs at once, by rows of a
    pass, as whole forwards, or "along golden tokens", of decoding loops; ``input_batches``, and those whose golden
    values are held at once; by region: the maps of a batch that are kept, those that faults strike and that are
    computed again, and the most runs of a sweep that begin in windows, and with whole values.
    """

    batch: int
    kernels: Kernels
    replay: Literal["by region", "by row", "whole forwards", "along golden tokens"]
    input_batches: int
    input_batches_held: NotRequired[int]
    maps_kept: NotRequired[int]
    maps_computed_again: NotRequired[int]
    runs_in_windows: NotRequired[int]
    runs_of_whole_values: NotRequired[int]


@checked
@dataclass(frozen=True, eq=False)
class Injector(Arm):
    """Runs fault tables in one arm (an overlay) and classifies every run."""

    fault_free: FaultFree = field(init=False, repr=False)
    _values: SharedReplay = field(init=False, repr=False)

    def __post_init__(self) -> None:
        arm = Arm(self.reference, self.overlay, self.placement, self.arrival, self.budget)
        object.__setattr__(self, "fault_free", FaultFree(arm))
        object.__setattr__(self, "_values", SharedReplay(arm))

    def runs(
        self, table: FaultTable, *, advance: ProgressCallback | None = None, groups: NDArray[np.bool_] | None = None
    ) -> tuple[pl.DataFrame, FaultTable]:
        """Run all faults of a table.

        Args:
            advance: called with the number of faults just finished.
            groups: for memory faults, bool, shape ``(faults, reference.input_batches)``: the batches of inputs that run
                with each; all by default.
        Returns:
            The outcome of every run, and the table with the words before and after in this arm. One row per run:
            ``fault``, ``input``, one column per name of the criterion (Enum of outcomes), one per measure (Float32, NaN
            where an output is not finite), ``detected``, ``corrected`` (by a guard), ``reached`` (a reader got a
            changed value), ``cause`` (Enum, of a crash); ``weight``, ``candidates`` and ``pooled`` where the table has
            them.
        Raises:
            DataError: a fault on an input that is not eligible, or on a site that the program lacks.
        """
        return self._weighted(table, *self._runs(table, groups).run(advance or (lambda count: None)))

    def lost(
        self, table: FaultTable, cause: str, *, groups: NDArray[np.bool_] | None = None
    ) -> tuple[pl.DataFrame, FaultTable]:
        """As `runs`, of faults that are known to crash, without running them; ``cause`` out of `criteria.CAUSES`."""
        return self._weighted(table, *self._runs(table, groups).lost(cause))

    def rehearse(self, sites: Sequence[Site]) -> None:
        """Run one pass of the first inputs on the path of faults through all these sites, and change no word.

        Raises:
            HoplonError: it raises, which is no outcome of a fault.
        """
        struck = [site for site in sites if site.numel]
        values = [site for site in struck if isinstance(site, ValueSite)]
        columns: dict[str, Any] = {"fault": 0, "site": [site.name for site in struck], "element": 0, "flip": 0}
        columns |= {"format": [native(site.dtype).name for site in struck], "keep": 0, "probability": np.nan}
        inputs = {"input": int(self.reference.eligible[0])} if values else {}
        table = FaultTable("values" if values else "memory", pl.DataFrame(columns | inputs)).unchanged()
        if values:
            ValueFaultRuns(self._values, table).run(lambda count: None)  # whose fault-free values serve the first unit
        else:
            MemoryFaultRuns(self, table).rehearse()

    def execution(self, sites: Sequence[Site]) -> Execution:
        """Say how faults at these sites are run: what is chosen for them and decides no record.

        Of value faults more is known once the golden run, or a rehearsal, has gone their way.
        """
        reference = self.reference
        program, values = reference.program, [site for site in sites if isinstance(site, ValueSite)]
        packed = any(step.kernel is not None for step in program.steps)
        found: Execution = {
            "batch": reference.batch,
            "kernels": "packed" if packed else "exact",
            "replay": _way(program),
            "input_batches": reference.input_batches,
        }
        replay, held = (self._values.known if values else None) or (None, 1)
        if isinstance(replay, RegionReplay):
            runs = partial(self.budget.runs, program, values, batch=reference.batch)
            small = [replay.in_windows(site.name) for site in values]
            kept, computed = replay.golden_maps
            found |= {"replay": "by region", "maps_kept": kept, "maps_computed_again": computed}
            found |= {"runs_in_windows": runs(default=WINDOW_BUDGET_BYTES)} if any(small) else {}
            found |= {"runs_of_whole_values": runs(default=WHOLE_BUDGET_BYTES)} if not all(small) else {}
        return {**found, "input_batches_held": min(held, reference.input_batches)}

    def _runs(self, table: FaultTable, groups: NDArray[np.bool_] | None) -> ValueFaultRuns | MemoryFaultRuns:
        return ValueFaultRuns(self._values, table) if table.target == "values" else MemoryFaultRuns(self, table, groups)

    def _weighted(
        self, table: FaultTable, outcomes: pl.DataFrame, observed: FaultTable
    ) -> tuple[pl.DataFrame, FaultTable]:
        if table.weighted:
            columns = [name for name in ("weight", "candidates", "pooled") if name in table.frame.columns]
            weight = table.frame.select("fault", *columns).unique("fault")
            outcomes = outcomes.join(weight, on="fault", how="left", maintain_order="left")
        return outcomes, observed


def _way(program: Program) -> Literal["by row", "whole forwards", "along golden tokens"]:
    if isinstance(program, DecodingProgram):
        return "along golden tokens"
    return "by row" if program.has_graph else "whole forwards"
