"""How much memory faults may take: fault-free values that are kept, and what runs under way at once carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from hoplon.program.program import Program
from hoplon.program.sites import ValueSite

GOLDEN_BUDGET_BYTES = 2 * 2**30
# For the values of runs that are under way at once: they are mostly far smaller than whole ones.
WINDOW_BUDGET_BYTES = 4 * 2**30
_MOST_RUNS = 8192


@final
@dataclass(frozen=True)
class Budget:
    """Bytes for faults; None: 2 GiB of fault-free values, and runs side by side by what they usually carry.

    With ``total``, half of it is for fault-free values and half for what runs carry from operator to operator, taken
    for whole values at the step where most of them are live, although they are mostly windows or few channels. One run
    and the fault-free values of one batch are held in any case; a pass works on a whole batch, and a memory fault meets
    one.
    """

    total: int | None = None

    @property
    def golden(self) -> int:
        """For fault-free values of input batches."""
        return GOLDEN_BUDGET_BYTES if self.total is None else self.total // 2

    def runs(self, program: Program, sites: Sequence[ValueSite], *, batch: int, default: int) -> int:
        """How many runs go side by side.

        Args:
            sites, default: where there is no total, bytes for the largest value of these sites of each.
        """
        if self.total is None:
            largest = max((site.numel * site.dtype.itemsize for site in sites), default=1)
            return max(batch, min(_MOST_RUNS, default // max(largest, 1)))
        return max(1, min(_MOST_RUNS, self.total // 2 // max(live_bytes(program), 1)))


USUAL = Budget()


def live_bytes(program: Program) -> int:
    """Bytes of one sample's values that are live at once, at most: those that a later step reads, and the one made."""
    sizes: dict[int, int] = {}
    for site in program.value_sites:
        sizes[program.site_steps[site.name]] = site.numel * site.dtype.itemsize
    live: dict[int, int] = {}
    most = 0
    for step in program.steps:
        if step.carries:
            read = max((live.get(read, 0) for read in step.reads), default=0)
            live[step.index] = sizes.get(step.index, read)
        most = max(most, sum(live.values()))
        for dead in program.last_reads[step.index]:
            live.pop(dead, None)
    return most
