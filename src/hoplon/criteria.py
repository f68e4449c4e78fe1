"""Criteria: what counts as harm, and the one outcome of every run under each of them."""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.errors import DataError, HoplonError
from hoplon.formats import same_bits


class Outcome(enum.IntEnum):
    """What came of one run, stored as uint8.

    *masked* = identical + benign; *failure* = sdc + nonfinite.
    """

    IDENTICAL = 0
    BENIGN = 1
    SDC = 2
    NONFINITE = 3
    EXCEPTION = 4
    UNCORRECTABLE = 5


OUTCOME_NAMES: tuple[str, ...] = tuple(outcome.name.lower() for outcome in Outcome)


@dataclass(frozen=True)
class Criterion(ABC):
    """What counts as harm in a finite output; rows of all tensors belong together, one row per run."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """One name per outcome column."""

    @abstractmethod
    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Which runs are harmed: bool, shape ``(runs, len(names))``.

        Args:
            golden: reference outputs, shape ``(runs, ...)``, finite.
            faulty: same shape; rows that are not finite get an answer that `classify` does not use.
            labels: int64, shape ``(runs,)``, or None.
        """

    def check(self, golden: Tensor, labels: Tensor | None) -> None:
        """Refuse golden outputs or labels that cannot be judged.

        Args:
            golden: outputs of the fault-free unprotected model, shape ``(inputs, ...)``.
            labels: int64, shape ``(inputs,)``, or None.
        Raises:
            DataError: a golden output that is not finite, or labels of another length.
        """
        bad = ~_rows(golden.isfinite()).all(1)
        if bad.any():
            raise DataError(
                f"expected finite golden outputs, got NaN or infinity for input {int(bad.nonzero()[0])} "
                f"({int(bad.sum())} of {len(golden)} inputs); leave these inputs out"
            )
        if labels is not None and labels.shape != golden.shape[:1]:
            raise DataError(f"expected {len(golden)} labels, one per input, got shape {tuple(labels.shape)}")

    def eligible(self, golden: Tensor, labels: Tensor | None) -> Tensor:
        """The inputs on which failures count: bool, shape ``(inputs,)``; all unless overridden."""
        return torch.ones(len(golden), dtype=torch.bool, device=golden.device)


@final
@dataclass(frozen=True)
class TopK(Criterion):
    """Classification: harm when the reference class is not among the k largest faulty outputs.

    Of equal outputs the one with the lower index ranks higher, in golden and faulty runs alike.

    Args:
        k: how many classes the answer may name.
        reference: "golden", the first class of the golden output; "label", the label of the input.
    Raises:
        HoplonError: k below 1, or another reference.
    Example:
        >>> golden, faulty = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[3.0, 4.0, 1.0]])
        >>> TopK(1).harmed(golden, faulty, None), TopK(2).harmed(golden, faulty, None)
        (tensor([[True]]), tensor([[False]]))
    """

    k: int = 1
    reference: Literal["golden", "label"] = field(default="golden", kw_only=True)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise HoplonError(f"expected k of at least 1, got {self.k}")
        if self.reference not in ("golden", "label"):
            raise HoplonError(f"expected reference 'golden' or 'label', got {self.reference!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """("top-1",), or ("top-1-label",) against the labels."""
        return (f"top-{self.k}" + ("-label" if self.reference == "label" else ""),)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Which runs lost the reference class: bool, shape ``(runs, 1)``; outputs ``(runs, classes)``."""
        wanted = golden.argmax(1) if self.reference == "golden" else self._needed(labels)
        wanted = wanted.to(faulty.device).unsqueeze(1)
        own = faulty.gather(1, wanted)
        earlier = torch.arange(faulty.shape[1], device=faulty.device) < wanted
        ahead = (faulty > own) | ((faulty == own) & earlier)
        return ahead.sum(1, keepdim=True) >= self.k

    def check(self, golden: Tensor, labels: Tensor | None) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: outputs that are not ``(inputs, classes)`` with more than k classes, or not finite;
                labels missing, of another length, or not a class.
        """
        if golden.ndim != 2 or golden.shape[1] <= self.k:
            raise DataError(
                f"expected outputs of shape (inputs, classes) with more than k={self.k} classes, "
                f"got {tuple(golden.shape)}; for other outputs use Deviation"
            )
        super().check(golden, labels)
        if self.reference == "label":
            self._needed(labels)
        if labels is None:
            return
        outside = (labels < 0) | (labels >= golden.shape[1])
        if outside.any():
            first = int(outside.nonzero()[0])
            raise DataError(
                f"expected labels in [0, {golden.shape[1]}), the classes of the model, "
                f"got {int(labels[first])} for input {first}"
            )

    def eligible(self, golden: Tensor, labels: Tensor | None) -> Tensor:
        """With labels, the inputs whose first golden class is the label; without, all of them."""
        if labels is None:
            return super().eligible(golden, labels)
        return golden.argmax(1) == labels.to(golden.device)

    def _needed(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise DataError("expected labels for reference='label', got None; give y or use reference='golden'")
        return labels


@final
@dataclass(frozen=True)
class Deviation(Criterion):
    """Regression: harm when some element of the output moves by more than a threshold; one column for each.

    Args:
        thresholds: in the unit of the output, increasing, not negative.
        unit: for the names only.
    Raises:
        HoplonError: thresholds empty, negative, not finite, or not increasing.
    Example:
        >>> steering = Deviation((15.0, 30.0), unit="deg")
        >>> steering.names
        ('deviation>15deg', 'deviation>30deg')
        >>> steering.harmed(torch.tensor([[0.0]]), torch.tensor([[20.0]]), None)
        tensor([[ True, False]])
    """

    thresholds: tuple[float, ...]
    unit: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(float(t) for t in self.thresholds))
        steps = zip(self.thresholds, self.thresholds[1:], strict=False)
        usable = all(t >= 0 and math.isfinite(t) for t in self.thresholds) and all(a < b for a, b in steps)
        if not self.thresholds or not usable:
            raise HoplonError(f"expected increasing finite thresholds of at least 0, got {self.thresholds}")

    @property
    def names(self) -> tuple[str, ...]:
        """One per threshold, e.g. "deviation>15deg"."""
        return tuple(f"deviation>{t!r}".removesuffix(".0") + self.unit for t in self.thresholds)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Which runs moved further than each threshold: bool, shape ``(runs, thresholds)``."""
        wide = torch.promote_types(faulty.dtype, torch.float32)
        largest = _rows((faulty.to(wide) - golden.to(wide)).abs()).amax(1, keepdim=True)
        return largest > torch.tensor(self.thresholds, dtype=wide, device=faulty.device)


def classify(
    criterion: Criterion, *, reference: Tensor, golden: Tensor, faulty: Tensor, labels: Tensor | None
) -> Tensor:
    """The outcome of each run under each column of the criterion: uint8, shape ``(runs, len(names))``.

    The first that holds: not finite, NONFINITE; harmed against the reference, SDC; the bits of the arm's own
    golden output, IDENTICAL; else BENIGN. So an arm that gets an input wrong without any fault is counted SDC
    there, even where the fault left no trace. EXCEPTION and UNCORRECTABLE are set by the caller.

    Args:
        reference: golden outputs of the unprotected model, one row per run.
        golden: golden outputs of the arm that ran; the same tensor for the unprotected model.
        faulty: outputs with the fault.
        labels: int64, one per run, or None.
    Raises:
        DataError: outputs of different shapes.
    Example:
        >>> golden = torch.tensor([[2.0, 1.0]]).expand(4, 2)
        >>> faulty = torch.tensor([[2.0, 1.0], [2.0, 1.5], [2.0, 3.0], [2.0, float("nan")]])
        >>> classify(TopK(1), reference=golden, golden=golden, faulty=faulty, labels=None).flatten().tolist()
        [0, 1, 2, 3]
    """
    if not reference.shape == golden.shape == faulty.shape:
        shapes = f"{tuple(reference.shape)}, {tuple(golden.shape)}, {tuple(faulty.shape)}"
        raise DataError(f"expected reference, golden and faulty outputs of one shape, got {shapes}")
    identical = _rows(same_bits(golden, faulty)).all(1, keepdim=True)
    finite = _rows(faulty.isfinite()).all(1, keepdim=True)
    outcome = identical.to(torch.uint8).mul_(Outcome.IDENTICAL - Outcome.BENIGN).add_(Outcome.BENIGN)
    outcome = torch.where(criterion.harmed(reference, faulty, labels), int(Outcome.SDC), outcome)
    return torch.where(finite, outcome, int(Outcome.NONFINITE))


def _rows(outputs: Tensor) -> Tensor:
    """One row per run, also for no runs and for one number per run."""
    return outputs.reshape(len(outputs), math.prod(outputs.shape[1:]))
