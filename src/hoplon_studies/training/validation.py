"""Cross-validation of recipes for steering over stretches of the training part; held-out frames take no part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from hoplon.errors import HoplonError
from hoplon.files import json_as
from hoplon.zoo.datasets._driving import Frames
from hoplon.zoo.seeding import Progress
from hoplon_studies.training.recipes import Recipe, train

FOLDS = 5
RECORD = "validated.json"
GAP = 70  # frames beside a stretch that are not trained on: 5 seconds


@dataclass(frozen=True)
class Validation:
    """Root mean square errors in degrees over the whole training part, each frame met by a network that never saw it.

    Attributes:
        epochs, shift, learning_rate: of the recipe.
        rmse: of the networks.
        always_zero, training_mean: of the predictors that do not look, on the same frames.
    """

    epochs: int
    shift: int
    learning_rate: float
    rmse: float
    always_zero: float
    training_mean: float


def validate(
    recipe: Recipe,
    drive: Frames,
    *,
    folds: int = FOLDS,
    progress: Progress | None = None,
    fit: Callable[..., nn.Module] = train,
) -> Validation:
    """The training part cut into contiguous stretches, each predicted by a network that trained on the others.

    Frames within five seconds of a stretch are left out of its training, since neighbouring frames are nearly equal.
    Frames from ``drive.border`` on take no part.

    Args:
        progress: told after every epoch of every training.
        fit: gives a network trained by the recipe; arguments as those of :func:`train`.
    Raises:
        HoplonError: a recipe that is not for steering, or too few frames for the stretches.
    Source:
        M. Stone, "Cross-validatory choice and assessment of statistical predictions", Journal of the Royal Statistical
        Society B 36, 1974; blocks as for dependent data: D. R. Roberts et al., Ecography 40, 2017.
    """
    if recipe.task == "classification":
        raise HoplonError(f"expected a recipe for steering, got {recipe.name}")
    angles, means = torch.empty(drive.border), torch.empty(drive.border)
    for stretch, others in stretches(drive.border, folds):
        net = fit(recipe, drive.pixels[others], drive.degrees[others], progress=progress)
        with torch.inference_mode():
            parts = drive.pixels[stretch].split(100)
            angles[stretch] = torch.cat([net(part.float().div_(255))[:, 0] for part in parts])
        means[stretch] = drive.degrees[others].mean()
    angles *= 180 / math.pi if recipe.task == "radians" else 1.0
    wanted = drive.degrees[: drive.border]
    errors = [rmse(found, wanted) for found in (angles, torch.zeros(drive.border), means)]
    return Validation(recipe.epochs, recipe.shift, recipe.learning_rate, *errors)


def stretches(count: int, folds: int) -> Iterator[tuple[slice, Tensor]]:
    """Contiguous parts of ``range(count)``, each with the places that are not in it nor within ``GAP`` of it.

    Raises:
        HoplonError: too few places.
    """
    if count < folds * (GAP + 1) or folds < 2:
        raise HoplonError(
            f"expected at least {GAP + 1} frames for each of 2 or more stretches, got {count} for {folds}"
        )
    places = torch.arange(count)
    for number in range(folds):
        start, end = number * count // folds, (number + 1) * count // folds
        yield slice(start, end), places[(places < start - GAP) | (places >= end + GAP)]


def variants(recipe: Recipe) -> tuple[Recipe, ...]:
    """The settings that were compared for Comma: length, moved images, steps; the first is what Dave trains with."""
    settings = ((16, 0, 5e-4), (12, 8, 5e-4), (12, 8, 2e-4))
    return tuple(replace(recipe, epochs=epochs, shift=shift, learning_rate=rate) for epochs, shift, rate in settings)


def recorded() -> dict[str, Any]:
    """The stored record of the choice of Comma's setting, made by ``benchmarks/steering_recipes.py``."""
    found: dict[str, Any] = json_as(dict[str, Any], (files("hoplon_studies.training") / RECORD).read_bytes())
    return found


def rmse(angles: Tensor, targets: Tensor) -> float:
    """Root mean square error."""
    return math.sqrt((angles.double() - targets.double()).square().mean())
