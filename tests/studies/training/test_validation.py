from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hoplon.errors import HoplonError
from hoplon.zoo.datasets._driving import Frames
from hoplon_studies.training import validation
from hoplon_studies.training.recipes import RECIPES, Recipe
from hoplon_studies.training.validation import recorded, stretches, validate, variants


class Constant(nn.Module):
    """Says what it was given last."""

    def __init__(self, angle: float = 0.0) -> None:
        super().__init__()
        self.angle = nn.Parameter(torch.tensor(angle))

    def forward(self, x: Tensor) -> Tensor:
        return self.angle.expand(len(x), 1)


RECIPE = Recipe("constant", Constant, "driving", epochs=1, learning_rate=0.1, task="degrees")


def drive(count: int = 200) -> Frames:
    pixels = torch.zeros(count + 50, 3, 2, 2, dtype=torch.uint8)
    degrees = torch.cat([torch.full((count // 2,), -4.0), torch.full((count // 2,), 2.0), torch.full((50,), 1e9)])
    return Frames(pixels, degrees, count)


def test_stretches_hold_every_frame_once_and_others_keep_their_distance() -> None:
    found = list(stretches(1000, 4))
    assert [(part.start, part.stop) for part, _ in found] == [(0, 250), (250, 500), (500, 750), (750, 1000)]
    for part, others in found:
        assert others.min() == 0 or part.start == 0
        near = (others >= part.start - validation.GAP) & (others < part.stop + validation.GAP)
        assert not near.any()
    assert len(found[1][1]) == 1000 - 250 - 2 * validation.GAP


def test_every_frame_meets_a_network_that_never_saw_it() -> None:
    seen: list[Tensor] = []

    def train(recipe: Recipe, x: Tensor, degrees: Tensor, *, progress: object) -> nn.Module:
        seen.append(degrees)
        return Constant(float(degrees.mean())).eval()

    found = validate(RECIPE, drive(), folds=2, fit=train)
    assert [set(degrees.tolist()) for degrees in seen] == [{2.0}, {-4.0}]  # never the held-out 1e9
    assert found.rmse == pytest.approx(6)
    assert found.training_mean == pytest.approx(6)
    assert found.always_zero == pytest.approx(10**0.5)
    inside = validate(replace(RECIPE, task="radians"), drive(), folds=2, fit=train)
    assert inside.rmse > 100


def test_what_cannot_be_validated_is_refused() -> None:
    with pytest.raises(HoplonError, match="expected at least 71 frames for each of 2 or more stretches, got 200 for 5"):
        validate(RECIPE, drive(), folds=5)
    with pytest.raises(HoplonError, match="expected a recipe for steering, got constant"):
        validate(replace(RECIPE, task="classification"), drive(), folds=2)


def test_commas_recipe_holds_the_setting_of_the_smallest_error() -> None:
    settings = recorded()["settings"]
    compared = [(one["epochs"], one["shift"], one["learning_rate"]) for one in settings]
    assert compared == [(one.epochs, one.shift, one.learning_rate) for one in variants(RECIPES["comma-driving"])]
    best = min(settings, key=lambda one: float(one["rmse"]))
    recipe = RECIPES["comma-driving"]
    assert (recipe.epochs, recipe.shift, recipe.learning_rate) == (best["epochs"], best["shift"], best["learning_rate"])
    assert best["rmse"] < min(best["always_zero"], best["training_mean"])
