"""The gradient score: how fast the loss changes with a weight, whatever the weight is."""

from __future__ import annotations

from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, MeanLoss, Progress, summed
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.program import Program
from hoplon.program.sites import Memory


def gradient(
    program: Program,
    data: Stream,
    *,
    loss: Loss,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: int = 64,
    progress: Progress | None = None,
) -> Scores:
    """Score weights by the absolute gradient of a batch's mean loss, summed over batches.

    Arguments, result and errors as :func:`hoplon.importance._taylor`. It depends on ``batch`` in the same way.
    """
    return summed(
        program,
        data,
        sites=sites,
        objective=MeanLoss(loss),
        batch=batch,
        term=lambda gradient, weight: gradient.abs(),
        score="gradient",
        loss=loss,
        progress=progress,
    )
