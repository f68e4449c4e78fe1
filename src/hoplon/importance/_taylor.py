"""The Taylor score: how much the loss would change, to first order, were a weight zero."""

from __future__ import annotations

from torch import Tensor

from hoplon.errors import Count, checked
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, Progress, summed
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.registry import register


@register("score", "taylor")
@checked
def taylor(
    program: Program,
    data: Stream,
    *,
    loss: Loss,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
) -> Scores:
    """Score weights by the squared product of gradient and weight, summed over batches.

    The score depends on ``batch``, since the gradient is that of a batch's mean loss; it is recorded.

    Args:
        program: its functional form is differentiated; memory is only read, no ``.grad`` is written.
        data: samples and labels, best of the training set; a map-style data set is read a batch at a time, and any
            iterable of batches ``(x, y)`` will do.
        loss: called as ``loss(output, labels)``, gives the mean loss of a batch as a scalar; ``labels`` is None for
            data without labels.
        sites: which storages to score; parameters that convolutions and linear layers read by default.
        batch: samples per gradient; the last batch may be shorter, an iterable's own batches stay as they are. A
            program of a fixed batch size takes that, and leaves the samples out that do not fill a batch.
        progress: called after each batch with the samples done and the samples in all (those done, where the data
            does not say).
    Returns:
        Scores in float32, of the shapes of the storages.
    Raises:
        SiteError: no such storage.
        DataError: no samples; a loss that is no finite scalar, or that does not depend on the storages.
    Source:
        Molchanov et al., CVPR 2019, equation (8), per weight as in Aspis (Schmedding et al.), equation (1).
    """
    return summed(program, data, loss, sites, batch=batch, progress=progress, score="taylor", term=_squared_product)


def _squared_product(gradient: Tensor, weight: Tensor) -> Tensor:
    return (gradient * weight).square_()
