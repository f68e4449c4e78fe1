"""The interface of criteria: the outputs that it judges, the inputs that count, the runs that are harmed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from hoplon.criteria.ragged import Ragged
from hoplon.errors import DataError, HoplonError, checked

Judged: TypeAlias = Any
"""What a criterion judges: one tensor, or a tuple of tensors where its ``outputs`` is a tuple; a row per run."""
Labels: TypeAlias = Any
"""Labels, a row per run: int64 or floating point, shape ``(runs, ...)``, or annotations such as boxes; or None."""


@checked
@dataclass(frozen=True)
class Criterion(ABC):
    """A definition of harm in a finite output; rows of all tensors belong together, one row per run.

    Args:
        outputs: which outputs of the model are judged, as positions in the flat list of them: a number for one tensor,
            a tuple for several, None for the first floating-point one.
    """

    outputs: int | tuple[int, ...] | None = field(default=None, kw_only=True)

    masks: ClassVar[bool] = False
    """Tell whether -inf is a value as others are, such as the logit of a class that is masked out."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """One name per outcome column."""

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The keys of `measures`; none unless overridden."""
        return ()

    @property
    def parts(self) -> tuple[Criterion, ...]:
        """The criteria that this one consists of, in the order of the columns: itself, unless it joins others."""
        return (self,)

    @abstractmethod
    def harmed(self, golden: Judged, faulty: Judged, labels: Labels) -> Tensor:
        """Return True for the runs that are harmed: bool, shape ``(runs, len(names))``.

        Args:
            golden: reference outputs, shape ``(runs, ...)``, finite, or -inf where the criterion ``masks``.
            faulty: same shape; rows that are not finite get an answer that `classify` does not use.
            labels: one row per run, or None.
        """

    def measures(self, golden: Judged, faulty: Judged) -> dict[str, Tensor]:
        """Measure how far the outputs moved, by name: floating point, shape ``(runs,)``; nothing unless overridden.

        Arguments as for `harmed`.
        """
        return {}

    def correct(self, golden: Judged, labels: Labels) -> Tensor | None:
        """Return True for right fault-free outputs: bool, shape ``(inputs,)``; None where that has no meaning."""
        return None

    def eligible(self, golden: Judged, labels: Labels) -> Tensor:
        """The inputs on which failures count: bool, shape ``(inputs,)``; those that are right, or else all."""
        right = self.correct(golden, labels)
        first = tensors_of(golden)[0]
        return torch.ones(len(first), dtype=torch.bool, device=first.device) if right is None else right

    def check(self, golden: Judged, labels: Labels) -> None:
        """Refuse golden outputs or labels that cannot be judged.

        Args:
            golden: outputs of the fault-free unprotected model, shape ``(inputs, ...)``.
            labels: one row per input, or None.
        Raises:
            DataError: a golden output that is not finite, or labels of another length.
        """
        bad = ~finite_rows(golden, golden if self.masks else None)
        if bad.any():
            way = "judge another output, outputs=..., or let the model give numbers" if bad.all() else "leave them out"
            raise DataError(
                f"expected finite golden outputs, got NaN or infinity for input {int(bad.nonzero()[0])} "
                f"({int(bad.sum())} of {len(bad)} inputs); {way}"
            )
        if labels is not None and len(labels) != len(bad):
            shape = tuple(getattr(labels, "shape", (len(labels),)))
            raise DataError(f"expected {len(bad)} labels, one per input, got shape {shape}")

    def positions(self, outputs: Sequence[Any]) -> tuple[int, ...]:
        """Positions of the judged outputs among the flat outputs of a model.

        Raises:
            DataError: a position that the model does not have, or at which there is no tensor.
        """
        if self.outputs is None:
            floating = (
                i for i, leaf in enumerate(outputs) if isinstance(leaf, Tensor | Ragged) and leaf.is_floating_point()
            )
            first = next(floating, None)
            if first is None:
                raise DataError(f"expected a floating-point output for {self.names[0]}, got none; say which to judge")
            return (first,)
        chosen = self.outputs if isinstance(self.outputs, tuple) else (self.outputs,)
        for position in chosen:
            if not 0 <= position < len(outputs):
                raise DataError(
                    f"expected outputs of the model in [0, {len(outputs)}) for {self.names[0]}, got {position}"
                )
            if not isinstance(outputs[position], Tensor | Ragged):
                kind = type(outputs[position]).__name__
                raise DataError(f"expected a tensor as output {position} for {self.names[0]}, got {kind}")
        return chosen

    def judged(self, outputs: Sequence[Any]) -> Judged:
        """The judged ones of the flat outputs of a model, as the other methods take them."""
        picked = tuple(outputs[position] for position in self.positions(outputs))
        return picked if isinstance(self.outputs, tuple) else picked[0]

    def judged_rows(self, outputs: Sequence[Any], rows: Tensor | slice) -> tuple[Any, ...]:
        """The flat outputs with their judged ones at these rows, and None in the place of the others."""
        positions = self.positions(outputs)
        return tuple(leaf[rows] if index in positions else None for index, leaf in enumerate(outputs))

    def _need_one_output(self) -> None:
        """Refuse several outputs, for a criterion that judges one tensor."""
        if isinstance(self.outputs, tuple):
            raise HoplonError(f"expected one output for {type(self).__name__}, got {self.outputs}; give its position")

    @property
    def _at(self) -> str:
        """Ending of names where the output is chosen: "@1"."""
        return "" if self.outputs is None else f"@{self.outputs}"


def integer_labels(labels: Labels, name: str) -> Tensor | None:
    """Return labels that are classes or token ids: int64, or None.

    Raises:
        DataError: labels of another kind.
    """
    if labels is None or (isinstance(labels, Tensor) and not labels.is_floating_point()):
        return labels
    kind = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
    way = "y.long() makes them" if isinstance(labels, Tensor) else "give y as numbers, or use another criterion"
    raise DataError(f"expected integer labels for {name}, got {kind}; {way}")


def tensors_of(judged: Judged) -> tuple[Tensor, ...]:
    """Return what a criterion judges, always as a tuple."""
    return judged if isinstance(judged, tuple) else (judged,)


def as_rows(outputs: Tensor) -> Tensor:
    """One row per run, also for no runs and for one number per run."""
    return outputs.reshape(len(outputs), math.prod(outputs.shape[1:]))


def finite_rows(judged: Judged, reference: Judged | None = None) -> Tensor:
    """The runs in which every judged floating-point output is finite: bool, shape ``(runs,)``.

    Where a ``reference`` of the same shape is -inf, so may they be.
    """
    tensors = tensors_of(judged)
    finite = torch.ones(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    for number, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            legal = tensor.isfinite()
            if reference is not None:
                legal |= (tensor == -torch.inf) & (tensors_of(reference)[number].to(tensor.device) == -torch.inf)
            finite &= as_rows(legal).all(1)
    return finite
