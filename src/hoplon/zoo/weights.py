"""Networks trained by a recipe, from the cache where they are there, otherwise trained now."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hoplon.errors import DataError, no_match
from hoplon.zoo.cache import cache_folder, load_tensors, save_tensors
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.recipes import RECIPES, Recipe, train, training_set
from hoplon.zoo.training import Progress, seeded


def weights_path(recipe: Recipe, *, folder: Path | None = None) -> Path:
    """Where the weights of a recipe are kept, whether they are there yet or not."""
    return (folder or cache_folder()) / "weights" / f"{recipe.name}-{recipe.digest()}.safetensors"


def trained(name: str, *, folder: Path | None = None, make: bool = True, progress: Progress | None = None) -> ZooModel:
    """A trained network of the zoo by the name of its recipe.

    Args:
        folder: of the weights; the user's cache folder by default (:func:`cache_folder`).
        make: train where there are no weights yet, which takes minutes; otherwise refuse.
        progress: told after every epoch of a training.
    Raises:
        HoplonError: no recipe has this name.
        DataError: no weights and ``make=False``; weights that do not fit; or data to train with is missing.
    """
    if name not in RECIPES:
        raise no_match("recipe", name, tuple(RECIPES))
    recipe = RECIPES[name]
    path = weights_path(recipe, folder=folder)
    with seeded(recipe.seed):
        net = recipe.build()
    if path.is_file():
        tensors, _ = load_tensors(path)
        try:
            net.load_state_dict(tensors)
        except RuntimeError as error:
            raise DataError(f"expected the weights of {name} in {path}; remove the file: {error}") from None
    elif not make:
        raise DataError(f"expected the trained weights {path}, which does not exist; train them with make=True")
    else:
        x, targets = training_set(recipe.data)
        net = train(recipe, x, targets, progress=progress)
        notes = {"recipe": json.dumps(repr(recipe)), "torch": torch.__version__}
        save_tensors(path, net.state_dict(), notes)
    shape = {"mnist": (1, 28, 28), "driving": (3, 66, 200)}.get(recipe.data, (3, 32, 32))
    example = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    return ZooModel(name=name, module=net.eval(), example=example, task=recipe.task)
