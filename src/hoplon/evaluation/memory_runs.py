"""Runs of memory faults: one fault meets all eligible inputs, after the guards' check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from hoplon.criteria import Outcome
from hoplon.evaluation.frames import RUN_ERRORS, blank, run_frame
from hoplon.evaluation.reference import Reference, replay_of
from hoplon.faults import FaultTable
from hoplon.formats import format_named
from hoplon.memory_guard import Guard, GuardReport, StaleGuardError
from hoplon.overlay import Overlay
from hoplon.replay import Golden, Placement
from hoplon.working_memory import Words, WorkingMemory


@dataclass
class _Residue:
    """What a fault leaves in memory after the guards' check."""

    changed: dict[str, Words]
    report: GuardReport


class MemoryRuns:
    """Memory faults: one fault meets all eligible inputs; guards check once before the first batch."""

    def __init__(self, reference: Reference, overlay: Overlay, placement: Placement, table: FaultTable) -> None:
        self.reference, self.table = reference, table
        program = self.reference.program
        names = table.frame["site"].unique().cast(pl.String).to_list()
        self.sites = {name: program.memory_site(name) for name in names}
        self.memory = WorkingMemory(program)
        self.guards: list[Guard] = overlay.guards(self.memory.tensors)
        sites = tuple(self.sites.values())
        self.replay = replay_of(program, overlay, self.reference.batch, sites, placement)
        self.faults = table.frame["fault"].unique(maintain_order=True).to_numpy()
        self.outcomes, self.measures = blank(self.reference.criterion, len(self.faults), len(self.reference.eligible))
        height = table.frame.height
        self.before, self.after = torch.zeros(height, dtype=torch.int64), torch.zeros(height, dtype=torch.int64)

    def run(self, advance: Callable[[int], None]) -> tuple[pl.DataFrame, FaultTable]:
        """Strike, check and restore every fault first; then run what is left of them, input batch by input batch."""
        residues = list(self._residues())
        finished = 0
        for number in range(self.reference.input_batches):
            leaves, real = self.reference.leaves(number)
            golden = self.replay.golden(leaves)
            columns = slice(number * self.reference.batch, number * self.reference.batch + real)
            for index, residue in enumerate(residues):
                self._judge(index, golden, residue, columns)
                done = ((number * len(residues)) + index + 1) // self.reference.input_batches
                advance(done - finished)
                finished = done
        return self._frame(residues), self.table.observed(before=self.before, after=self.after)

    def _residues(self) -> Iterator[_Residue]:
        rows = self.table.frame.with_row_index("row").partition_by("fault", maintain_order=True)
        for words in rows:
            struck = [self._strike(word) for word in words.iter_rows(named=True)]
            report = self._check()
            touched = list(dict.fromkeys([*struck, *report.where]))
            changed = self.memory.changed(touched)
            yield _Residue(changed, report)
            self.memory.restore(touched)
            if changed and report.detected:
                for guard in self.guards:
                    guard.refresh()

    def _check(self) -> GuardReport:
        """What the guards find; so much wrong that they refuse to repair it is uncorrectable."""
        report = GuardReport()
        for guard in self.guards:
            try:
                report += guard.check()
            except StaleGuardError:
                report += GuardReport(detected=1, uncorrectable=1, where=tuple(self.memory.tensors))
        return report

    def _strike(self, word: dict[str, Any]) -> str:
        site = self.sites[word["site"]]
        row = word["row"]
        signed = [int(np.uint64(word[mask]).astype(np.int64)) for mask in ("keep", "flip")]
        self.before[row], self.after[row] = self.memory.strike(
            site, word["element"], form=format_named(word["format"]), keep=signed[0], flip=signed[1]
        )
        return site.name

    def _judge(self, index: int, golden: Golden, residue: _Residue, columns: slice) -> None:
        if residue.report.uncorrectable:
            self.outcomes[index, columns] = int(Outcome.UNCORRECTABLE)
            return
        outputs: Sequence[Any] = golden.outputs
        if residue.changed:
            try:
                with self.memory.holding(residue.changed) as names:
                    outputs = self.replay.strike_memory(golden, self.memory.readable, names)
            except RUN_ERRORS:
                self.outcomes[index, columns] = int(Outcome.EXCEPTION)
                return
        self.outcomes[index, columns], self.measures[index, columns] = self.reference.judge(
            columns, slice(columns.stop - columns.start), golden=golden.outputs, faulty=outputs
        )

    def _frame(self, residues: Sequence[_Residue]) -> pl.DataFrame:
        n_inputs = len(self.reference.eligible)
        flags = [
            np.repeat(np.array(flag, dtype=bool), n_inputs)
            for flag in (
                [r.report.detected > 0 for r in residues],
                [r.report.corrected > 0 for r in residues],
                [bool(r.changed) for r in residues],
            )
        ]
        return run_frame(
            np.repeat(self.faults, n_inputs),
            np.tile(self.reference.eligible.numpy(), len(self.faults)),
            self.reference.criterion,
            self.outcomes.reshape(-1, self.outcomes.shape[-1]),
            self.measures.reshape(len(self.faults) * n_inputs, self.measures.shape[-1]),
            *flags,
        )
