"""The magnitude score: how large a weight is."""

from __future__ import annotations

from hoplon.errors import Count, checked
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, Progress, described
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.registry import register


@register("score", "magnitude")
@checked
def magnitude(
    program: Program,
    data: Stream | None = None,
    *,
    loss: Loss | None = None,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
) -> Scores:
    """Score weights by their absolute value; data, loss, batch and progress are not used.

    Returns:
        Scores in float32, of the shapes of the storages.
    Raises:
        SiteError: no such storage.
        HoplonError: a weight that is not finite.
    Source:
        Aspis (Schmedding et al.), section III-C.
    """
    memory = program.memory()
    chosen = sites.select(program)
    return described(
        {site.name: memory[site.name].detach().float().abs() for site in chosen}, score="magnitude", program=program
    )
