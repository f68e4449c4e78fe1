"""Runs of fault tables in one arm, judged against the golden run of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.errors import checked
from hoplon.faults.table import FaultTable
from hoplon.formats.dtypes import native
from hoplon.injection.arm import Arm
from hoplon.injection.golden_values import FaultFree, SharedReplay
from hoplon.injection.memory_faults import MemoryFaultRuns
from hoplon.injection.value_faults import ValueFaultRuns
from hoplon.program.sites import Site, ValueSite

ProgressCallback = Callable[[int], None]


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
