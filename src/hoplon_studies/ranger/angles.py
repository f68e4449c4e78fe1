"""Errors of steering networks in degrees, and how far they are below those of predictors that do not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hoplon.stats.bootstrap import block_bootstrap
from hoplon.stats.intervals import Floats, Interval
from hoplon.zoo.datasets._driving import training_angle
from hoplon_studies.framework.findings import Table
from hoplon_studies.framework.rows import Row, Value
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Network, outputs
from hoplon_studies.ranger.runs import row_of
from hoplon_studies.training.validation import recorded

MEASURES = {"RMSE": "rmse", "mean deviation": "deviation"}
"""Errors of angles, and what they are called in keys of published values."""

STRETCH = 70  # frames: 5 seconds; squared errors of frames that are 3 seconds apart no longer depend on each other
LIMITS = (
    f"Frames of one drive depend on their neighbours: limits of errors in degrees come from resampled stretches of "
    f"{STRETCH} frames, 5 seconds (block bootstrap), the same stretches for all that is compared. There are few such "
    "stretches, and few turns in them, so the limits are wide and still somewhat too narrow for another drive."
)


def angle_errors(
    context: Context,
    where: str,
    network: Network,
    what: str,
    module: nn.Module,
    measure: str,
    paper: Value,
    **known: Any,
) -> Row:
    """RMSE or mean absolute error in degrees, with limits by stretches of time; ``measure`` is a key of MEASURES."""
    missed = _misses(network, module).numpy()
    if measure == "RMSE":
        found = _by_stretches((missed**2)[:, None], lambda means: np.sqrt(means[..., 0]), seed=context.seed)
    else:
        found = _by_stretches(np.abs(missed)[:, None], lambda means: means[..., 0], seed=context.seed)
    row = row_of(where, network, what, "degrees", paper=paper, **known)
    return row.found(found, n=len(missed), seed=context.seed, scale=1.0)


def against_trivial(context: Context, network: Network) -> Iterator[Row]:
    """RMSE less that of each predictor that does not look at the frame; below 0 where the network is better."""
    assert network.targets is not None, network.listing.key
    wanted = network.targets.double()
    others: Mapping[str, Tensor] = {
        "always 0": wanted,
        "the mean of the training part": wanted - training_angle(),
    }
    missed = _misses(network, network.module)

    def less(means: Floats) -> Floats:
        return np.sqrt(means[..., 0]) - np.sqrt(means[..., 1])

    for words, other in others.items():
        found = _by_stretches(torch.stack([missed, other], 1).square().numpy(), less, seed=context.seed)
        known: dict[str, Any] = {
            "arm": words,
            "setting": "RMSE less that of a predictor that does not look; below 0 is better",
        }
        row = row_of("not in the paper", network, "RMSE less", "degrees", detail=True, **known)
        yield row.found(found, n=len(missed), seed=context.seed, scale=1.0)


def how_chosen() -> Table:
    """Settings that Comma could have been trained with, and their errors where no held-out frame takes part."""
    found = recorded()
    keys = ("epochs", "shift", "learning_rate", "rmse", "always_zero", "training_mean")
    rows = tuple(tuple(setting[key] for key in keys) for setting in found["settings"])
    return Table(
        "How Comma's training was chosen: RMSE in degrees on stretches of the first 80 % that a network had not seen",
        ("epochs", "shift, pixels", "learning rate", "RMSE", "always 0", "mean of the others"),
        rows,
        f"Each of {found['stretches']} contiguous stretches was predicted by a network trained on the others, those "
        f"within {found['gap_frames']} frames left out. The smallest error decides, for the network with hyperbolic "
        "tangents as well. An earlier choice between the first two was made on held-out frames, and is withdrawn; "
        f"benchmarks/steering_recipes.py, torch {found['torch']}, training data {found['data'][:16]}.",
        detail=True,
    )


def _misses(network: Network, module: nn.Module) -> Tensor:
    """Angles less the true ones in degrees, in the order of time: float64, shape ``(n,)``."""
    assert network.targets is not None, network.listing.key
    return (network.degrees(outputs(module, network.held_out)) - network.targets).double()


def _by_stretches(values: Floats, figure: Callable[[Floats], Floats], *, seed: int) -> Interval:
    return block_bootstrap(values, figure, block=min(STRETCH, len(values)), seed=seed)
