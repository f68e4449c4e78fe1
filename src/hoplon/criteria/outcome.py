"""The one outcome of every run under each criterion, and how far its output moved."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, Judged, Labels, as_rows, finite_rows, tensors_of
from hoplon.criteria.ragged import judged_together
from hoplon.errors import DataError, HoplonError, checked
from hoplon.formats.base import same_bits


class Outcome(enum.IntEnum):
    """The outcome of one run, stored as uint8.

    *masked* = identical + benign; *failure* = sdc + nonfinite. A *crash* is a run without an output; `CAUSES` says why.
    """

    IDENTICAL = 0
    BENIGN = 1
    SDC = 2
    NONFINITE = 3
    CRASH = 4
    UNCORRECTABLE = 5


OUTCOME_NAMES: tuple[str, ...] = tuple(outcome.name.lower() for outcome in Outcome)

CAUSES: tuple[str, ...] = ("exception", "hang", "death")
"""What a run that crashed ended in: an exception, its time limit, the end of its process."""


@checked
def classify(
    criterion: Criterion,
    *,
    reference: Sequence[Any],
    golden: Sequence[Any],
    faulty: Sequence[Any],
    labels: Labels,
) -> Tensor:
    """Return the outcome of each run under each column of the criterion: uint8, shape ``(runs, len(names))``.

    The first that holds: a judged output not finite (or -inf where the reference is not, if the criterion ``masks``),
    NONFINITE; of another shape than the reference, SDC; harmed against the reference, SDC; the bits of the
    arm's own golden outputs, IDENTICAL; else BENIGN. So an arm that gets an input wrong without any fault is counted
    SDC there, even where the fault left no trace. CRASH and UNCORRECTABLE are set by the caller.

    Args:
        reference: flat golden outputs of the unprotected model, one row per run; only judged ones are looked at.
        golden: flat golden outputs of the arm that ran; the same for the unprotected model.
        faulty: flat outputs with the fault.
        labels: one row per run, or None.
    Raises:
        DataError: more runs on one side than on another.
    Example:
        >>> from hoplon.criteria import TopK
        >>> golden = torch.tensor([[2.0, 1.0]]).expand(4, 2)
        >>> faulty = torch.tensor([[2.0, 1.0], [2.0, 1.5], [2.0, 3.0], [2.0, float("nan")]])
        >>> classify(TopK(1), reference=[golden], golden=[golden], faulty=[faulty], labels=None).flatten().tolist()
        [0, 1, 2, 3]
    """
    if len(parts := list(judged_together((*reference, *golden, *faulty)))) > 1:
        sides = {"reference": reference, "golden": golden, "faulty": faulty}
        alone = [{name: criterion.judged_rows(side, rows) for name, side in sides.items()} for rows in parts]
        found = [labels if labels is None else labels[rows] for rows in parts]
        return torch.cat([classify(criterion, **row, labels=y) for row, y in zip(alone, found, strict=True)])
    columns = [
        _outcomes(part, part.judged(reference), part.judged(golden), part.judged(faulty), labels)
        for part in criterion.parts
    ]
    return torch.cat(columns, 1)


@checked
def measure(criterion: Criterion, *, reference: Sequence[Any], faulty: Sequence[Any]) -> Tensor:
    """Measure how far the outputs of each run moved: float32, shape ``(runs, len(measure_names))``.

    NaN where an output that the criterion judges is not finite; a difference beyond the range of float32 is infinite.
    Arguments as for `classify`.

    Raises:
        HoplonError: a criterion whose measures are not those that it names.
    """
    if len(parts := list(judged_together((*reference, *faulty)))) > 1:
        alone = [[criterion.judged_rows(side, rows) for side in (reference, faulty)] for rows in parts]
        return torch.cat([measure(criterion, reference=one, faulty=other) for one, other in alone])
    found: dict[str, Tensor] = {}
    runs = 0
    for part in criterion.parts:
        golden, outputs = part.judged(reference), part.judged(faulty)
        same = _shapes(golden) == _shapes(outputs)
        finite = finite_rows(outputs, golden if part.masks and same else None)
        runs = len(finite)
        if set(part.measure_names) <= found.keys():
            continue
        if not same:
            found |= {name: torch.full((runs,), torch.nan) for name in part.measure_names}
            continue
        measured = part.measures(golden, outputs)
        if tuple(measured) != part.measure_names:
            raise HoplonError(f"expected the measures {part.measure_names} of {part.names[0]}, got {tuple(measured)}")
        found |= {name: values.float().where(finite, torch.nan) for name, values in measured.items()}
    names = criterion.measure_names
    return torch.stack([found[name] for name in names], 1) if names else torch.empty(runs, 0)


def _shapes(judged: Judged) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_of(judged)]


def _outcomes(criterion: Criterion, reference: Judged, golden: Judged, faulty: Judged, labels: Labels) -> Tensor:
    for wanted, own, got in zip(*map(tensors_of, (reference, golden, faulty)), strict=True):
        if not len(wanted) == len(own) == len(got):
            shapes = f"{tuple(wanted.shape)}, {tuple(own.shape)}, {tuple(got.shape)}"
            raise DataError(f"expected reference, golden and faulty outputs of one shape, got {shapes}")
    same = _shapes(reference) == _shapes(faulty)
    finite = finite_rows(faulty, reference if criterion.masks and same else None).unsqueeze(1)
    if same:
        outcome = torch.where(_identical(golden, faulty), int(Outcome.IDENTICAL), int(Outcome.BENIGN)).to(torch.uint8)
        outcome = torch.where(criterion.harmed(reference, faulty, labels), int(Outcome.SDC), outcome)
    else:
        outcome = torch.full((len(finite), len(criterion.names)), int(Outcome.SDC), dtype=torch.uint8)
    return torch.where(finite, outcome.to(finite.device), int(Outcome.NONFINITE))


def _identical(golden: Judged, faulty: Judged) -> Tensor:
    """The runs that gave the bits of the golden ones: bool, shape ``(runs, 1)``."""
    same = torch.full((len(tensors_of(faulty)[0]), 1), _shapes(golden) == _shapes(faulty))
    for own, got in zip(tensors_of(golden), tensors_of(faulty), strict=True):
        if own.shape == got.shape:
            same = same.to(got.device) & as_rows(same_bits(own, got)).all(1, keepdim=True)
    return same
