"""Deviations that a fault model makes of the weights of a storage, and their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel, WordModel
from hoplon.formats.base import NumberFormat, integer_view
from hoplon.program.sites import MemorySite

_SMALL_BINS = 10
_STEP = 4.0  # between the edges of small deviations
_LARGE = 8.0  # times the largest weight of the storage: what no weight could be
_DECADES = 3  # below the largest finite number: where sums may overflow on their way, the sooner the larger
_PER_DECADE = 4
_KEPT_BITS = 16  # upper bits of a word that tell what its faults do: sign, exponent, some mantissa
_MOST_CHANGES = 512

LEVELS = _DECADES * _PER_DECADE + 1
"""Ranges of large deviations: quarters of a decade below the largest finite number, and in front of them the rest."""

CLOSENESS = torch.tensor([0.0, *((level + 0.5) / _PER_DECADE for level in range(LEVELS - 1))], dtype=torch.float64)
"""How far each range lies above the first, in decades, shape ``(LEVELS,)``."""


@final
@dataclass(frozen=True, eq=False)
class Deviations:
    """Probabilities of deviations, given that a weight is struck.

    Weights with equal upper bits form a class, represented by one of them. ``small``: of a deviation in each of the
    bins of small ones, shape ``(classes, bins)``, and ``square``: the part of the mean square that comes from there.
    ``large``: of a rise (0) or a fall (1) in each range of large ones, shape ``(classes, 2, LEVELS)``. ``nonfinite``:
    of NaN or infinity in the weight's place, shape ``(classes,)``. All float64. ``typical``: the size of deviations in
    each range of large ones, shape ``(LEVELS,)``, 0 where there are none.
    """

    classes: Tensor
    small: Tensor
    square: Tensor
    large: Tensor
    nonfinite: Tensor
    typical: Tensor

    @classmethod
    def of(cls, weight: Tensor, site: MemorySite, model: FaultModel, *, generator: torch.Generator) -> Deviations:
        """The deviations that the model causes in a storage.

        Args:
            weight: the storage.
            generator: draws changes where there are more than 512 to list.
        Raises:
            HoplonError: a fault model of several words, or a format that differs between the weights of a storage.
        """
        form = model.format_for(site)
        if not isinstance(model, WordModel) or form.varies:
            raise HoplonError(
                f"expected a fault model of one word, in one format per storage, got {model.name}; it is struck word "
                "by word: give the model of the single word"
            )
        flat = weight.detach().reshape(-1).cpu()
        classes, representative = _classes(flat)
        keep, flip, probability = _changes(model, form, generator)
        before = flat[representative].unsqueeze(1).expand(-1, len(keep))
        after = form.apply(before, keep.expand_as(before), flip.expand_as(before)).double()
        change = after - before.double()
        edges = _edges(flat)
        return cls(classes, *_tallied(change, probability, edges, classes.bincount()))


def _classes(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each weight, and one weight of each class."""
    upper = integer_view(flat) >> max(0, 8 * flat.dtype.itemsize - _KEPT_BITS)
    found, classes = upper.unique(return_inverse=True)
    representative = torch.empty(len(found), dtype=torch.int64)
    representative[classes] = torch.arange(len(flat))
    return classes, representative


def _changes(model: WordModel, form: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Every change of a word and its probability, or 512 drawn ones, the same for all weights."""
    try:
        keep, flip, probability = model.patterns(form)
    except HoplonError:
        keep = torch.empty(0)
    if 0 < len(keep) <= _MOST_CHANGES:
        return keep, flip, probability
    keep, flip, _ = model.draw(_MOST_CHANGES, format=form, generator=generator)
    return keep, flip, torch.full((len(keep),), 1 / len(keep), dtype=torch.float64)


def _edges(flat: Tensor) -> Tensor:
    """Borders of the bins: small ones below what no weight of the storage could be, ranges of large ones above."""
    limit = _LARGE * float(flat.double().abs().max()) or 1.0
    small = [limit / _STEP**power for power in range(_SMALL_BINS - 1, -1, -1)]
    decades = torch.arange(LEVELS - 1, dtype=torch.float64) / _PER_DECADE - _DECADES
    large = torch.finfo(flat.dtype).max * 10**decades
    return torch.cat([torch.tensor(small, dtype=torch.float64), large.clamp(min=limit)])


def _tallied(change: Tensor, probability: Tensor, edges: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """Fields of `Deviations` from the changes, shape ``(classes, changes)``."""
    number, bins = len(change), _SMALL_BINS + LEVELS
    finite = change.isfinite()
    size = change.abs().where(finite, 0.0)
    slot = torch.bucketize(size, edges)
    mass = probability.expand_as(size) * finite
    falls = (change < 0).long()
    table = torch.zeros(number, 2, bins, dtype=torch.float64).reshape(number, -1)
    table.scatter_add_(1, falls * bins + slot, mass)
    table = table.reshape(number, 2, bins)
    squares = torch.zeros(number, bins, dtype=torch.float64)
    squares.scatter_add_(1, slot, (mass * size.square()).where(slot < _SMALL_BINS, 0.0))
    logs = torch.zeros(number, bins, dtype=torch.float64).scatter_add_(1, slot, mass * size.clamp(min=1e-300).log())
    weighted = table.sum(1) * counts.unsqueeze(1)
    means = ((logs * counts.unsqueeze(1)).sum(0) / weighted.sum(0).clamp(min=1e-300)).exp()
    typical = means.where(weighted.sum(0) > 0, 0.0)[_SMALL_BINS:]
    nonfinite = (probability * ~finite).sum(1)
    return table[:, :, :_SMALL_BINS].sum(1), squares[:, :_SMALL_BINS], table[:, :, _SMALL_BINS:], nonfinite, typical
