"""The random score: what any other has to beat."""

from __future__ import annotations

import torch

from hoplon.errors import Count, Seed, checked
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, Progress, described
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.registry import register


@register("score", "random")
@checked
def random(
    program: Program,
    data: Stream | None = None,
    *,
    loss: Loss | None = None,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
    seed: Seed = 0,
) -> Scores:
    """Score weights by numbers drawn uniformly from [0, 1); only ``sites`` and ``seed`` matter.

    Returns:
        Scores in float64, so that hardly two are equal, of the shapes of the storages.
    Raises:
        SiteError: no such storage.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = sites.select(program)
    values = {site.name: torch.rand(site.shape, dtype=torch.float64, generator=generator) for site in chosen}
    return described(values, score=f"random, seed {seed}", program=program)
