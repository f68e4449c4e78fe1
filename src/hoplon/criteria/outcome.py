"""The one outcome of every run under each criterion, and how far its output moved."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, Judged, as_rows, finite_rows, tensors_of
from hoplon.errors import DataError, HoplonError
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


def classify(
    criterion: Criterion,
    *,
    reference: Sequence[Any],
    golden: Sequence[Any],
    faulty: Sequence[Any],
    labels: Tensor | None,
) -> Tensor:
    """Return the outcome of each run under each column of the criterion: uint8, shape ``(runs, len(names))``.

    The first that holds: a judged output not finite, NONFINITE; harmed against the reference, SDC; the bits of the
    arm's own golden outputs, IDENTICAL; else BENIGN. So an arm that gets an input wrong without any fault is counted
    SDC there, even where the fault left no trace. CRASH and UNCORRECTABLE are set by the caller.

    Args:
        reference: flat golden outputs of the unprotected model, one row per run; only judged ones are looked at.
        golden: flat golden outputs of the arm that ran; the same for the unprotected model.
        faulty: flat outputs with the fault.
        labels: int64, one row per run, or None.
    Raises:
        DataError: outputs of different shapes.
    Example:
        >>> from hoplon.criteria import TopK
        >>> golden = torch.tensor([[2.0, 1.0]]).expand(4, 2)
        >>> faulty = torch.tensor([[2.0, 1.0], [2.0, 1.5], [2.0, 3.0], [2.0, float("nan")]])
        >>> classify(TopK(1), reference=[golden], golden=[golden], faulty=[faulty], labels=None).flatten().tolist()
        [0, 1, 2, 3]
    """
    columns = [
        _outcomes(part, part.judged(reference), part.judged(golden), part.judged(faulty), labels)
        for part in criterion.parts
    ]
    return torch.cat(columns, 1)


def measure(criterion: Criterion, *, reference: Sequence[Any], faulty: Sequence[Any]) -> Tensor:
    """Measure how far the outputs of each run moved: float32, shape ``(runs, len(measure_names))``.

    NaN where an output that the criterion judges is not finite; a difference beyond the range of float32 is infinite.
    Arguments as for `classify`.

    Raises:
        HoplonError: a criterion whose measures are not those that it names.
    """
    found: dict[str, Tensor] = {}
    runs = 0
    for part in criterion.parts:
        golden, outputs = part.judged(reference), part.judged(faulty)
        finite = finite_rows(outputs)
        runs = len(finite)
        if set(part.measure_names) <= found.keys():
            continue
        measured = part.measures(golden, outputs)
        if tuple(measured) != part.measure_names:
            raise HoplonError(f"expected the measures {part.measure_names} of {part.names[0]}, got {tuple(measured)}")
        found |= {name: values.float().where(finite, torch.nan) for name, values in measured.items()}
    names = criterion.measure_names
    return torch.stack([found[name] for name in names], 1) if names else torch.empty(runs, 0)


def _outcomes(criterion: Criterion, reference: Judged, golden: Judged, faulty: Judged, labels: Tensor | None) -> Tensor:
    identical = torch.ones((), dtype=torch.bool)
    for wanted, own, got in zip(*map(tensors_of, (reference, golden, faulty)), strict=True):
        if not wanted.shape == own.shape == got.shape:
            shapes = f"{tuple(wanted.shape)}, {tuple(own.shape)}, {tuple(got.shape)}"
            raise DataError(f"expected reference, golden and faulty outputs of one shape, got {shapes}")
        identical = identical.to(got.device) & as_rows(same_bits(own, got)).all(1, keepdim=True)
    outcome = identical.to(torch.uint8).mul_(Outcome.IDENTICAL - Outcome.BENIGN).add_(Outcome.BENIGN)
    outcome = torch.where(criterion.harmed(reference, faulty, labels), int(Outcome.SDC), outcome)
    return torch.where(finite_rows(faulty).unsqueeze(1), outcome, int(Outcome.NONFINITE))
