"""Runs of value faults: one fault meets one input, many faults share a pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from hoplon.criteria import Outcome
from hoplon.errors import DataError
from hoplon.evaluation.frames import RUN_ERRORS, blank, run_frame
from hoplon.evaluation.reference import Reference, replay_of
from hoplon.faults import FaultTable, series_to_words
from hoplon.formats import one_per_word
from hoplon.overlay import Overlay
from hoplon.replay import Golden, Hits, Placement, Replay

Ints = NDArray[np.int64]

GOLDEN_BUDGET_BYTES = 2 * 2**30


class ValueRuns:
    """Value faults: one fault meets one input.

    A pass holds at most one fault per input, in that input's row; the faults of an input are taken in the order of
    their sites, so that the faults of one pass strike at similar depths.
    """

    def __init__(self, reference: Reference, overlay: Overlay, placement: Placement, table: FaultTable) -> None:
        self.reference, program = reference, reference.program
        frame = table.frame
        self.table = table
        names = frame["site"].unique().cast(pl.String).to_list()
        self.sites = [program.value_site(name) for name in names]
        self.replay = replay_of(program, overlay, self.reference.batch, self.sites, placement)
        self.golden = _GoldenCache(self.reference, self.replay)
        number = {name: index for index, name in enumerate(names)}
        self.site = frame["site"].cast(pl.String).replace_strict(number, return_dtype=pl.Int64).to_numpy()
        self.element = torch.from_numpy(frame["element"].to_numpy().copy())
        self.keep, self.flip = series_to_words(frame["keep"]), series_to_words(frame["flip"])
        self.formats = frame["format"].cast(pl.String).to_numpy()
        fault = frame["fault"].to_numpy()
        self.faults, self.first_row = np.unique(fault, return_index=True)
        self.row_count = np.diff(np.append(self.first_row, len(fault)))
        self.input = frame["input"].to_numpy()[self.first_row]
        self.position = self._positions()
        self.outcomes, self.measures = blank(self.reference.criterion, len(self.faults))
        self.reached = np.zeros(len(self.faults), dtype=bool)
        self.detected = np.zeros(len(self.faults), dtype=bool)
        self.before, self.after = torch.zeros_like(self.keep), torch.zeros_like(self.keep)

    def _positions(self) -> Ints:
        eligible = self.reference.eligible.numpy()
        position = np.searchsorted(eligible, self.input)
        found = eligible[np.minimum(position, len(eligible) - 1)] == self.input
        if not found.all():
            raise DataError(
                f"expected faults on inputs that the unprotected model gets right, got input {self.input[~found][0]}; "
                "use the data and the model that the table was drawn for"
            )
        return position

    def run(self, advance: Callable[[int], None]) -> tuple[pl.DataFrame, FaultTable]:
        """All faults, batch by batch."""
        if len(self.faults):
            steps = np.array([self.reference.program.site_steps[site.name] for site in self.sites])
            first_step = np.minimum.reduceat(steps[self.site], self.first_row)
            group = self.position // self.reference.batch
            turn = _turns(self.position, first_step)
            order = np.lexsort((turn, group))
            bounds = np.flatnonzero(np.diff(group[order]) | np.diff(turn[order])) + 1
            for chunk in np.split(order, bounds):
                self._attempt(int(group[chunk[0]]), chunk)
                advance(len(chunk))
        return self._frame(), self.table.observed(before=self.before, after=self.after)

    def _attempt(self, number: int, chunk: Ints) -> None:
        """One pass; if an operator raises, halves of it, down to the one fault that is the cause."""
        golden, rows = self.golden[number], self.position[chunk] - number * self.reference.batch
        try:
            outputs = self._pass(golden, rows, chunk)
        except RUN_ERRORS:
            if len(chunk) == 1:
                self.outcomes[chunk] = int(Outcome.EXCEPTION)
                self.reached[chunk] = True
                return
            self._attempt(number, chunk[: len(chunk) // 2])
            self._attempt(number, chunk[len(chunk) // 2 :])
            return
        self.outcomes[chunk], self.measures[chunk] = self.reference.judge(
            torch.from_numpy(self.position[chunk]), torch.from_numpy(rows), golden=golden.outputs, faulty=outputs
        )

    def _pass(self, golden: Golden, rows: Ints, chunk: Ints) -> list[Any]:
        device = self.reference.program.device
        words = np.concatenate([np.arange(self.first_row[f], self.first_row[f] + self.row_count[f]) for f in chunk])
        fault_of_word = np.repeat(np.arange(len(chunk)), self.row_count[chunk])
        hits, places = {}, {}
        for site in np.unique(self.site[words]):
            here = self.site[words] == site
            mine, name = words[here], self.sites[site].name
            places[name] = torch.from_numpy(mine), chunk[fault_of_word[here]]
            hits[name] = Hits(
                rows=torch.from_numpy(rows[fault_of_word[here]]).to(device),
                elements=self.element[mine].to(device),
                keep=self.keep[mine].to(device),
                flip=self.flip[mine].to(device),
                format=one_per_word(self.formats[mine].tolist()),
            )
        outputs, struck = self.replay.strike_values(golden, hits)
        for name, met in struck.items():
            words_here, faults_here = places[name]
            self.before[words_here], self.after[words_here] = met.before.cpu(), met.after.cpu()
            np.logical_or.at(self.reached, faults_here, met.reached.cpu().numpy())
        self.detected[chunk] = (self.replay.flagged | self.replay.outvoted).cpu().numpy()[rows]
        return outputs

    def _frame(self) -> pl.DataFrame:
        # what a detector flagged was run again, and what a second run outvoted was put right: both are corrected
        outcomes, flags = (self.outcomes, self.measures), (self.detected, self.detected, self.reached)
        return run_frame(self.faults, self.input, self.reference.criterion, *outcomes, *flags)


class _GoldenCache:
    """Golden values by input batch; the oldest go when the budget is spent."""

    def __init__(self, reference: Reference, replay: Replay) -> None:
        self._reference, self._replay = reference, replay
        self._held: OrderedDict[int, Golden] = OrderedDict()

    def __getitem__(self, number: int) -> Golden:
        if number not in self._held:
            leaves, _ = self._reference.leaves(number)
            golden = self._replay.golden(leaves)
            while self._held and sum(g.bytes for g in self._held.values()) + golden.bytes > GOLDEN_BUDGET_BYTES:
                self._held.popitem(last=False)
            self._held[number] = golden
        return self._held[number]


def _turns(position: Ints, first_step: Ints) -> Ints:
    """For each fault, how many faults of the same input come before it in the order of their sites."""
    order = np.lexsort((first_step, position))
    ordered = position[order]
    first = np.searchsorted(ordered, ordered)
    turns = np.empty_like(position)
    turns[order] = np.arange(len(position)) - first
    return turns
