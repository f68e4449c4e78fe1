"""Harm to a regression: the output moves further than a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, as_rows
from hoplon.errors import HoplonError, checked
from hoplon.registry import register


@register("criterion", "deviation")
@register("criterion", "steering", build="steering")
@final
@checked
@dataclass(frozen=True)
class Deviation(Criterion):
    """Regression: harm when some element of the output moves by more than a threshold; one column for each.

    Args:
        thresholds: in the named unit, increasing, not negative.
        unit: for the names only.
        scale: what brings the output into that unit; 180 / pi for an output in radians and thresholds in degrees.
    Raises:
        HoplonError: thresholds empty, negative, not finite, or not increasing; a scale that is not positive; several
            outputs.
    Example:
        >>> steering = Deviation((15.0, 30.0), unit="deg")
        >>> steering.names
        ('deviation>15deg', 'deviation>30deg')
        >>> steering.harmed(torch.tensor([[0.0]]), torch.tensor([[20.0]]), None)
        tensor([[ True, False]])
    """

    thresholds: tuple[float, ...]
    unit: str = field(default="", kw_only=True)
    scale: float = field(default=1.0, kw_only=True)

    masks = True

    def __post_init__(self) -> None:
        self._need_one_output()
        object.__setattr__(self, "thresholds", tuple(float(t) for t in self.thresholds))
        steps = zip(self.thresholds, self.thresholds[1:], strict=False)
        usable = all(t >= 0 and math.isfinite(t) for t in self.thresholds) and all(a < b for a, b in steps)
        if not self.thresholds or not usable:
            raise HoplonError(f"expected increasing finite thresholds of at least 0, got {self.thresholds}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise HoplonError(f"expected a finite scale above 0, got {self.scale}")

    @classmethod
    def steering(cls, *, scale: float = 1.0, outputs: int | None = None) -> Self:
        """Steering angles off by more than 15, 30, 60 and 120 degrees.

        Args:
            scale: 180 / pi for a model that gives radians.
        Source:
            Ranger (Chen, Li and Pattabiraman, DSN 2021), section IV-C: the thresholds for Dave and Comma.ai.
        Example:
            >>> Deviation.steering(scale=180 / math.pi).harmed(torch.zeros(1, 1), torch.ones(1, 1), None)
            tensor([[ True,  True, False, False]])
        """
        return cls((15.0, 30.0, 60.0, 120.0), unit="deg", scale=scale, outputs=outputs)

    @property
    def names(self) -> tuple[str, ...]:
        """One per threshold, e.g. "deviation>15deg"."""
        return tuple(f"deviation>{t!r}".removesuffix(".0") + self.unit + self._at for t in self.thresholds)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True where a run moved further than each threshold: bool, shape ``(runs, thresholds)``."""
        wide = torch.promote_types(faulty.dtype, torch.float32)
        moved = torch.where(faulty == golden, 0, faulty.to(wide) - golden.to(wide)).abs()  # of -inf in both: none
        rows = as_rows(moved)  # without elements where a detector finds nothing, as golden: not moved
        largest = rows.amax(1, keepdim=True) * self.scale if rows.shape[1] else rows.new_zeros(len(rows), 1)
        return largest > torch.tensor(self.thresholds, dtype=wide, device=faulty.device)
