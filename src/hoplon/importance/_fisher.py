"""The Fisher score: the diagonal of the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hoplon.errors import Count, Seed, checked
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, MeanLoss, Progress, differentiable, summed
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Inputs, Stream
from hoplon.program.program import Program, Ref
from hoplon.program.sites import Memory
from hoplon.registry import register


@dataclass(frozen=True)
class SignedLosses:
    """The losses of the samples, each with a random sign, summed.

    The square of its gradient is, on average over the signs, the sum of the squares of the samples' gradients: one
    backward pass where one per sample would be needed.

    Source:
        Hutchinson's estimator, Communications in Statistics 18(3), 1989, on the matrix of per-sample gradients.
    """

    loss: Loss
    generator: torch.Generator

    def __call__(self, program: Program, outputs: Sequence[Any], part: Inputs) -> Tensor:
        """The signed sum over the samples of the batch."""
        mean = MeanLoss(self.loss)
        signs = torch.randint(0, 2, (len(part),), generator=self.generator).mul_(2).sub_(1).tolist()
        losses = [
            sign * mean(program, sample_of(program, outputs, number), part.take([number]))
            for number, sign in enumerate(signs)
        ]
        return differentiable(torch.stack(losses).sum())


def sample_of(program: Program, outputs: Sequence[Any], number: int) -> list[Any]:
    """The flat outputs of one sample as those of a batch of one; what belongs to no sample stays as it is."""
    row = torch.tensor([number])
    return [
        program.layouts[leaf.step].take(value, row.to(value.device))
        if isinstance(leaf, Ref) and leaf.step in program.layouts and isinstance(value, Tensor)
        else value
        for leaf, value in zip(program.output_steps, outputs, strict=True)
    ]


@register("score", "fisher")
@checked
def fisher(
    program: Program,
    data: Stream,
    *,
    loss: Loss,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
    seed: Seed = 0,
) -> Scores:
    """Score weights by the mean over samples of the squared gradient of the sample's loss.

    With the labels of the data, not labels drawn from the model: the *empirical* Fisher information. Estimated without
    bias from one backward pass per batch, see :class:`SignedLosses`; exact at ``batch=1``. It does not otherwise depend
    on ``batch``.

    Args:
        seed: of the random signs.
    Other arguments, result and errors as :func:`hoplon.importance._taylor`; the loss is called with one sample.
    Source:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787, section 2,
        there times the square of the weight.
    """
    return summed(
        program,
        data,
        loss,
        sites,
        batch=batch,
        progress=progress,
        score="fisher",
        term=lambda gradient, weight: gradient.square_(),
        objective=SignedLosses(loss, torch.Generator().manual_seed(seed)),
        mean=True,
    )
