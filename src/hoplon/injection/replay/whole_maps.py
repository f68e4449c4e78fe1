"""Passes over whole values, for the runs that left a sweep: many runs to a pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.injection.replay.golden import Golden, ReplayStatistics
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.row_dependence import RowDependence
from hoplon.injection.replay.sweep import Divergent
from hoplon.injection.replay.values import StepValues, in_rows
from hoplon.injection.replay.windows import Ints, Wholes, Windows, one_per_row


@dataclass
class WholeMapPasses:
    """Passes over the steps that the sweep did not take.

    Runs that left the sweep at similar steps are batched together, in any rows, up to the first row-dependent step.
    From that step on, every run occupies the row that its input has in the golden batch.

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
        rows, shared = torch.from_numpy(self.rows), StepValues(self.plan.program, self.golden.delivered)
        outputs = [out.index_select(0, rows.to(out.device)) if isinstance(out, Tensor) else out for out in golden]
        for step, runs in self._by_next_dependent_step(divergent.start):
            waiting = Divergent(np.where(np.isin(np.arange(len(divergent.start)), runs), step, -1))
            order = runs[np.argsort(divergent.start[runs], kind="stable")]
            for first in range(0, len(order), self.batch):
                chunk = order[first : first + self.batch]
                if (begin := int(divergent.start[chunk].min())) < step:
                    filled = np.pad(self.rows[chunk], (0, self.batch - len(chunk)), mode="edge")
                    values = _Pass(self.plan, shared, filled)
                    self._run_steps(values, divergent, chunk, np.arange(len(chunk)), begin, step)
                    self._hand_on_values(values, waiting, chunk)
                else:
                    _hand_on_pieces(divergent, waiting, chunk)
            self._in_rows(waiting, runs, step, outputs, shared)
        return outputs

    def _in_rows(self, waiting: Divergent, runs: Ints, first: int, outputs: list[Any], shared: StepValues) -> None:
        """Run the steps from a row-dependent one to the end, each run in the row of its input."""
        # Invariant: in each pass, the run in row r has the r-th input of the golden batch, at most one run per row, and
        # every other row holds golden values. So all kernels see the shapes and rows of the golden run, and only the
        # rows of the pass's own runs may be taken from its outputs.
        self.statistics += ReplayStatistics(carried_bytes=waiting.bytes)
        for chunk in one_per_row(runs, self.rows[runs]):
            values = _Pass(self.plan, shared, None)
            self._run_steps(values, waiting, chunk, self.rows[chunk], first, len(self.plan.program.steps))
            self._store_outputs(values, chunk, outputs)

    def _by_next_dependent_step(self, start: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield each first row-dependent step that runs meet, and these runs; runs that ended meet none."""
        alive = np.flatnonzero(start >= 0)
        boundary = {int(step): self.row_dependence.next(int(step), self.golden) for step in np.unique(start[alive])}
        steps = np.array([boundary[step] for step in start[alive].tolist()], dtype=np.int64)
        for step in np.unique(steps):
            yield int(step), alive[steps == step]

    def _run_steps(self, values: _Pass, divergent: Divergent, runs: Ints, places: Ints, begin: int, end: int) -> None:
        """Run the steps from ``begin`` to before ``end``; what runs have at a step joins there, in rows ``places``."""
        program = self.plan.program
        joins = _joins(divergent, runs, places)
        dirty, operators = program.reach(joins), 0
        for step in joins:
            if step < begin:
                values.join(step, joins[step])
        for index in range(begin, end):
            if dirty >> index & 1 and index in self.plan.useful:
                values.compute(index)
                operators += 1
            if index in joins:
                values.join(index, joins[index])
            values.forget(program.last_reads[index])
        self.statistics += ReplayStatistics(passes=1, operators=operators)

    def _hand_on_values(self, values: _Pass, waiting: Divergent, runs: Ints) -> None:
        """Keep the values of a pass that later steps read."""
        for step, value in values.own.items():
            layout = self.plan.program.layouts.get(step)
            if layout is not None and isinstance(value, Tensor):
                waiting.add(step, Wholes(runs, self.rows[runs], layout.samples_first(value)[: len(runs)]))

    def _store_outputs(self, values: _Pass, runs: Ints, outputs: list[Any]) -> None:
        program = self.plan.program
        for stored, output in zip(outputs, program.samples_first(program.outputs_from(values)), strict=True):
            if isinstance(stored, Tensor):
                stored[torch.from_numpy(runs).to(stored.device)] = output[
                    torch.from_numpy(self.rows[runs]).to(stored.device)
                ]


def _hand_on_pieces(divergent: Divergent, waiting: Divergent, runs: Ints) -> None:
    for step, pieces in divergent.pieces.items():
        for piece in pieces:
            chosen = np.isin(piece.runs, runs)
            if chosen.any():
                waiting.add(step, piece.pick(chosen))


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


class _Pass(StepValues):
    """Values of a pass of whole batches.

    ``golden``: values that passes share; ``rows``: shape ``(batch,)``, int64, the rows of the golden batch that the
    rows of the pass hold; None for the golden batch itself.
    """

    source: StepValues

    def __init__(self, plan: Plan, golden: StepValues, rows: Ints | None) -> None:
        super().__init__(plan.program, golden)
        self._plan = plan
        self._rows = None if rows is None else torch.from_numpy(rows).to(plan.program.device)

    @override
    def resolve(self, step: int) -> Any:
        value = self.source[step]
        return value if self._rows is None else in_rows(self.program.layouts.get(step), value, self._rows)

    def compute(self, index: int) -> None:
        """Run a step."""
        value = self.program.steps[index].run(self)
        protection = self._plan.protections.get(index)
        self.own[index] = value if protection is None else protection.apply_(value)

    def join(self, step: int, pieces: _Join) -> None:
        """Put what runs have at a step into their rows of its value."""
        if step not in self.own:
            golden = self[step]
            self.own[step] = golden.clone() if self._rows is None else golden
        view = self.program.layouts[step].samples_first(self.own[step])
        for piece, rows, chosen in pieces:
            piece.into(view, rows, chosen)
