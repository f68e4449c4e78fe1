"""Errors of steering networks in degrees, and whether they are below those of predictors that do not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hoplon.stats.bootstrap import block_bootstrap
from hoplon.stats.intervals import Floats, Interval
from hoplon_studies.framework.findings import Table
from hoplon_studies.framework.rows import Row, Value
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Network, outputs
from hoplon_studies.ranger.runs import row_of
from hoplon_studies.training.validation import recorded
from hoplon_studies.training.wheel import FRAMES_PER_TRACK, NAME as RACING

MEASURES = {"RMSE": "rmse", "mean deviation": "deviation"}
"""Errors of angles, and what they are called in keys of published values."""

STRETCH = 70  # frames: 5 seconds; squared errors of frames that are 3 seconds apart no longer depend on each other
LESS, MORE = "RMSE less", "RMSE more"
TRACKS = (
    "Limits of errors in degrees come from resampled held-out tracks (bootstrap), all frames of a track together, the "
    "same tracks for all that is compared."
)
STRETCHES = (
    f"Frames of one drive depend on their neighbours: limits of errors come from resampled stretches of {STRETCH} "
    "frames, 5 seconds (block bootstrap); there are few, and few turns in them, so the limits are wide and still "
    "somewhat too narrow for another drive."
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
    """RMSE or mean absolute error in degrees, with limits by tracks or stretches; ``measure``: a key of MEASURES."""
    missed = _misses(network, module).numpy()
    if measure == "RMSE":
        found = _limits(context, network, (missed**2)[:, None], lambda means: np.sqrt(means[..., 0]))
    else:
        found = _limits(context, network, np.abs(missed)[:, None], lambda means: means[..., 0])
    row = row_of(where, network, what, "degrees", paper=paper, **known)
    return row.found(found, n=len(missed), seed=context.seed, scale=1.0)


def against_trivial(context: Context, network: Network, where: str = "not in the paper") -> Iterator[Row]:
    """RMSE less that of each predictor that does not look at the frame; below 0 where the network is better."""
    assert network.targets is not None, network.listing.key
    wanted = network.targets.double()
    others: Mapping[str, Tensor] = {
        "always 0": wanted,
        "the mean of the training part": wanted - network.training_mean,
    }
    missed = _misses(network, network.module)
    for words, other in others.items():
        found = _rmse_less(context, network, missed, other)
        known: dict[str, Any] = {
            "arm": words,
            "setting": "RMSE less that of a predictor that does not look; below 0 is better",
        }
        row = row_of(where, network, LESS, "degrees", detail=True, **known)
        yield row.found(found, n=len(missed), seed=context.seed, scale=1.0)


def error_more(
    context: Context, where: str, network: Network, before: nn.Module, after: nn.Module, **known: Any
) -> Row:
    """RMSE of ``after`` less that of ``before``, on the same frames; above 0 where it is worse."""
    missed = [_misses(network, module) for module in (after, before)]
    row = row_of(where, network, MORE, "degrees", detail=True, **known)
    return row.found(_rmse_less(context, network, *missed), n=len(missed[0]), seed=context.seed, scale=1.0)


def _rmse_less(context: Context, network: Network, missed: Tensor, other: Tensor) -> Interval:
    """Root mean square of the first errors less that of the second, the same tracks or stretches for both."""

    def less(means: Floats) -> Floats:
        return np.sqrt(means[..., 0]) - np.sqrt(means[..., 1])

    return _limits(context, network, torch.stack([missed, other], 1).square().numpy(), less)


def told_of_steering(found: Sequence[tuple[Network, Sequence[Row]]]) -> Iterator[str]:
    """Which networks steer: whose RMSE is below those of predictors that do not look, limits and all; in words.

    Args:
        found: networks on the same frames, each with its rows of :func:`against_trivial` among others.
    """
    if not found:
        return
    trivial, data = found[0][0].trivial, found[0][0].listing.data_label
    by_network = {
        network.listing.label: [row.high for row in rows if row.what == LESS and row.high is not None]
        for network, rows in found
    }
    able = [label for label, ends in by_network.items() if max(ends) < 0]
    others = [label for label in by_network if label not in able]
    told = [f"Below both, limits and all: {', '.join(able)}."] * bool(able)
    told += [f"Not told from them, so that it cannot be said to steer: {', '.join(others)}."] * bool(others)
    yield (
        f"On the held-out {data}, always 0 has an RMSE of {trivial.always_zero:.2f} degrees and the mean of the "
        f"training part one of {trivial.training_mean:.2f}. {' '.join(told)}"
    )


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
    """Angles less the true ones in degrees, in the order of the frames: float64, shape ``(n,)``."""
    assert network.targets is not None, network.listing.key
    return (network.degrees(outputs(module, network.held_out)) - network.targets).double()


def _limits(context: Context, network: Network, values: Floats, figure: Callable[[Floats], Floats]) -> Interval:
    """A figure of means of values ``(frames, k)``, with limits from resampled tracks, or stretches of time."""
    if network.listing.data == RACING:
        by_track = values.reshape(-1, FRAMES_PER_TRACK, values.shape[1]).mean(1)
        return block_bootstrap(by_track, figure, block=1, seed=context.seed)
    return block_bootstrap(values, figure, block=min(STRETCH, len(values)), seed=context.seed)
