"""Runs of memory faults: each fault is present while all eligible inputs run, after the guards' check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from hoplon.criteria.outcome import Outcome
from hoplon.errors import HoplonError
from hoplon.faults.table import FaultTable
from hoplon.injection.arm import Arm
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.injection.decoding.replay import DecodingReplay
from hoplon.injection.golden_run import replay_of
from hoplon.injection.replay.golden import Golden
from hoplon.injection.run_table import RUN_ERRORS, blank, cause_number, cause_of, own_fault, run_frame
from hoplon.injection.time_limit import HangError, limited
from hoplon.injection.working_memory import Words
from hoplon.program.sites import MemorySite
from hoplon.protections.memory_guard import GuardReport


@dataclass
class _Residue:
    """Words that differ from the model's after the guards' check, and its report."""

    changed: dict[str, Words]
    report: GuardReport


class MemoryFaultRuns:
    """Runs of memory faults, each on all eligible inputs, or on the batches of them in its group; guards check once.

    Inputs run with faults that arrive before the check as the guards leave them, and with those that arrive after it as
    they are; the next check then finds these, and `detected` and `corrected` tell what it finds too late.
    """

    def __init__(self, arm: Arm, table: FaultTable, groups: NDArray[np.bool_] | None = None) -> None:
        self.reference, self.table, self.arrival = arm.reference, table, arm.arrival
        program = self.reference.program
        self.armed = ArmedMemory(program, arm.overlay)
        self.memory = self.armed.working
        sites = self._sites()
        self.replay = replay_of(program, arm.overlay, self.reference.batch, sites, arm.placement)
        self.faults = table.frame["fault"].unique(maintain_order=True).to_numpy()
        shape = len(self.faults), self.reference.input_batches
        self.groups = np.ones(shape, dtype=np.bool_) if groups is None else groups
        if self.groups.shape != shape:
            raise HoplonError(f"expected groups of shape {shape}, faults by input batches, got {self.groups.shape}")
        self.outcomes, self.measures = blank(self.reference.criterion, len(self.faults), len(self.reference.eligible))
        self.causes = np.zeros(self.outcomes.shape[:2], dtype=np.uint8)
        self.near_ties = np.zeros(self.outcomes.shape[:2], dtype=np.bool_)
        self._sound: set[frozenset[str]] = set()  # names that, read again with their own bits, give outputs
        height = table.frame.height
        self.before, self.after = torch.zeros(height, dtype=torch.int64), torch.zeros(height, dtype=torch.int64)

    def run(self, advance: Callable[[int], None]) -> tuple[pl.DataFrame, FaultTable]:
        """Inject, check and restore every fault first; then run the inputs with what is left of each, batch by batch.

        Args:
            advance: called with the number of faults just finished.
        Returns:
            The table of runs, and the fault table with the words before and after.
        """
        residues = list(self._residues())
        finished = 0
        for number in range(self.reference.input_batches):
            meets = self.groups[:, number]
            leaves, real = self.reference.leaves(number)
            golden = self.replay.golden(leaves) if meets.any() else None
            columns = slice(number * self.reference.batch, number * self.reference.batch + real)
            for index, residue in enumerate(residues):
                if golden is not None and meets[index]:
                    self._judge(index, golden, residue, columns)
                done = (number * len(residues) + index + 1) // self.reference.input_batches
                advance(done - finished)
                finished = done
        return self._frame(residues), self.table.observed(before=self.before, after=self.after)

    def lost(self, cause: str) -> tuple[pl.DataFrame, FaultTable]:
        """As `run`, of faults that are known to crash: guards check, no input runs."""
        residues = list(self._residues())
        self._crashed(slice(None), slice(None), cause)
        return self._frame(residues), self.table.observed(before=self.before, after=self.after)

    def rehearse(self) -> None:
        """Run one pass with the memory of all sites as if it were changed, on the first inputs.

        Raises:
            HoplonError: it raises.
        """
        golden = self.replay.golden(self.reference.leaves(0)[0])
        names = [name for site in self._sites() for name in (site.name, *site.aliases)]
        self._require_sound(golden, dict.fromkeys(names))

    def _sites(self) -> tuple[MemorySite, ...]:
        """Return the sites that can change: those of the faults, or all where faults in guards can mislead a repair."""
        program = self.reference.program
        names = self.table.frame["site"].unique().cast(pl.String).to_list()
        if self.armed.copies.keys() & set(names):
            return program.memory_sites
        return tuple(program.memory_site(name) for name in names)

    def _residues(self) -> Iterator[_Residue]:
        rows = self.table.frame.with_row_index("row").partition_by("fault", maintain_order=True)
        for words in rows:
            names = [name for word in words.iter_rows(named=True) if (name := self._strike(word)) is not None]
            late = self.memory.changed(dict.fromkeys(names)) if self.arrival == "after" else None
            report = self.armed.check()
            touched = list(dict.fromkeys([*names, *report.where]))
            changed = self.memory.changed(touched) if late is None else late
            yield _Residue(changed, report)
            left = report.uncorrectable or report.mitigated or (report.detected and changed and late is None)
            if left or len(names) < words.height:  # the guards' own memory may differ: comparing reads all of it
                self.armed.restore(touched)
            else:
                self.memory.restore(touched)

    def _strike(self, word: dict[str, Any]) -> str | None:
        row = word["row"]
        name, self.before[row], self.after[row] = self.armed.corrupt(word)
        return name

    def _judge(self, index: int, golden: Golden, residue: _Residue, columns: slice) -> None:
        if residue.report.uncorrectable and self.arrival == "before":
            self.outcomes[index, columns] = int(Outcome.UNCORRECTABLE)
            return
        outputs: Sequence[Any] = golden.outputs
        if residue.changed:
            try:
                with self.memory.holding(residue.changed) as positions:
                    outputs = self._struck(golden, positions)
                    if isinstance(self.replay, DecodingReplay):
                        real = columns.stop - columns.start
                        self.near_ties[index, columns] = self.replay.near_ties[:real].numpy()
            except RUN_ERRORS as error:
                self._require_sound(golden, positions)
                self._crashed(index, columns, cause_of(error))
                return
        self.outcomes[index, columns], self.measures[index, columns] = self.reference.judge(
            columns, slice(columns.stop - columns.start), golden=golden.outputs, faulty=outputs
        )

    def _struck(self, golden: Golden, positions: Mapping[str, torch.Tensor | None]) -> list[Any]:
        """Run one pass; one that stalls gets a second chance, since a machine may stall too."""
        with suppress(HangError), limited(self.reference.pass_seconds):
            return self.replay.strike_memory(golden, self.memory.readable, positions)
        with limited(self.reference.pass_seconds):
            return self.replay.strike_memory(golden, self.memory.readable, positions)

    def _crashed(self, index: int | slice, columns: slice, cause: str) -> None:
        self.outcomes[index, columns] = int(Outcome.CRASH)
        self.causes[index, columns] = cause_number(cause)

    def _require_sound(self, golden: Golden, positions: Mapping[str, torch.Tensor | None]) -> None:
        """Refuse an error that is not the fault's: the same pass raises with the model's own bits."""
        names = frozenset(positions)
        if names in self._sound:
            return
        try:
            self._struck(golden, positions)
        except RUN_ERRORS as error:
            raise own_fault(min(names), error) from error
        self._sound.add(names)

    def _frame(self, residues: Sequence[_Residue]) -> pl.DataFrame:
        eligible = self.reference.eligible.numpy()
        ran = self.groups[:, np.arange(len(eligible)) // self.reference.batch]
        fault, column = np.nonzero(ran)
        flags = [(r.report.detected > 0, r.report.corrected > 0, bool(r.changed)) for r in residues]
        return run_frame(
            self.faults[fault],
            eligible[column],
            self.reference.criterion,
            self.outcomes[ran],
            self.measures[ran],
            np.array(flags, dtype=bool).reshape(-1, 3)[fault].T,
            self.causes[ran],
            self.near_ties[ran] if isinstance(self.replay, DecodingReplay) else None,
        )
