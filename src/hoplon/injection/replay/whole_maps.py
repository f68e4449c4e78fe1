"""What is left after a sweep: whole values of the runs that are still alive, many runs to a pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.in_place import run_in_place
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.row_dependence import RowDependence
from hoplon.injection.replay.sweep import Divergent
from hoplon.injection.replay.values import StepValues
from hoplon.injection.replay.windows import Ints, Wholes, Windows


@dataclass(frozen=True)
class WholeMapPasses:
    """Passes over the steps that the sweep did not take.

    Up to the first tied step, a pass holds any ``batch`` runs, those that left at about the same step; from there on,
    each run lies in the row of its input.
    """

    plan: Plan
    golden: Golden
    rows: Ints
    batch: int
    ties: RowDependence

    def outputs(self, left: Divergent) -> list[Any]:
        """The flat outputs of all runs, samples first: golden ones for the runs that ended."""
        golden = self.golden.outputs
        index, shared = torch.from_numpy(self.rows), StepValues(self.plan.program, self.golden.delivered)
        found = [out.index_select(0, index.to(out.device)) if isinstance(out, Tensor) else out for out in golden]
        for tied, members in self._by_next_tied(left.start):
            later = Divergent(np.where(np.isin(np.arange(len(left.start)), members), tied, -1))
            order = members[np.argsort(left.start[members], kind="stable")]
            for chunk in _chunks(order, self.batch):
                if (begin := int(left.start[chunk].min())) < tied:
                    row = np.pad(self.rows[chunk], (0, self.batch - len(chunk)), mode="edge")
                    values = _Pass(self.plan, shared, row)
                    self._walk(values, left, chunk, np.arange(len(chunk)), begin, tied)
                    self._keep(values, later, chunk, tied)
                else:
                    _hand_over(left, later, chunk)
            self._in_rows(later, members, tied, found, shared)
        return found

    def _in_rows(self, later: Divergent, members: Ints, tied: int, found: list[Any], shared: StepValues) -> None:
        """From the first tied step to the end: each run in the row of its input."""
        for chunk in self._turns(members):
            values = _Pass(self.plan, shared, None)
            self._walk(values, later, chunk, self.rows[chunk], tied, len(self.plan.program.steps))
            self._collect(values, chunk, self.rows[chunk], found)

    def _by_next_tied(self, start: Ints) -> Iterator[tuple[int, Ints]]:
        """Runs that are alive, by the first tied step that they meet."""
        alive = np.flatnonzero(start >= 0)
        found = {int(step): self.ties.next(int(step), self.golden) for step in np.unique(start[alive])}
        tied = np.array([found[step] for step in start[alive].tolist()], dtype=np.int64)
        for step in np.unique(tied):
            yield int(step), alive[tied == step]

    def _turns(self, members: Ints) -> list[Ints]:
        """Runs side by side, no two of one row."""
        order = members[np.argsort(self.rows[members], kind="stable")]
        rows = self.rows[order]
        turn = np.arange(len(order)) - np.searchsorted(rows, rows)
        return [order[turn == number] for number in range(turn.max(initial=-1) + 1)]

    def _walk(self, values: _Pass, left: Divergent, runs: Ints, places: Ints, begin: int, end: int) -> None:
        """Run the steps from ``begin`` to before ``end``, with what the runs have joining at its step."""
        program = self.plan.program
        joins = _joins(left, runs, places)
        dirty = 0
        for step in joins:
            dirty |= program.descendants[step]
            if step < begin:
                values.join(step, joins[step])
        for index in range(begin, end):
            if dirty >> index & 1 and index in self.plan.useful:
                values.compute(index)
            if index in joins:
                values.join(index, joins[index])
            values.forget(program.last_reads[index])

    def _keep(self, values: _Pass, later: Divergent, chunk: Ints, end: int) -> None:
        """What steps from ``end`` on read of a pass."""
        for step, value in values.own.items():
            layout = self.plan.program.layouts.get(step)
            if layout is not None and isinstance(value, Tensor):
                data = layout.samples_first(value)[: len(chunk)]
                later.add(step, Wholes(chunk, self.rows[chunk], data))

    def _collect(self, values: _Pass, chunk: Ints, place: Ints, found: list[Any]) -> None:
        program = self.plan.program
        for mine, output in zip(found, program.samples_first(program.outputs_from(values)), strict=True):
            if isinstance(mine, Tensor):
                rows, runs = (torch.from_numpy(part).to(mine.device) for part in (place, chunk))
                mine[runs] = output[rows]


def _hand_over(left: Divergent, later: Divergent, chunk: Ints) -> None:
    for step, pieces in left.pieces.items():
        for piece in pieces:
            chosen = np.isin(piece.runs, chunk)
            if chosen.any():
                later.add(step, piece.pick(chosen))


def _chunks(runs: Ints, size: int) -> Iterator[Ints]:
    for begin in range(0, len(runs), size):
        yield runs[begin : begin + size]


_Join = list[tuple["Windows | Wholes", Ints, Ints]]


def _joins(left: Divergent, runs: Ints, places: Ints) -> dict[int, _Join]:
    """By step: pieces, the rows of the pass that their windows go to, and which windows."""
    joins: dict[int, _Join] = {}
    for step, pieces in left.pieces.items():
        home, slot = left.homes(step)
        mine = home[runs]
        for number in np.unique(mine[mine >= 0]).tolist():
            here = mine == number
            joins.setdefault(step, []).append((pieces[number], places[here], slot[runs[here]]))
    return joins


class _Pass(StepValues):
    """Values of a pass of whole batches.

    ``rows``: shape ``(batch,)``, int64, the inputs whose golden values lie in its rows; None for those of the batch;
    ``golden``: values that passes share.
    """

    source: StepValues

    def __init__(self, plan: Plan, golden: StepValues, rows: Ints | None) -> None:
        super().__init__(plan.program, golden)
        self._plan = plan
        self._rows = None if rows is None else torch.from_numpy(rows).to(plan.program.device)

    @override
    def resolve(self, step: int) -> Any:
        value, layout = self.source[step], self.program.layouts.get(step)
        if self._rows is None or layout is None or not isinstance(value, Tensor):
            return value
        return layout.take(value, self._rows)

    def compute(self, index: int) -> None:
        """Run a step."""
        step, spare = self.program.steps[index], self.own.get(self._plan.overwritten.get(index, -1))
        value = step.run(self) if spare is None else run_in_place(step, self, spare)
        protection = self._plan.protections.get(index)
        self.own[index] = value if protection is None else protection.apply_(value)

    def join(self, step: int, pieces: _Join) -> None:
        """Put what runs have at a step into their rows."""
        if step not in self.own:
            shared = self[step]
            self.own[step] = shared.clone() if self._rows is None else shared
        value = self.own[step]
        view = self.program.layouts[step].samples_first(value)
        for piece, rows, chosen in pieces:
            piece.into(view, rows, chosen)
