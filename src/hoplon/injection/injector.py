"""Runs of fault tables in one arm, judged against the golden run of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.faults.table import FaultTable
from hoplon.injection.arm import Arm
from hoplon.injection.golden_values import FaultFree, SharedReplay
from hoplon.injection.memory_faults import MemoryFaultRuns
from hoplon.injection.value_faults import ValueFaultRuns

ProgressCallback = Callable[[int], None]


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
            changed value); ``weight`` and ``candidates`` where the table has them.
        Raises:
            DataError: a fault on an input that is not eligible, or on a site that the program lacks.
        """
        if table.target == "values":
            runs: ValueFaultRuns | MemoryFaultRuns = ValueFaultRuns(self._values, table)
        else:
            runs = MemoryFaultRuns(self, table, groups)
        outcomes, observed = runs.run(advance or (lambda count: None))
        if table.weighted:
            columns = [name for name in ("weight", "candidates") if name in table.frame.columns]
            weight = table.frame.select("fault", *columns).unique("fault")
            outcomes = outcomes.join(weight, on="fault", how="left", maintain_order="left")
        return outcomes, observed
