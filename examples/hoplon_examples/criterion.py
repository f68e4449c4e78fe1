"""A criterion for systems that act on sure answers only: harm is a wrong class that looks certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le
from torch import Tensor

from hoplon.criteria import Criterion
from hoplon.errors import HoplonError
from hoplon.registry import register


@register("criterion", "confident")
@dataclass(frozen=True)
class ConfidentChange(Criterion):
    """Classification: harm when another class leads than in the golden run, and with at least this probability.

    Args:
        probability: softmax of the leading class below which the answer is not acted upon.
    Example:
        >>> import torch
        >>> golden, faulty = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
        >>> ConfidentChange(0.6).harmed(golden, faulty, None), ConfidentChange(0.7).harmed(golden, faulty, None)
        (tensor([[True]]), tensor([[False]]))
    """

    probability: Annotated[float, Gt(0), Le(1)] = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise HoplonError(f"expected a probability in (0, 1], got {self.probability}")

    @property
    def names(self) -> tuple[str, ...]:
        """One, e.g. "confident-50%"."""
        return (f"confident-{100 * self.probability:g}%",)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True for runs with another sure answer: bool, shape ``(runs, 1)``."""
        probability, leading = faulty.double().softmax(1).max(1)
        return ((leading != golden.argmax(1)) & (probability >= self.probability)).unsqueeze(1)

    def correct(self, golden: Tensor, labels: Tensor | None) -> Tensor | None:
        """Return True where the leading class is the label, if there are labels."""
        return None if labels is None else golden.argmax(1) == labels
