"""Harm to an embedding: it moves too far from the golden one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, as_rows
from hoplon.errors import DataError, HoplonError, checked
from hoplon.registry import register


@register("criterion", "embedding")
@final
@checked
@dataclass(frozen=True)
class EmbeddingDistance(Criterion):
    """Embeddings: harm when the distance between golden and faulty embedding exceeds a threshold.

    Args:
        threshold: not negative.
        metric: "cosine", 1 - cos of the angle, in [0, 2], and 1 for a faulty embedding of zeros; or "euclidean".
        outputs: the output that holds the embedding, shape ``(runs, ...)``; all its elements make one vector.
    Raises:
        HoplonError: a threshold that is negative or not finite, another metric, or several outputs.
    Example:
        >>> golden, faulty = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 3.0]])
        >>> EmbeddingDistance(0.2).harmed(golden, faulty, None), EmbeddingDistance(0.3).harmed(golden, faulty, None)
        (tensor([[True]]), tensor([[False]]))
    """

    threshold: float
    metric: Literal["cosine", "euclidean"] = field(default="cosine", kw_only=True)

    def __post_init__(self) -> None:
        self._need_one_output()
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise HoplonError(f"expected a finite threshold of at least 0, got {self.threshold}")

    @property
    def names(self) -> tuple[str, ...]:
        """One, e.g. "cosine>0.1"."""
        return (f"{self.metric}>{self.threshold:g}" + self._at,)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True for embeddings that moved further than the threshold: bool, shape ``(runs, 1)``."""
        vectors = as_rows(golden).double(), as_rows(faulty).double()
        if self.metric == "euclidean":
            moved: Tensor = torch.linalg.vector_norm(vectors[1] - vectors[0], dim=1)
            return (moved > self.threshold).unsqueeze(1)
        one, other = map(_directions, vectors)
        # Of unit vectors 1 - cos is half the squared distance: exactly 0 for equal ones, and exact for close ones.
        distance = ((one - other) ** 2).sum(1) / 2
        nowhere = (other == 0).all(1)
        return torch.where(nowhere, 1.0, distance).gt(self.threshold).unsqueeze(1)

    def check(self, golden: Tensor, labels: Tensor | None) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: embeddings that are not finite, or have no elements; for the cosine, one that is all zeros.
        """
        if not math.prod(golden.shape[1:]):
            raise DataError(f"expected embeddings with at least one element, got shape {tuple(golden.shape)}")
        super().check(golden, labels)
        zeros = (as_rows(golden) == 0).all(1)
        if self.metric == "cosine" and zeros.any():
            raise DataError(
                f"expected golden embeddings with a direction, got all zeros for input {int(zeros.nonzero()[0])}; "
                "leave it out or use metric='euclidean'"
            )


def _directions(vectors: Tensor) -> Tensor:
    """Vectors of length 1, whatever their size before; zeros stay zeros."""
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / largest.where(largest > 0, 1.0)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.where(length > 0, 1.0)
