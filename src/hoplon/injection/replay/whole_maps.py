"""Passes over whole values, for the runs that left a sweep: many runs to a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.injection.replay.golden import GoldenStack, ReplayStatistics
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.row_dependence import RowDependence, RowsOf, WithinBatch, part_layouts
from hoplon.injection.replay.sweep import Divergent
from hoplon.injection.replay.values import StepValues, in_rows
from hoplon.injection.replay.windows import Ints, Wholes, Windows, one_per_row
from hoplon.program.layout import Layout

# Runs are spread over at least so many passes, unless these would have fewer samples than is worth a pass.
_PASSES = 4
_SMALLEST_PASS = 2


@dataclass
class WholeMapPasses:
    """Passes over the steps that the sweep did not take.

    Runs that left the sweep at similar steps are batched together, in any rows. A step that would give them other bits
    there is run on their golden batches, each run in the row of its input.

    ``rows``: shape ``(runs,)``, int64, the row of each run's input in the stack.
    """

    plan: Plan
    golden: GoldenStack
    rows: Ints
    row_dependence: RowDependence
    statistics: ReplayStatistics = field(default=ReplayStatistics(), init=False)

    def outputs(self, divergent: Divergent) -> list[Any]:
        """Return the flat outputs of all runs, samples first: golden ones for the runs that ended."""
        outputs = self.golden.outputs(self.rows)
        values = {number: golden.delivered.computed() for number, golden in self.golden.batches.items()}
        alive = np.flatnonzero(divergent.start >= 0)
        order = alive[np.argsort(divergent.start[alive], kind="stable")]
        size = self.plan.program.signature.fixed_batch or size_of_passes(len(order), self.golden.batch)
        for begin in range(0, len(order), size):
            chunk = np.sort(order[begin : begin + size])
            filled = np.pad(self.rows[chunk], (0, size - len(chunk)), mode="edge")
            one = _Pass(self, values, filled, len(chunk))
            self._run_steps(one, divergent, chunk, int(divergent.start[chunk].min()))
            self._store_outputs(one, chunk, outputs)
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


def rows_of(layout: Layout, stack: GoldenStack, values: Mapping[int, Any], step: int, rows: Ints) -> Any:
    """Return the samples of these rows of a value, by batch in ``values``, as one batch value."""
    parts = [(values[number][step], where, local) for number, where, local in stack.split(rows)]
    if not isinstance(parts[0][0], Tensor):
        return parts[0][0]
    taken = [layout.take(value, torch.from_numpy(local).to(value.device)) for value, _, local in parts]
    return _in_order(layout, taken, np.concatenate([where for _, where, _ in parts]))


def _in_order(layout: Layout, parts: Sequence[Tensor], places: Ints) -> Tensor:
    """Return samples as one batch value; ``places``: shape ``(samples,)``, where each of the parts' samples belongs."""
    value = layout.joined(parts)
    if (places[1:] > places[:-1]).all():
        return value
    return layout.take(value, torch.from_numpy(np.argsort(places)).to(value.device))


class _Pass(RowsOf):
    """Values of a pass of whole values, of samples of several golden batches.

    ``runs``: how many of its samples are runs; the others fill it up.
    """

    def __init__(self, passes: WholeMapPasses, values: Mapping[int, StepValues], rows: Ints, runs: int) -> None:
        super().__init__(passes.plan, next(iter(values.values())), torch.from_numpy(rows))
        self._stack, self._row_dependence = passes.golden, passes.row_dependence
        self._values, self._stacked, self._runs = values, rows, runs

    @override
    def resolve(self, step: int) -> Any:
        layout = self.program.layouts.get(step)
        if layout is None:
            return super().resolve(step)
        return rows_of(layout, self._stack, self._values, step, self._stacked)

    def compute(self, index: int) -> None:
        """Run a step, so that all runs have the bits that they would have in the rows of their inputs."""
        if self._row_dependence.free(index, len(self.rows), self.source):
            self.own[index] = self.computed(index)
            return
        parts = list(self._filled(index) or self._in_their_rows(index))
        groups, results = [(places, rows) for places, rows, _ in parts], [result for _, _, result in parts]
        layouts = part_layouts(self.program, index)
        if isinstance(results[0], tuple | list):
            columns = zip(layouts, zip(*results, strict=True), strict=False)
            self.own[index] = tuple(self._gathered(layout, groups, values) for layout, values in columns)
        else:
            self.own[index] = self._gathered(layouts[0], groups, results)

    def _filled(self, index: int) -> list[tuple[Ints, Tensor, Any]]:
        """Return the result of a step in a pass filled up to a batch, where that is what the bits depend on."""
        if not self._row_dependence.free(index, self._stack.batch, self.source):
            return []
        places = np.arange(self._runs)
        filled = torch.from_numpy(np.pad(places, (0, self._stack.batch - self._runs), mode="edge"))
        return [(places, torch.from_numpy(places), RowsOf(self.plan, self, filled).computed(index))]

    def _in_their_rows(self, index: int) -> Iterator[tuple[Ints, Tensor, Any]]:
        """Yield runs, the rows of their inputs, and the result of a step on the golden batch with these runs in it."""
        for number, where, local in self._stack.split(self._stacked[: self._runs]):
            for chosen in one_per_row(np.arange(len(where)), local):
                places, rows = torch.from_numpy(where[chosen]), torch.from_numpy(local[chosen])
                yield where[chosen], rows, WithinBatch(self, self._values[number], places, rows).computed(index)

    def _gathered(self, layout: Layout | None, groups: Sequence[tuple[Ints, Tensor]], values: Sequence[Any]) -> Any:
        """Return one result of a step that ran in parts: the samples of all runs, and of what fills the pass up."""
        if layout is None or not isinstance(values[0], Tensor):
            return values[0]
        taken = [in_rows(layout, value, rows) for value, (_, rows) in zip(values, groups, strict=True)]
        value = _in_order(layout, taken, np.concatenate([places for places, _ in groups]))
        filled = torch.arange(len(self.rows), device=value.device).clamp(max=self._runs - 1)
        return value if len(self.rows) == self._runs else layout.take(value, filled)

    def join(self, step: int, pieces: _Join) -> None:
        """Put what runs have at a step into their rows of its value."""
        if step not in self.own:
            self.own[step] = self[step]
        view = self.program.layouts[step].samples_first(self.own[step])
        for piece, rows, chosen in pieces:
            piece.into(view, rows, chosen)
