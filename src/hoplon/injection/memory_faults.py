"""Runs of memory faults: one fault meets all eligible inputs, after the guards' check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from hoplon.criteria.outcome import Outcome
from hoplon.errors import HoplonError
from hoplon.faults.table import FaultTable
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.injection.golden_run import GoldenRun, replay_of
from hoplon.injection.memory_budget import SIDE_BY_SIDE_BYTES, USUAL, Budget
from hoplon.injection.replay.golden import Golden, Placement
from hoplon.injection.replay.packed import Changed, PackedReplay
from hoplon.injection.run_table import RUN_ERRORS, blank, run_frame
from hoplon.injection.working_memory import Words
from hoplon.program.sites import MemorySite
from hoplon.protections.base import Overlay
from hoplon.protections.memory_guard import GuardReport

Arrival = Literal["before", "after"]
"""When a memory fault strikes: before the guards' check, or after it."""


@dataclass
class _Residue:
    """What a fault leaves in memory after the guards' check."""

    changed: dict[str, Words]
    report: GuardReport


class MemoryFaultRuns:
    """Memory faults: one fault meets all eligible inputs, or the batches of them in its group; guards check once.

    Faults that arrive before the check are met as the guards leave them. Those that arrive after it are met as they
    are, and found by the next check: `detected` and `corrected` then say what came too late.
    """

    def __init__(
        self,
        reference: GoldenRun,
        overlay: Overlay,
        placement: Placement,
        arrival: Arrival,
        table: FaultTable,
        groups: NDArray[np.bool_] | None = None,
        *,
        budget: Budget = USUAL,
    ) -> None:
        self.reference, self.table, self.arrival = reference, table, arrival
        program = self.reference.program
        self.armed = ArmedMemory(program, overlay)
        self.memory = self.armed.working
        sites = self._sites()
        self.replay = replay_of(program, overlay, self.reference.batch, sites, placement)
        self.most = budget.runs(program, program.value_sites, batch=reference.batch, default=SIDE_BY_SIDE_BYTES)
        self.faults = table.frame["fault"].unique(maintain_order=True).to_numpy()
        shape = len(self.faults), reference.input_batches
        self.groups = np.ones(shape, dtype=np.bool_) if groups is None else groups
        if self.groups.shape != shape:
            raise HoplonError(f"expected groups of shape {shape}, faults by input batches, got {self.groups.shape}")
        self.outcomes, self.measures = blank(self.reference.criterion, len(self.faults), len(self.reference.eligible))
        height = table.frame.height
        self.before, self.after = torch.zeros(height, dtype=torch.int64), torch.zeros(height, dtype=torch.int64)

    def run(self, advance: Callable[[int], None]) -> tuple[pl.DataFrame, FaultTable]:
        """Strike, check and restore every fault first; then run what is left of them, input batch by input batch."""
        residues = list(self._residues())
        finished = 0
        struck = [residue.changed for residue in residues]
        order = self.replay.order(struck) if isinstance(self.replay, PackedReplay) else np.arange(len(residues))
        for number in range(self.reference.input_batches):
            met = self.groups[:, number]
            leaves, real = self.reference.leaves(number)
            golden = self.replay.golden(leaves) if met.any() else None
            columns = slice(number * self.reference.batch, number * self.reference.batch + real)
            waiting: list[tuple[int, Changed]] = []
            for turn, index in enumerate(order.tolist()):
                if golden is not None and met[index]:
                    part = self._begun(golden, residues[index], columns)
                    if part is None:
                        self._judge(index, golden, residues[index], columns)
                    else:
                        waiting.append((index, part))
                if golden is not None and (turn + 1 == len(order) or self._enough(waiting)):
                    self._finish(waiting, golden, residues, columns)
                    waiting = []
                done = ((number * len(residues)) + turn + 1) // self.reference.input_batches
                advance(done - finished)
                finished = done
        return self._frame(residues), self.table.observed(before=self.before, after=self.after)

    def _sites(self) -> tuple[MemorySite, ...]:
        """What the faults can change: the struck storages, or all of them where guards are struck and may err."""
        program = self.reference.program
        names = self.table.frame["site"].unique().cast(pl.String).to_list()
        if self.armed.guards:
            guarded = {site.name for site in self.armed.guard_sites}
            if guarded & set(names):
                return program.memory_sites
        return tuple(program.memory_site(name) for name in names)

    def _residues(self) -> Iterator[_Residue]:
        rows = self.table.frame.with_row_index("row").partition_by("fault", maintain_order=True)
        for words in rows:
            struck = [name for word in words.iter_rows(named=True) if (name := self._strike(word)) is not None]
            late = self.memory.changed(dict.fromkeys(struck)) if self.arrival == "after" else None
            report = self.armed.check()
            touched = list(dict.fromkeys([*struck, *report.where]))
            changed = self.memory.changed(touched) if late is None else late
            yield _Residue(changed, report)
            left = report.uncorrectable or report.mitigated or (report.detected and changed and late is None)
            if left or len(struck) < words.height:  # what guards hold may differ: looking costs a read of it all
                self.armed.restore(touched)
            else:
                self.memory.restore(touched)

    def _strike(self, word: dict[str, Any]) -> str | None:
        row = word["row"]
        name, self.before[row], self.after[row] = self.armed.corrupt(word)
        return name

    def _enough(self, waiting: Sequence[tuple[int, Changed]]) -> bool:
        """Whether one fault more could be more than go side by side."""
        return sum(len(part.rows) for _, part in waiting) > self.most - self.reference.batch

    def _begun(self, golden: Golden, residue: _Residue, columns: slice) -> Changed | None:
        """The samples that a fault reaches, to go on beside those of others; None for a fault that goes alone."""
        stopped = residue.report.uncorrectable and self.arrival == "before"
        if stopped or not residue.changed or not isinstance(self.replay, PackedReplay):
            return None
        with self.memory.holding(residue.changed) as names:
            entries = self._entries(residue.changed, names)
            try:
                real = columns.stop - columns.start
                return self.replay.changed(golden, self.memory.readable, names, entries=entries, real=real)
            except RUN_ERRORS:
                return None

    def _finish(
        self,
        waiting: Sequence[tuple[int, Changed]],
        golden: Golden,
        residues: Sequence[_Residue],
        columns: slice,
    ) -> None:
        """Run what is left of faults side by side; each alone where an operator raises."""
        if not waiting:
            return
        assert isinstance(self.replay, PackedReplay), "only its faults wait"
        rows = np.concatenate([part.rows for _, part in waiting])
        fault = np.repeat([index for index, _ in waiting], [len(part.rows) for _, part in waiting])
        whole = self.reference.judge(
            columns, slice(columns.stop - columns.start), golden=golden.outputs, faulty=golden.outputs
        )
        for index, _ in waiting:
            self.outcomes[index, columns], self.measures[index, columns] = whole
        if not len(rows):
            return
        try:
            outputs = self.replay.finish(golden, [part for _, part in waiting])
        except RUN_ERRORS:
            for index, _ in waiting:
                self._judge(index, golden, residues[index], columns)
            return
        where, positions = torch.from_numpy(rows), columns.start + rows
        fault_free = [out[where.to(out.device)] if isinstance(out, torch.Tensor) else out for out in golden.outputs]
        found = self.reference.judge(torch.from_numpy(positions), slice(None), golden=fault_free, faulty=outputs)
        self.outcomes[fault, positions], self.measures[fault, positions] = found

    def _judge(self, index: int, golden: Golden, residue: _Residue, columns: slice) -> None:
        if residue.report.uncorrectable and self.arrival == "before":
            self.outcomes[index, columns] = int(Outcome.UNCORRECTABLE)
            return
        outputs: Sequence[Any] = golden.outputs
        if residue.changed:
            try:
                with self.memory.holding(residue.changed) as names:
                    entries = self._entries(residue.changed, names)
                    outputs = self.replay.strike_memory(golden, self.memory.readable, names, entries=entries)
            except RUN_ERRORS:
                self.outcomes[index, columns] = int(Outcome.EXCEPTION)
                return
        self.outcomes[index, columns], self.measures[index, columns] = self.reference.judge(
            columns, slice(columns.stop - columns.start), golden=golden.outputs, faulty=outputs
        )

    def _entries(self, changed: dict[str, Words], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Where along the first axis words changed, by all names of the tensors, for tensors with more than a word."""
        storage = {name: self.memory.tensors[name].data_ptr() for name in names}
        return {
            name: where[0]
            for struck, (where, _) in changed.items()
            for name in names
            if storage[name] == storage[struck] and self.memory.tensors[name].dim()
        }

    def _frame(self, residues: Sequence[_Residue]) -> pl.DataFrame:
        n_inputs = len(self.reference.eligible)
        met = self.groups[:, np.arange(n_inputs) // self.reference.batch].reshape(-1)
        flags = [
            np.repeat(np.array(flag, dtype=bool), n_inputs)[met]
            for flag in (
                [r.report.detected > 0 for r in residues],
                [r.report.corrected > 0 for r in residues],
                [bool(r.changed) for r in residues],
            )
        ]
        return run_frame(
            np.repeat(self.faults, n_inputs)[met],
            np.tile(self.reference.eligible.numpy(), len(self.faults))[met],
            self.reference.criterion,
            self.outcomes.reshape(-1, self.outcomes.shape[-1])[met],
            self.measures.reshape(len(self.faults) * n_inputs, self.measures.shape[-1])[met],
            *flags,
        )
