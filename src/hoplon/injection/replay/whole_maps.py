"""Passes over whole values, for the runs that left a sweep: many runs to a pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoplon.injection.replay.golden import Golden, ReplayStatistics
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.row_dependence import RowDependence, RowsOf, WithinBatch, part_layouts
from hoplon.injection.replay.sweep import Divergent
from hoplon.injection.replay.values import StepValues, in_rows
from hoplon.injection.replay.windows import Ints, Wholes, Windows, one_per_row

# Runs are spread over at least so many passes, unless these would have fewer samples than is worth a pass.
_PASSES = 4
_SMALLEST_PASS = 2


@dataclass
class WholeMapPasses:
    """Passes over the steps that the sweep did not take.

    Runs that left the sweep at similar steps are batched together, in any rows. A step that would give them other bits
    there is run on the golden batch, each run in the row of its input.

    ``rows``: shape ``(runs,)``, int64, the row of each run's input.
    """

    plan: Plan
    golden: Golden
    rows: Ints
    batch: int
    row_dependence: RowDependence
    statistics: ReplayStatistics = field(default=ReplayStatistics(), init=False)

    def outputs(self, divergent: Divergent) -> list[Any]:
        """Return the flat outputs of all runs, samples first: golden ones for the runs that ended."""
        golden = self.golden.outputs
        rows, shared = torch.from_numpy(self.rows), self.golden.delivered.computed()
        outputs = [out.index_select(0, rows.to(out.device)) if isinstance(out, Tensor) else out for out in golden]
        alive = np.flatnonzero(divergent.start >= 0)
        order = alive[np.argsort(divergent.start[alive], kind="stable")]
        fixed = self.plan.program.signature.fixed_batch
        size = fixed or size_of_passes(len(order), self.batch)
        for begin in range(0, len(order), size):
            chunk = order[begin : begin + size]
            filled = torch.from_numpy(np.pad(self.rows[chunk], (0, size - len(chunk)), mode="edge"))
            values = _Pass(self.plan, shared, filled, len(chunk), self.row_dependence)
            self._run_steps(values, divergent, chunk, int(divergent.start[chunk].min()))
            self._store_outputs(values, chunk, outputs)
        return outputs

    def _run_steps(self, values: _Pass, divergent: Divergent, runs: Ints, begin: int) -> None:
        """Run the steps from ``begin`` on; what runs have at a step joins there."""
        program = self.plan.program
        joins = _joins(divergent, runs, np.arange(len(runs)))
        dirty, operators = program.reach(joins), 0
        for step in joins:
            if step < begin:
                values.join(step, joins[step])
        for index in range(begin, len(program.steps)):
            if dirty >> index & 1 and index in self.plan.useful:
                values.compute(index)
                operators += 1
            if index in joins:
                values.join(index, joins[index])
            values.forget(program.last_reads[index])
        self.statistics += ReplayStatistics(passes=1, operators=operators)

    def _store_outputs(self, values: _Pass, runs: Ints, outputs: list[Any]) -> None:
        program = self.plan.program
        for stored, output in zip(outputs, program.samples_first(program.outputs_from(values)), strict=True):
            if isinstance(stored, Tensor):
                stored[torch.from_numpy(runs).to(stored.device)] = output[: len(runs)]


def size_of_passes(runs: int, batch: int) -> int:
    """Return of how many samples passes over whole values are, for runs in the order in which they begin.

    A power of two, so that few sizes have to be tried. A pass begins where its first run does, so runs are spread over
    several passes even if one could hold them all; the last one, which is the shortest, is filled up.
    """
    several = max(runs // _PASSES, _SMALLEST_PASS)
    return min(batch, 1 << several.bit_length() - 1)


_Join = list[tuple["Windows | Wholes", Ints, Ints]]


def _joins(divergent: Divergent, runs: Ints, places: Ints) -> dict[int, _Join]:
    """Return by step: pieces, the rows of the pass that their entries go to, and which entries."""
    joins: dict[int, _Join] = {}
    for step, pieces in divergent.pieces.items():
        piece_of_run, slot = divergent.homes(step)
        numbers = piece_of_run[runs]
        for number in np.unique(numbers[numbers >= 0]).tolist():
            chosen = numbers == number
            joins.setdefault(step, []).append((pieces[number], places[chosen], slot[runs[chosen]]))
    return joins


class _Pass(RowsOf):
    """Values of a pass of whole values.

    ``count``: how many of its samples are runs; the others fill it up.
    """

    def __init__(self, plan: Plan, golden: StepValues, rows: Tensor, count: int, row_dependence: RowDependence) -> None:
        super().__init__(plan, golden, rows)
        self._count, self._row_dependence = count, row_dependence

    def compute(self, index: int) -> None:
        """Run a step, so that all runs have the bits that they would have in the rows of their inputs."""
        if self._row_dependence.free(index, len(self.rows), self.source):
            self.own[index] = self.computed(index)
            return
        layouts = part_layouts(self.program, index)
        parts: list[Any] = []
        for places in one_per_row(np.arange(self._count), self.rows[: self._count].cpu().numpy()):
            within = WithinBatch(self, torch.from_numpy(places))
            value = within.computed(index)
            several = value if isinstance(value, tuple) else (value,)
            taken = [in_rows(*pair, self.rows) for pair in zip(layouts, several, strict=False)]
            if parts:
                for layout, part, other in zip(layouts, parts, taken, strict=True):
                    if layout is not None and isinstance(part, Tensor):
                        where = torch.from_numpy(places).to(part.device)
                        layout.samples_first(part)[where] = layout.samples_first(other)[where]
            else:
                parts = taken
        self.own[index] = tuple(parts) if isinstance(value, tuple) else parts[0]

    def join(self, step: int, pieces: _Join) -> None:
        """Put what runs have at a step into their rows of its value."""
        if step not in self.own:
            self.own[step] = self[step]
        view = self.program.layouts[step].samples_first(self.own[step])
        for piece, rows, chosen in pieces:
            piece.into(view, rows, chosen)
