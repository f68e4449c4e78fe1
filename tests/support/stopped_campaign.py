"""A campaign for a process of its own, which tests kill, interrupt or starve; captured when it is imported."""

from __future__ import annotations

from pathlib import Path

import torch

from hoplon import Campaign, Inputs, Memory, Results, capture
from tests.support.networks import NETWORKS

UNITS = 36
COUNT = 64 * UNITS - 10  # the last unit is short

torch.set_num_threads(1)
_NET = NETWORKS["mlp"]
_PROGRAM = capture(_NET.model(), _NET.batch(2))


def run(folder: str | Path | None, *, workers: int = 1, count: int = COUNT) -> Results:
    """Start the campaign in a folder, or go on with it."""
    campaign = Campaign(_PROGRAM, Inputs(_NET.batch(3), name="random"), sites=Memory())
    return campaign.run(count=count, seed=5, store=folder, resume=folder is not None, workers=workers, threads=1)
