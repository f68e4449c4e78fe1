"""Memory budget of a campaign: for golden values that are kept, and for what runs carry from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from hoplon.errors import Count, checked
from hoplon.program.program import Program
from hoplon.program.sites import ValueSite

GOLDEN_BUDGET_BYTES = 2 * 2**30
# For the values of runs that are under way at once: they are mostly far smaller than whole ones.
WINDOW_BUDGET_BYTES = 4 * 2**30
# For the values of runs that begin with whole ones.
WHOLE_BUDGET_BYTES = 2**28
_MOST_RUNS = 8192


@final
@checked
@dataclass(frozen=True)
class Budget:
    """Bytes for runs; None: 2 GiB of golden values, and as many runs at once as usually fit into 4 GiB.

    With ``total``, half of it is for golden values and half for what runs carry from operator to operator, taken for
    whole values at the step where most of them are live, although they are mostly windows. One run and the golden
    values of one batch are held in any case; a pass, and a memory fault, works on a whole batch.
    """

    total: int | None = None

    @property
    def golden(self) -> int:
        """Bytes for golden values of input batches."""
        return GOLDEN_BUDGET_BYTES if self.total is None else self.total // 2

    def runs(self, program: Program, sites: Sequence[ValueSite], *, batch: Count, default: int) -> int:
        """Return the number of runs that are replayed at once.

        Args:
            batch: runs at once where there is no total, at least.
            default: bytes for all runs where there is no total, each taken for the largest value of ``sites``.
        """
        if self.total is None:
            largest = max((site.numel * site.dtype.itemsize for site in sites), default=1)
            return max(batch, min(_MOST_RUNS, default // max(largest, 1)))
        return max(1, min(_MOST_RUNS, self.total // 2 // max(live_bytes(program), 1)))


USUAL = Budget()


def live_bytes(program: Program) -> int:
    """Return the most bytes of one sample's values that are live at once: those that later steps read, and a result."""
    sizes = {program.site_steps[site.name]: site.numel * site.dtype.itemsize for site in program.value_sites}
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


def tensor_bytes(values: Iterable[Any]) -> int:
    """Return the bytes of the tensors among some values, each counted once."""
    return sum({id(value): value.nbytes for value in values if isinstance(value, Tensor)}.values())
