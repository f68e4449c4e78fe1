"""Gradients through protections: those of a clamp, whatever a protection computes with."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from hoplon.protections.base import Chain, ValueProtection


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
