"""Counting the values that a protection finds wrong."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Count:
    """A sum that stays on the device of what it counts, so that counting waits for nothing."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, wrong: Tensor | None) -> None:
        """Count the true elements; None counts nothing."""
        if wrong is None:
            return
        found = wrong.sum()
        with torch.inference_mode(False):
            total = torch.zeros((), dtype=torch.int64, device=found.device) if self._sum is None else self._sum
            self._sum = total.to(found.device) + found

    @property
    def total(self) -> int:
        """Values counted since the last reset."""
        return 0 if self._sum is None else int(self._sum)

    def reset(self) -> None:
        """Start again from 0."""
        self._sum = None
