"""The golden run: the fault-free run of a data set that outcomes are judged against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.criteria.base import Criterion, Judged, Labels
from hoplon.criteria.combined import as_criterion
from hoplon.criteria.outcome import classify, measure
from hoplon.criteria.ragged import joined, judged_together
from hoplon.errors import Batch, Count, DataError, checked
from hoplon.injection.decoding.replay import DecodingReplay
from hoplon.injection.memory_budget import tensor_bytes
from hoplon.injection.replay.eager import EagerReplay
from hoplon.injection.replay.golden import Golden, Placement
from hoplon.injection.replay.regions import RegionReplay, fits
from hoplon.injection.replay.replay import Replay
from hoplon.program.decoding.program import DecodingProgram
from hoplon.program.eager import EagerProgram
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite, ValueSite
from hoplon.protections.base import Overlay

Sites = Sequence[ValueSite] | Sequence[MemorySite]

_BATCH_BUDGET_BYTES = 2**29
# Of one value of a batch: memory for larger ones is mapped anew by every operator, at several times the cost.
_VALUE_BYTES = 2**24
_LARGEST_BATCH = 64


def default_batch(program: Program) -> int:
    """Return the replay batch: the largest power of two within 64 samples and the memory that suits the device.

    That is half a GiB for all values of a batch and, on a CPU, 16 MiB for the largest of them. A program of a fixed
    batch size has no choice.
    """
    if program.signature.fixed_batch is not None:
        return program.signature.fixed_batch
    sizes = [site.numel * site.dtype.itemsize for site in program.value_sites]
    fitting = _BATCH_BUDGET_BYTES // max(sum(sizes), 1)
    if program.device.type == "cpu":
        fitting = min(fitting, _VALUE_BYTES // max(*sizes, 1))
    return min(_LARGEST_BATCH, 1 << max(fitting, 1).bit_length() - 1)


def replay_of(
    program: Program,
    overlay: Overlay,
    batch: int,
    sites: Sites,
    placement: Placement = "before",
    *,
    room: float = inf,
) -> Replay:
    """Return the replay that fits the form of the program, the sites and the protections.

    Args:
        room: bytes for the golden values of a batch; see `RegionReplay`.
    """
    if isinstance(program, DecodingProgram):
        return DecodingReplay(program, overlay, batch, sites, placement)
    if isinstance(program, EagerProgram):
        return EagerReplay(program, overlay, batch, sites, placement)
    if sites and isinstance(sites[0], ValueSite) and fits(overlay):
        return RegionReplay(program, overlay, batch, sites, placement, room)
    return Replay(program, overlay, batch, sites, placement)


@checked
@dataclass(frozen=True, eq=False)
class GoldenRun:
    """The fault-free unprotected run of a data set: what every arm is judged against.

    ``outputs``: flat, of all inputs, those that the criterion judges of shape ``(inputs, ...)``, None in the place of
    the others; ``eligible``: int64, the inputs on which failures count, in order; ``golden``: as ``outputs``, of the
    eligible inputs, each in the row of the batch in which faults meet it. ``pass_seconds``: of a batch, on average.
    ``kept``: what the passes over the batches of eligible inputs kept for faults, if asked to; pickled without.
    """

    program: Program
    data: Inputs
    criterion: Criterion
    batch: Batch
    outputs: tuple[Any, ...]
    eligible: Tensor
    golden: tuple[Any, ...]
    pass_seconds: float = 0.0
    kept: KeptPasses | None = field(default=None, repr=False)

    @classmethod
    def run(
        cls,
        program: Program,
        data: Inputs,
        criterion: Criterion | Sequence[Criterion],
        *,
        batch: Count | None = None,
        keep: Callable[[int], KeptPasses] | None = None,
    ) -> GoldenRun:
        """Run the data set fault-free, in padded batches of one fixed size, and pick the eligible inputs.

        Args:
            keep: makes, for a batch size, what keeps values of the passes for faults in the unprotected model.
        Raises:
            DataError: inputs of another shape, labels out of range, golden outputs that are not finite, or no
                eligible input.
        """
        fixed = program.signature.fixed_batch
        if batch is not None and fixed not in (None, batch):
            raise DataError(f"expected a batch of {fixed}, which {program.name} is fixed to, got {batch}")
        size = fixed or min(batch or default_batch(program), len(data))
        criterion = as_criterion(criterion)
        kept = None if keep is None else keep(size)
        begun = time.perf_counter()
        outputs = golden_outputs(program, Overlay(), data, criterion, batch=size, kept=kept)
        seconds = (time.perf_counter() - begun) / -(-len(data) // size)
        parts = list(_judged(criterion, outputs, data.y))
        for judged, labels in parts:
            criterion.check(judged, labels)
        eligible = torch.cat([criterion.eligible(*part) for part in parts]).nonzero().flatten()
        if not len(eligible):
            raise DataError(
                f"expected at least one input that {program.name} gets right, got 0 of {len(data)}; "
                "check the labels and the normalisation of the data"
            )
        golden = outputs
        if len(eligible) < len(data):  # in the batches and rows in which faults will strike them
            golden = golden_outputs(program, Overlay(), data, criterion, batch=size, rows=eligible, kept=kept)
        return cls(program, data, criterion, size, outputs, eligible, golden, seconds, kept)

    def judge(
        self, positions: Tensor | slice, rows: Tensor | slice, *, golden: Sequence[Any], faulty: Sequence[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Classify runs on these eligible inputs, in these rows of the flat outputs of a pass.

        Returns:
            Outcomes, shape ``(runs, names)``, and measures, shape ``(runs, measure_names)``, of the criterion.
        """
        criterion, labels = self.criterion, self.data.y
        reference, outputs = criterion.judged_rows(self.golden, positions), criterion.judged_rows(faulty, rows)
        outcomes = classify(
            criterion,
            reference=reference,
            golden=criterion.judged_rows(golden, rows),
            faulty=outputs,
            labels=None if labels is None else labels[self.eligible[positions]],
        )
        return outcomes.cpu().numpy(), measure(criterion, reference=reference, faulty=outputs).cpu().numpy()

    @property
    def input_batches(self) -> int:
        """Number of batches of eligible inputs."""
        return -(-len(self.eligible) // self.batch)

    def leaves(self, number: int) -> tuple[list[Any], int]:
        """Return the flat inputs of a batch of eligible inputs, filled up to ``batch``, and the number of real ones."""
        rows = self.eligible[number * self.batch : (number + 1) * self.batch]
        return self.program.leaves(self.data, rows, batch=self.batch), len(rows)

    def positions(self, given: Tensor) -> Tensor:
        """Return the places of eligible inputs, int64, shape ``(n,)``, among all eligible ones."""
        place = torch.zeros(len(self.data), dtype=torch.int64)
        place[self.eligible] = torch.arange(len(self.eligible))
        return place[given]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}


@dataclass
class KeptPasses:
    """The passes of a replay over batches, the first ones with their values, while these take up to ``most_bytes``."""

    replay: Replay
    most_bytes: int
    batches: list[Golden] = field(default_factory=list, init=False)
    _bytes: int = field(default=0, init=False)

    def run(self, number: int, leaves: Sequence[Any]) -> Golden:
        """Run a batch; they come in order, and number 0 begins anew."""
        if not number:
            self.batches.clear()
            self._bytes = 0
        golden = self.replay.golden(leaves)
        if len(self.batches) == number:
            self._bytes += tensor_bytes(golden.tensors())
            if self._bytes <= self.most_bytes:
                self.batches.append(golden)
        return golden


@checked
def golden_outputs(
    program: Program,
    overlay: Overlay,
    data: Inputs,
    criterion: Criterion,
    *,
    batch: Batch,
    rows: Tensor | None = None,
    kept: KeptPasses | None = None,
) -> tuple[Any, ...]:
    """Return fault-free flat outputs under an overlay, of a data set or some samples of it, as `GoldenRun.outputs`."""
    passes = KeptPasses(replay_of(program, overlay, batch, ()), 0) if kept is None else kept
    parts = []
    for number, part in enumerate((torch.arange(len(data)) if rows is None else rows).split(batch)):
        golden = passes.run(number, program.leaves(data, part, batch=batch))
        parts.append(criterion.judged_rows(golden.outputs, slice(len(part))))
        if len(parts[-1]) != len(parts[0]):
            raise DataError(
                f"expected as many outputs of {program.name} for each input, got {len(parts[0])} and {len(parts[-1])}; "
                "have it return them as one tensor of any length"
            )
    return tuple(None if column[0] is None else joined(column) for column in zip(*parts, strict=True))


@checked
def accuracy(criterion: Criterion, outputs: Sequence[Any], labels: Labels) -> float:
    """Return the share of inputs that the criterion calls correct, in [0, 1]; NaN where it cannot tell."""
    right = [criterion.correct(*part) for part in _judged(criterion, outputs, labels)]
    known = [part for part in right if part is not None]
    return torch.cat(known).double().mean().item() if known else float("nan")


def _judged(criterion: Criterion, outputs: Sequence[Any], labels: Labels) -> Iterator[tuple[Judged, Tensor | None]]:
    """The judged outputs with their labels: all at once, or input by input where their shapes differ."""
    for rows in judged_together(outputs):
        judged = criterion.judged(criterion.judged_rows(outputs, rows))
        yield judged, None if labels is None else labels[rows]
