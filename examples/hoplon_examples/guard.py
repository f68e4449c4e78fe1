"""A guard that costs two words per tensor: it knows the range of the weights, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hoplon.protections import Change, GuardReport, Protection, StorageGuard, change, distinct, of_turn
from hoplon.registry import register


@register("protection", "weight-range")
@dataclass(frozen=True)
class WeightRange(Protection):
    """Sets weights that have left the range of their tensor to 0, or to the end of the range that is nearest to 0.

    Large deviations do the harm, and the flips that make them cannot stay inside the range; all others are missed.

    Example:
        >>> weights = {"fc.weight": torch.tensor([0.5, -0.25])}
        >>> guard = WeightRange().arm(weights)
        >>> weights["fc.weight"].data[0] *= 2.0**100  # as a soft error does, unseen by torch
        >>> guard.check().mitigated, weights["fc.weight"]
        (1, tensor([ 0.0000, -0.2500]))
    """

    label = "weight-range"
    guarantee = "no weight stays outside of the range of its tensor; changes inside of it are missed"

    def arm(self, memory: Mapping[str, Tensor]) -> StorageGuard[Tensor]:
        """Take the ranges of the weights as they are now."""
        return _RangeGuard(memory)


class _RangeGuard(StorageGuard[Tensor]):
    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        super().__init__(memory, distinct(memory))
        self._ranges = {name: torch.stack(live.aminmax()) for name, live in self._live.items()}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        return self._ranges

    def refresh(self) -> None:
        for name, live in self._live.items():
            self._ranges[name].copy_(torch.stack(live.aminmax()))
        self._counters.note()

    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, Mapping[str, Tensor]]:
        names = [*self._live]
        looked_at = {names[number]: self._outside(names[number]) for number in of_turn(len(names), turn, turns)}
        report = GuardReport(checked=sum(map(Tensor.numel, looked_at.values())))
        return report, {name: outside for name, outside in looked_at.items() if outside.any()}

    def _outside(self, name: str) -> Tensor:
        low, high = self._ranges[name]
        return ~((self._live[name] >= low) & (self._live[name] <= high))  # NaN is outside

    def _changes(self, suspects: Mapping[str, Tensor]) -> Mapping[str, Change]:
        return {name: change(int(outside.sum()), outside.numel()) for name, outside in suspects.items()}

    def _repaired(self, name: str, suspect: Tensor) -> GuardReport:
        count, (low, high) = int(suspect.sum()), self._ranges[name]
        self._live[name].masked_fill_(suspect, torch.zeros_like(low).clamp(low, high))
        return GuardReport(detected=count, mitigated=count, where=(name,))
