"""Whether scores belong to the memory at hand, where there is no program to compare fingerprints with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats.digest import digest_of
from hoplon.importance.scores import Scores


def require_shapes(scores: Scores, memory: Mapping[str, Tensor]) -> None:
    """Refuse memory that lacks a scored storage, or has it in another shape.

    Raises:
        HoplonError: names the storage.
    """
    for name, score in scores.values.items():
        shape = tuple(memory[name].shape) if name in memory else None
        if shape != tuple(score.shape):
            raise HoplonError(
                f"expected a storage {name!r} of shape {tuple(score.shape)}, as scored, got {shape or 'none'}; score "
                "this model"
            )


def require_scored(scores: Scores, memory: Mapping[str, Tensor]) -> None:
    """Refuse memory that is not what was scored: other names, shapes, or weights where the scores know their digest.

    Raises:
        HoplonError: says what differs.
    """
    require_shapes(scores, memory)
    if scores.weights and digest_of({name: memory[name] for name in scores.values}) != scores.weights:
        raise HoplonError(
            f"expected the weights that were scored ({scores.score or 'scores'}), got others under the same names; "
            "score this model, or load the scored weights"
        )
