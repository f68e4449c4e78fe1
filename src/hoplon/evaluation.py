"""From faults to outcomes: the golden run of a data set, and the runs of a fault table against it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.criteria import OUTCOME_NAMES, Criterion, Outcome, as_criterion, classify, measure
from hoplon.data import Inputs
from hoplon.eager_program import EagerProgram
from hoplon.errors import DataError
from hoplon.faults import FaultTable, series_to_words
from hoplon.formats import format_named, one_per_word
from hoplon.overlay import Guard, GuardReport, Overlay
from hoplon.program import Program
from hoplon.replay import EagerReplay, Golden, Hits, Placement, Replay
from hoplon.sites import MemorySite, ValueSite
from hoplon.working_memory import WorkingMemory

Ints = NDArray[np.int64]
Advance = Callable[[int], None]
Sites = Sequence[ValueSite] | Sequence[MemorySite]

_GOLDEN_BUDGET_BYTES = 2 * 2**30
_BATCH_BUDGET_BYTES = 2**29
_LARGEST_BATCH = 64

# What an operator may raise when it meets a faulty value (an index out of range, a size that makes no sense).
_RUN_ERRORS = (RuntimeError, IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError)


def default_batch(program: Program) -> int:
    """The replay batch: as many samples as keep one batch of all values within half a GiB, at most 64.

    A program of a fixed batch size has no choice.
    """
    if program.signature.fixed_batch is not None:
        return program.signature.fixed_batch
    per_sample = sum(site.numel * site.dtype.itemsize for site in program.value_sites)
    return max(1, min(_LARGEST_BATCH, _BATCH_BUDGET_BYTES // max(per_sample, 1)))


def replay_of(program: Program, overlay: Overlay, batch: int, sites: Sites, placement: Placement = "before") -> Replay:
    """The replay that fits the form of the program."""
    form = EagerReplay if isinstance(program, EagerProgram) else Replay
    return form(program, overlay, batch, sites, placement)


@dataclass(frozen=True, eq=False)
class Reference:
    """The fault-free unprotected run of a data set: what every arm is judged against.

    ``outputs``: flat, of all inputs, those that the criterion judges of shape ``(inputs, ...)``, None in the place of
    the others; ``eligible``: int64, the inputs on which failures count, in order; ``golden``: as ``outputs``, of the
    eligible inputs, each in the row of the batch in which faults meet it.
    """

    program: Program
    data: Inputs
    criterion: Criterion
    batch: int
    outputs: tuple[Any, ...]
    eligible: Tensor
    golden: tuple[Any, ...]

    @classmethod
    def run(
        cls,
        program: Program,
        data: Inputs,
        criterion: Criterion | Sequence[Criterion],
        *,
        batch: int | None = None,
    ) -> Reference:
        """Run the data set fault-free, in padded batches of one fixed size, and pick the eligible inputs.

        Raises:
            DataError: inputs of another shape, labels out of range, golden outputs that are not finite, or no
                eligible input.
        """
        fixed = program.signature.fixed_batch
        if batch is not None and fixed not in (None, batch):
            raise DataError(f"expected a batch of {fixed}, which {program.name} is fixed to, got {batch}")
        size = fixed or min(batch or default_batch(program), len(data))
        criterion = as_criterion(criterion)
        outputs = golden_outputs(program, Overlay(), data, criterion, batch=size)
        criterion.check(criterion.judged(outputs), data.y)
        eligible = criterion.eligible(criterion.judged(outputs), data.y).nonzero().flatten()
        if not len(eligible):
            raise DataError(
                f"expected at least one input that {program.name} gets right, got 0 of {len(data)}; "
                "check the labels and the normalisation of the data"
            )
        golden = golden_outputs(program, Overlay(), data, criterion, batch=size, rows=eligible)
        return cls(program, data, criterion, size, outputs, eligible, golden)

    def judge(
        self, positions: Tensor | slice, rows: Tensor | slice, *, golden: Sequence[Any], faulty: Sequence[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """What came of runs on these eligible inputs, in these rows of the flat outputs of a pass.

        Returns:
            Outcomes, shape ``(runs, names)``, and measures, shape ``(runs, measure_names)``, of the criterion.
        """
        criterion, labels = self.criterion, self.data.y
        reference, met = criterion.judged_rows(self.golden, positions), criterion.judged_rows(faulty, rows)
        outcomes = classify(
            criterion,
            reference=reference,
            golden=criterion.judged_rows(golden, rows),
            faulty=met,
            labels=None if labels is None else labels[self.eligible[positions]],
        )
        return outcomes.cpu().numpy(), measure(criterion, reference=reference, faulty=met).cpu().numpy()

    @property
    def input_batches(self) -> int:
        """Batches of eligible inputs."""
        return -(-len(self.eligible) // self.batch)

    def leaves(self, number: int) -> tuple[list[Any], int]:
        """Flat inputs of one batch of eligible inputs, filled up to ``batch`` samples, and how many are real."""
        rows = self.eligible[number * self.batch : (number + 1) * self.batch]
        return self.program.leaves(self.data, rows, batch=self.batch), len(rows)


def golden_outputs(
    program: Program,
    overlay: Overlay,
    data: Inputs,
    criterion: Criterion,
    *,
    batch: int,
    rows: Tensor | None = None,
) -> tuple[Any, ...]:
    """Fault-free flat outputs of a data set, or of some samples of it, under an overlay, as `Reference.outputs`."""
    replay = replay_of(program, overlay, batch, ())
    parts = []
    for part in (torch.arange(len(data)) if rows is None else rows).split(batch):
        golden = replay.golden(program.leaves(data, part, batch=batch))
        parts.append(criterion.judged_rows(golden.outputs, slice(len(part))))
    return tuple(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))


def accuracy(criterion: Criterion, outputs: Sequence[Any], labels: Tensor | None) -> float:
    """The share of inputs that are right, as the criterion sees it; NaN where it does not know."""
    right = criterion.correct(criterion.judged(outputs), labels)
    return float("nan") if right is None else right.double().mean().item()


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Runs fault tables in one arm (an overlay) and gives every run its outcomes."""

    reference: Reference
    overlay: Overlay
    placement: Placement = "before"

    def runs(self, table: FaultTable, *, advance: Advance | None = None) -> tuple[pl.DataFrame, FaultTable]:
        """The outcome of every run, and the table with the words that this arm met.

        Args:
            advance: told the number of faults just finished.
        Returns:
            One row per run: ``fault``, ``input``, one column per name of the criterion (Enum of outcomes),
            one per measure (Float32, NaN where an output is not finite), ``detected``, ``corrected`` (by a guard),
            ``reached`` (a reader got a changed value).
        Raises:
            DataError: a fault on an input that is not eligible, or on a site that the program lacks.
        """
        if table.target == "values":
            return _ValueRuns(self, table).run(advance or (lambda count: None))
        return _MemoryRuns(self, table).run(advance or (lambda count: None))


class _GoldenCache:
    """Golden values by input batch; the oldest go when the budget is spent."""

    def __init__(self, reference: Reference, replay: Replay) -> None:
        self._reference, self._replay = reference, replay
        self._held: OrderedDict[int, Golden] = OrderedDict()

    def __getitem__(self, number: int) -> Golden:
        if number not in self._held:
            leaves, _ = self._reference.leaves(number)
            golden = self._replay.golden(leaves)
            while self._held and sum(g.bytes for g in self._held.values()) + golden.bytes > _GOLDEN_BUDGET_BYTES:
                self._held.popitem(last=False)
            self._held[number] = golden
        return self._held[number]


class _ValueRuns:
    """Value faults: one fault meets one input.

    A pass holds at most one fault per input, in that input's row; the faults of an input are taken in the order of
    their sites, so that the faults of one pass strike at similar depths.
    """

    def __init__(self, evaluator: Evaluator, table: FaultTable) -> None:
        self.reference, program = evaluator.reference, evaluator.reference.program
        frame = table.frame
        self.table = table
        names = frame["site"].unique().cast(pl.String).to_list()
        self.sites = [program.value_site(name) for name in names]
        self.replay = replay_of(program, evaluator.overlay, self.reference.batch, self.sites, evaluator.placement)
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
        self.outcomes, self.measures = _blank(self.reference.criterion, len(self.faults))
        self.reached = np.zeros(len(self.faults), dtype=bool)
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

    def run(self, advance: Advance) -> tuple[pl.DataFrame, FaultTable]:
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
        except _RUN_ERRORS:
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
        return outputs

    def _frame(self) -> pl.DataFrame:
        nothing = np.zeros(len(self.faults), dtype=bool)
        outcomes, flags = (self.outcomes, self.measures), (nothing, nothing, self.reached)
        return run_frame(self.faults, self.input, self.reference.criterion, *outcomes, *flags)


@dataclass
class _Residue:
    """What a fault leaves in memory after the guards' check."""

    changed: dict[str, Tensor]
    report: GuardReport


class _MemoryRuns:
    """Memory faults: one fault meets all eligible inputs; guards check once before the first batch."""

    def __init__(self, evaluator: Evaluator, table: FaultTable) -> None:
        self.reference, self.table = evaluator.reference, table
        program = self.reference.program
        names = table.frame["site"].unique().cast(pl.String).to_list()
        self.sites = {name: program.memory_site(name) for name in names}
        self.memory = WorkingMemory(program)
        self.guards: list[Guard] = evaluator.overlay.guards(self.memory.tensors)
        sites = tuple(self.sites.values())
        self.replay = replay_of(program, evaluator.overlay, self.reference.batch, sites, evaluator.placement)
        self.faults = table.frame["fault"].unique(maintain_order=True).to_numpy()
        self.outcomes, self.measures = _blank(self.reference.criterion, len(self.faults), len(self.reference.eligible))
        height = table.frame.height
        self.before, self.after = torch.zeros(height, dtype=torch.int64), torch.zeros(height, dtype=torch.int64)

    def run(self, advance: Advance) -> tuple[pl.DataFrame, FaultTable]:
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
            report = GuardReport()
            for guard in self.guards:
                report = report + guard.check()
            touched = list(dict.fromkeys([*struck, *report.where]))
            changed = self.memory.changed(touched)
            yield _Residue({name: self.memory.tensors[name].clone() for name in changed}, report)
            self.memory.restore(touched)
            if changed and report.detected:
                for guard in self.guards:
                    guard.refresh()

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
            memory = {**self.memory.golden, **self._all_names(residue.changed)}
            changed = [name for name in memory if memory[name] is not self.memory.golden[name]]
            try:
                outputs = self.replay.strike_memory(golden, memory, changed)
            except _RUN_ERRORS:
                self.outcomes[index, columns] = int(Outcome.EXCEPTION)
                return
        self.outcomes[index, columns], self.measures[index, columns] = self.reference.judge(
            columns, slice(columns.stop - columns.start), golden=golden.outputs, faulty=outputs
        )

    def _all_names(self, changed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every name of the changed storages: all readers of a storage see the fault."""
        by_name = dict(changed)
        for name, tensor in changed.items():
            site = self.reference.program.memory_site(name)
            by_name.update(dict.fromkeys((site.name, *site.aliases), tensor))
        return by_name

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


def _turns(position: Ints, first_step: Ints) -> Ints:
    """For each fault, how many faults of the same input come before it in the order of their sites."""
    order = np.lexsort((first_step, position))
    ordered = position[order]
    first = np.searchsorted(ordered, ordered)
    turns = np.empty_like(position)
    turns[order] = np.arange(len(position)) - first
    return turns


def _blank(criterion: Criterion, *runs: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Outcomes and measures of runs that are still to come; no measure without a run that ends."""
    outcomes = np.zeros((*runs, len(criterion.names)), dtype=np.uint8)
    return outcomes, np.full((*runs, len(criterion.measure_names)), np.nan, dtype=np.float32)


def run_frame(
    fault: NDArray[Any],
    inputs: NDArray[Any],
    criterion: Criterion,
    outcomes: NDArray[np.uint8],
    measures: NDArray[np.float32],
    detected: NDArray[np.bool_],
    corrected: NDArray[np.bool_],
    reached: NDArray[np.bool_],
) -> pl.DataFrame:
    """The table of runs in its one column order, sorted by fault and input."""
    outcome_names = pl.Series(OUTCOME_NAMES, dtype=pl.Enum(OUTCOME_NAMES))
    columns = {name: outcome_names.gather(outcomes[:, index]) for index, name in enumerate(criterion.names)}
    columns |= {name: pl.Series(measures[:, index]) for index, name in enumerate(criterion.measure_names)}
    frame = pl.DataFrame(
        {"fault": fault, "input": inputs, **columns, "detected": detected, "corrected": corrected, "reached": reached}
    )
    return frame.sort("fault", "input")
