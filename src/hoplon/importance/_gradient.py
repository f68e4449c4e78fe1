"""The gradient score: how fast the loss changes with a weight, whatever the weight is."""

from __future__ import annotations

from torch import Tensor

from hoplon.errors import Count, checked
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, Progress, summed
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.registry import register


@register("score", "gradient")
@checked
def gradient(
    program: Program,
    data: Stream,
    *,
    loss: Loss,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
) -> Scores:
    """Score weights by the absolute gradient of a batch's mean loss, summed over batches.

    Arguments, result and errors as :func:`hoplon.importance._taylor`. It depends on ``batch`` in the same way.
    """
    return summed(program, data, loss, sites, batch=batch, progress=progress, score="gradient", term=_absolute)


def _absolute(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.abs()
