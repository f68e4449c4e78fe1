"""Networks trained by a recipe, from the cache where they are there, otherwise trained now."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonWarning, no_match
from hoplon.files import write_json
from hoplon.formats.digest import content_digest
from hoplon.zoo.cache import cache_folder, load_tensors, save_tensors
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.seeding import Progress, seeded
from hoplon_studies.training.checkpoints import Diary
from hoplon_studies.training.recipes import RECIPES, Recipe, as_taken, set_aside, train, training_set

_DATA = "data"  # the note of a file that holds the digest of what it was trained on
_Made = Callable[[str], tuple[Tensor, Tensor]]
_DIGESTS: dict[tuple[str, str | None, _Made], str] = {}


def weights_path(recipe: Recipe, *, folder: Path | None = None) -> Path:
    """Path of the weights of a recipe, whether they are there yet or not."""
    return (folder or cache_folder()) / "weights" / f"{recipe.name}-{recipe.digest()}.safetensors"


def trained(name: str, *, folder: Path | None = None, make: bool = True, progress: Progress | None = None) -> ZooModel:
    """A trained network of the zoo by the name of its recipe.

    The file of the weights is named after the recipe, and notes a digest of the images and targets they were trained
    on. Where that data is in ``HOPLON_DATA`` and is not what is noted, the weights are refused. The version of torch,
    which decides the initial weights too, is noted and not compared: weights stay what they are under another one.

    Args:
        folder: of the weights; the user's cache folder by default (:func:`cache_folder`).
        make: train where there are no weights yet, which takes minutes; otherwise refuse.
        progress: told after every epoch of a training.
    Raises:
        HoplonError: no recipe has this name.
        DataError: no weights and ``make=False``; weights that do not fit or were trained on other data; or data to
            train with is missing.
    Warns:
        HoplonWarning: the file does not note what it was trained on.
    """
    if name not in RECIPES:
        raise no_match("recipe", name, tuple(RECIPES))
    recipe = RECIPES[name]
    path = weights_path(recipe, folder=folder)
    with seeded(recipe.seed):
        net = recipe.build()
    if path.is_file():
        tensors, notes = load_tensors(path)
        _check_data(recipe, path, notes)
        try:
            net.load_state_dict(tensors)
        except RuntimeError as error:
            raise DataError(f"expected the weights of {name} in {path}; remove the file: {error}") from None
    elif not make:
        raise DataError(f"expected the trained weights {path}, which does not exist; train them with make=True")
    else:
        net = _train_now(recipe, path, progress)
    generator = torch.Generator().manual_seed(0)
    if recipe.task == "tokens":
        tokens = next(part.num_embeddings for part in net.modules() if isinstance(part, nn.Embedding))
        example = torch.randint(tokens, (4, *recipe.shape), generator=generator)
    else:
        example = torch.rand(4, *recipe.shape, generator=generator)
    return ZooModel(name=name, module=net.eval(), example=example, task=recipe.task)


def _train_now(recipe: Recipe, path: Path, progress: Progress | None) -> nn.Module:
    """A network trained now, or on from where an earlier training was stopped; its weights and manifest are kept."""
    x, targets = training_set(recipe.data)
    trained_on = _DIGESTS[_place(recipe.data)] = content_digest([x, targets])
    aside = set_aside(recipe, len(x))
    shown = (as_taken(recipe, x[aside]), targets[aside]) if recipe.aside else None
    diary = Diary(path.with_suffix(".training.safetensors"), trained_on, shown)
    net = train(recipe, x[~aside], targets[~aside], progress=progress, diary=diary)
    manifest = {
        "recipe": recipe.said(),
        "digest": recipe.digest(),
        _DATA: trained_on,
        "weights": content_digest(dict(net.state_dict())),
        "torch": torch.__version__,
        "samples": {"trained on": int((~aside).sum()), "set aside": int(aside.sum())},
        "curve": [asdict(epoch) for epoch in diary.curve],
    }
    write_json(path.with_suffix(".json"), manifest)  # first, so that no weights are without
    notes = {"recipe": json.dumps(repr(recipe)), "torch": torch.__version__, _DATA: trained_on}
    save_tensors(path, net.state_dict(), notes)
    diary.end()
    return net


def _check_data(recipe: Recipe, path: Path, notes: Mapping[str, str]) -> None:
    """Refuse weights that were trained on other data than a training would meet now."""
    try:
        now = _data_digest(recipe.data)
    except DataError:
        return  # without the data there is nothing to compare, and nothing to train with
    if _DATA not in notes:
        message = f"{path} does not note what it was trained on; remove the file to train again"
        warnings.warn(message, HoplonWarning, stacklevel=3)
    elif notes[_DATA] != now:
        raise DataError(
            f"expected weights of {recipe.name} trained on the {recipe.data} data in HOPLON_DATA, got those of other "
            f"data in {path}; remove the file to train again"
        )


def _data_digest(data: str) -> str:
    """Digest of the images and targets that recipes on this data train with; computed once in a process."""
    place = _place(data)
    if place not in _DIGESTS:
        _DIGESTS[place] = content_digest([*training_set(data)])
    return _DIGESTS[place]


def _place(data: str) -> tuple[str, str | None, _Made]:
    return data, os.environ.get("HOPLON_DATA"), training_set
