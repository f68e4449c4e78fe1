"""Scores compared within their own layer only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked
from hoplon.importance.scores import Scores

Normalisation = Literal["rank", "sum", "max"]


@checked
def layerwise(scores: Scores, *, by: Normalisation = "rank") -> Scores:
    """The scores of every storage on a scale of its own, so that no layer outranks another as a whole.

    Args:
        by: "rank", the share of the storage's weights that score no higher, in (0, 1]: of equal scores the one with the
            lower index counts as higher, and the top x % hold about x % of every storage. "sum": the share of the
            storage's total, so every storage carries the same importance. "max": relative to the storage's highest
            score. A storage without any score above zero stays zero under the last two.
    Returns:
        Scores in float64 for "rank", else float32; their name says what was done.
    Raises:
        HoplonError: another ``by``; negative scores under "sum" or "max".
    Example:
        >>> found = layerwise(Scores({"a": torch.tensor([1.0, 4.0, 2.0]), "b": torch.tensor([90.0, 70.0])}))
        >>> found["a"].tolist(), found["b"].tolist()
        ([0.333..., 1.0, 0.666...], [1.0, 0.5])
    """
    scales: dict[str, Callable[[Tensor], Tensor]] = {"rank": _ranks, "sum": _of_sum, "max": _of_max}
    for name, score in scores.values.items():
        if by != "rank" and score.numel() and bool(score.min() < 0):
            raise HoplonError(f"expected scores of at least 0 for by={by!r}, got others in {name}; use by='rank'")
    values = {name: scales[by](score) for name, score in scores.values.items()}
    return replace(scores, values=values, score=f"layerwise({scores.score}, {by})")


def _ranks(score: Tensor) -> Tensor:
    flat = score.reshape(-1)
    order = torch.sort(flat.double(), descending=True, stable=True).indices
    ranks = torch.empty(len(flat), dtype=torch.float64, device=score.device)
    ranks[order] = torch.arange(len(flat), 0, -1, dtype=torch.float64, device=score.device) / max(len(flat), 1)
    return ranks.reshape(score.shape)


def _of_sum(score: Tensor) -> Tensor:
    total = score.double().sum()
    return (score / total.where(total > 0, 1.0)).float()


def _of_max(score: Tensor) -> Tensor:
    highest = score.double().amax() if score.numel() else torch.tensor(0.0)
    return (score / highest.where(highest > 0, 1.0)).float()
