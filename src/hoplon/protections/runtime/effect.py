"""A value protection as a part of a graph."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from hoplon.protections.base import ValueProtection
from hoplon.protections.runtime.gradient import passing_gradients
from hoplon.protections.values.counter import Count


@final
class Effect(nn.Module):
    """A value protection as a node of the graph; ``in_place`` where others have to see its effect, or nobody can."""

    def __init__(
        self,
        name: str,
        effect: ValueProtection,
        count: Count | None,
        *,
        in_place: bool,
        is_relu: bool = False,
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self.site = name
        self.effect = effect
        self.count = count
        self.is_relu = is_relu
        self.in_place = in_place
        self.gradients = gradients

    def forward(self, value: Tensor) -> Tensor:
        """The value as its readers get it."""
        if self.count is not None:
            self.count.add(self.effect.outside(value.relu() if self.is_relu else value))
        if self.gradients and torch.is_grad_enabled():
            return passing_gradients(value.relu() if self.is_relu else value, self.effect)
        return self.effect.apply_(value) if self.in_place else self.effect(value)
