"""Runs of value faults: each fault is injected into the run of one input; many runs share a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.criteria.outcome import Outcome
from hoplon.errors import DataError
from hoplon.faults.table import FaultTable, series_to_words
from hoplon.formats.named import one_per_word
from hoplon.injection.decoding.replay import DecodingReplay
from hoplon.injection.golden_values import SharedReplay
from hoplon.injection.memory_budget import WHOLE_BUDGET_BYTES, WINDOW_BUDGET_BYTES
from hoplon.injection.replay.golden import Golden, GoldenStack, InjectedWords, Injections
from hoplon.injection.replay.regions import RegionReplay
from hoplon.injection.replay.windows import Ints, one_per_row
from hoplon.injection.run_table import RUN_ERRORS, blank, cause_number, cause_of, own_fault, run_frame
from hoplon.injection.time_limit import HangError, limited

# Of a sweep that raises, halves are tried down to so many runs.
_FEW_RUNS = 64


class ValueFaultRuns:
    """Runs of value faults, each on one input.

    Faults of one word are replayed any number at once, in feature maps by regions. A pass of others holds at most one
    fault per input, in that input's row; the faults of an input are taken in the order of their sites, so that the
    faults of one pass begin at similar depths.
    """

    def __init__(self, shared: SharedReplay, table: FaultTable) -> None:
        self.shared, self.reference, self.budget = shared, shared.arm.reference, shared.arm.budget
        program = self.reference.program
        frame = table.frame
        self.table = table
        names = frame["site"].unique().cast(pl.String).to_list()
        self.sites = [program.value_site(name) for name in names]
        self.replay, self.golden = shared.of(self.sites)
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
        self.causes = np.zeros(len(self.faults), dtype=np.uint8)
        self.near_ties = np.zeros(len(self.faults), dtype=bool)
        self.sound: set[frozenset[str]] = set()  # sites through which a pass gives outputs while no word is changed
        self.before, self.after = torch.zeros_like(self.keep), torch.zeros_like(self.keep)

    def _positions(self) -> Ints:
        eligible = self.reference.eligible.numpy()
        position = np.searchsorted(eligible, self.input)
        known = eligible[np.minimum(position, len(eligible) - 1)] == self.input
        if not known.all():
            raise DataError(
                f"expected faults on inputs that the unprotected model gets right, got input {self.input[~known][0]}; "
                "use the data and the model that the table was drawn for"
            )
        return position

    def run(self, advance: Callable[[int], None]) -> tuple[pl.DataFrame, FaultTable]:
        """Run all faults, batch by batch: by regions in waves where that is possible, the others row by row.

        Args:
            advance: called with the number of faults just finished.
        Returns:
            The table of runs, and the fault table with the words before and after.
        """
        if len(self.faults):
            steps = np.array([self.reference.program.site_steps[site.name] for site in self.sites])
            first_step = np.minimum.reduceat(steps[self.site], self.first_row)
            group = self.position // self.reference.batch
            for numbers in self._stacks(np.unique(group)):
                faults = np.flatnonzero(np.isin(group, numbers))
                faults = faults[np.argsort(first_step[faults], kind="stable")]
                together = self._together(faults)
                for chunk in self._waves(faults[together]):
                    self._attempt_wave(chunk, advance)
                for number in numbers:
                    self._one_per_row(number, faults[~together & (group[faults] == number)], advance)
        return self._frame(), self.table.observed(before=self.before, after=self.after)

    def lost(self, cause: str) -> tuple[pl.DataFrame, FaultTable]:
        """As `run`, of faults that are known to crash: nothing is run."""
        self._crashed(np.arange(len(self.faults)), cause)
        return self._frame(), self.table.observed(before=self.before, after=self.after)

    def _together(self, faults: Ints) -> NDArray[np.bool_]:
        """Return a mask of the faults that are replayed in any number at once: those of one word."""
        sites = np.array([self.replay.covers(site.name) for site in self.sites])
        mask: NDArray[np.bool_] = (self.row_count[faults] == 1) & sites[self.site[self.first_row[faults]]]
        return mask

    def _stacks(self, numbers: Ints) -> list[list[int]]:
        """Return the numbers of input batches by how many of them the budget for golden values holds."""
        self.golden[int(numbers[0])]
        size = self.golden.capacity
        return [numbers[begin : begin + size].tolist() for begin in range(0, len(numbers), size)]

    def _stack(self, numbers: Iterable[int]) -> GoldenStack:
        return GoldenStack(self.reference.batch, {number: self.golden[number] for number in numbers})

    def _waves(self, faults: Ints) -> Iterator[Ints]:
        """Yield the faults of input batches that are replayed at once, windows apart from whole values."""
        if not len(faults):
            return
        regions = self.replay if isinstance(self.replay, RegionReplay) else None
        small = np.array([regions is not None and regions.in_windows(site.name) for site in self.sites])
        in_windows = small[self.site[self.first_row[faults]]]
        for chosen, default in ((in_windows, WINDOW_BUDGET_BYTES), (~in_windows, WHOLE_BUDGET_BYTES)):
            size = self.wave(default)
            yield from np.split(faults[chosen], np.arange(size, chosen.sum(), size))

    def wave(self, default: int) -> int:
        """Return the number of runs that are replayed at once, by default within so many bytes."""
        program, batch = self.reference.program, self.reference.batch
        return self.budget.runs(program, self.sites, batch=batch, default=default)

    def _one_per_row(self, number: int, faults: Ints, advance: Callable[[int], None]) -> None:
        """Run passes with at most one fault in a row; ``faults`` are in the order of their sites."""
        for chunk in one_per_row(faults, self.position[faults]):
            self._attempt(number, chunk)
            advance(len(chunk))

    def _attempt_wave(self, chunk: Ints, advance: Callable[[int], None]) -> None:
        """Run one sweep; if it raises or stalls, run passes that find out which fault is the cause."""
        if not len(chunk):
            return
        ordered = chunk[np.argsort(self.position[chunk], kind="stable")]
        rows = self.position[ordered]
        assert isinstance(self.replay, RegionReplay | DecodingReplay), "only their runs go together"
        golden = self._stack(np.unique(rows // self.reference.batch).tolist())
        injections, places = self._injections(rows, ordered)
        runs = {name: torch.from_numpy(faults) for name, (_, faults) in places.items()}
        try:
            with self._limit(len(ordered)):
                outputs, words = self.replay.strike_many(golden, injections, runs, len(ordered))
        except RUN_ERRORS:
            if len(chunk) > _FEW_RUNS:
                for part in np.array_split(chunk, 2):
                    self._attempt_wave(part, advance)
                return
            for number in golden.batches:
                self._one_per_row(number, chunk[self.position[chunk] // self.reference.batch == number], advance)
            return
        self._record(words, places, ordered)
        if isinstance(self.replay, DecodingReplay):
            self.near_ties[ordered] = self.replay.near_ties.numpy()
        self.outcomes[ordered], self.measures[ordered] = self.reference.judge(
            torch.from_numpy(rows), slice(None), golden=golden.outputs(rows), faulty=outputs
        )
        advance(len(ordered))

    def _attempt(self, number: int, chunk: Ints) -> None:
        """Run one pass; if it raises or stalls, run halves of it, down to the one fault that is the cause."""
        golden, rows = self.golden[number], self.position[chunk] - number * self.reference.batch
        injections, places = self._injections(rows, chunk)
        try:
            outputs, words = self._struck(golden, injections, alone=len(chunk) == 1)
        except RUN_ERRORS as error:
            if len(chunk) == 1:
                self._require_sound(number, int(chunk[0]))
                self._crashed(chunk, cause_of(error))
                return
            self._attempt(number, chunk[: len(chunk) // 2])
            self._attempt(number, chunk[len(chunk) // 2 :])
            return
        self._record(words, places, chunk)
        self.detected[chunk] = (self.replay.flagged | self.replay.outvoted).cpu().numpy()[rows]
        self.outcomes[chunk], self.measures[chunk] = self.reference.judge(
            torch.from_numpy(self.position[chunk]), torch.from_numpy(rows), golden=golden.outputs, faulty=outputs
        )

    def _struck(
        self, golden: Golden, injections: Mapping[str, Injections], *, alone: bool
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """Run one pass; where a fault is alone, one that stalls gets a second chance: the machine may have."""
        try:
            with self._limit():
                return self.replay.strike_values(golden, injections)
        except HangError:
            if not alone:
                raise
        with self._limit():
            return self.replay.strike_values(golden, injections)

    def _limit(self, runs: int = 1) -> AbstractContextManager[None]:
        return limited(self.reference.pass_seconds, passes=-(-runs // self.reference.batch))

    def _crashed(self, chunk: Ints, cause: str) -> None:
        self.outcomes[chunk] = int(Outcome.CRASH)
        self.causes[chunk] = cause_number(cause)
        self.reached[chunk] = True

    def _require_sound(self, number: int, fault: int) -> None:
        """Refuse an error that is not the fault's: a pass through its sites raises while no word is changed."""
        words = self.table.frame.slice(self.first_row[fault], self.row_count[fault])
        sites = frozenset(words["site"].cast(pl.String))
        if sites in self.sound:
            return
        unchanged = ValueFaultRuns(self.shared, FaultTable("values", words).unchanged())
        rows = unchanged.position - number * self.reference.batch
        try:
            injections, _ = unchanged._injections(rows, np.zeros(1, dtype=np.int64))
            unchanged._struck(self.golden[number], injections, alone=True)
        except RUN_ERRORS as error:
            raise own_fault(min(sites), error) from error
        self.sound.add(sites)

    def _injections(self, rows: Ints, chunk: Ints) -> tuple[dict[str, Injections], dict[str, tuple[Tensor, Ints]]]:
        """Return the injections of faults by site, and for each its rows of the table and its faults in ``chunk``."""
        device = self.reference.program.device
        words = np.concatenate([np.arange(self.first_row[f], self.first_row[f] + self.row_count[f]) for f in chunk])
        fault_of_word = np.repeat(np.arange(len(chunk)), self.row_count[chunk])
        injections, places = {}, {}
        for site in np.unique(self.site[words]):
            at_site = self.site[words] == site
            members, name = words[at_site], self.sites[site].name
            places[name] = torch.from_numpy(members), fault_of_word[at_site]
            injections[name] = Injections(
                rows=torch.from_numpy(rows[fault_of_word[at_site]]).to(device),
                elements=self.element[members].to(device),
                keep=self.keep[members].to(device),
                flip=self.flip[members].to(device),
                format=one_per_word(self.formats[members].tolist()),
            )
        return injections, places

    def _record(
        self, words: Mapping[str, InjectedWords], places: Mapping[str, tuple[Tensor, Ints]], chunk: Ints
    ) -> None:
        """Store the words before and after, and whether readers got changed ones."""
        for name, changed in words.items():
            members, faults = places[name]
            self.before[members], self.after[members] = changed.before.cpu(), changed.after.cpu()
            np.logical_or.at(self.reached, chunk[faults], changed.reached.cpu().numpy())

    def _frame(self) -> pl.DataFrame:
        # what a detector flagged was run again, and what a second run outvoted was put right: both are corrected
        flags = self.detected, self.detected, self.reached
        criterion = self.reference.criterion
        near = self.near_ties if isinstance(self.replay, DecodingReplay) else None
        return run_frame(self.faults, self.input, criterion, self.outcomes, self.measures, flags, self.causes, near)
