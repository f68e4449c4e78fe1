"""A value protection as a part of a graph, with the gradients of a clamp whatever it computes with."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor, nn

from hoplon.protections.base import Chain, ValueProtection
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


def passing_gradients(value: Tensor, effect: ValueProtection) -> Tensor:
    """The protected value, with gradients: unchanged where the protection found nothing wrong, zero elsewhere.

    A protection that does not tell what it takes for wrong is differentiated as it is written; a detector changes
    nothing, and so all gradients pass.
    """
    if isinstance(effect, Chain):
        for link in effect.links:
            value = passing_gradients(value, link)
        return value
    if effect.detects or effect.repeats:
        return value
    wrong = effect.outside(value.detach())
    if wrong is None:
        return effect(value)
    return cast(Tensor, _Passing.apply(value, effect(value.detach()), wrong))  # type: ignore[no-untyped-call]


class _Passing(torch.autograd.Function):
    """A value in the place of another, with the gradients of the other where it is not wrong."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, protected: Tensor, wrong: Tensor) -> Tensor:
        """The protected value."""
        ctx.save_for_backward(wrong)
        return protected.view_as(protected)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """By input."""
        (wrong,) = ctx.saved_tensors
        return gradients[0].masked_fill(wrong, 0), None, None
