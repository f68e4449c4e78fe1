from __future__ import annotations

import pytest
import torch

from hoplon import zoo
from hoplon.errors import DataError, HoplonError
from hoplon.zoo.cache import save_tensors
from hoplon_studies.training.classifier import seeded
from hoplon_studies.training.recipes import RECIPES
from hoplon_studies.training.weights import weights_path


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(HoplonError, match=r"no zoo model matches 'resnet-20-cifar10'; near names: resnet20-cifar10,"):
        zoo.model("resnet-20-cifar10")
    with pytest.raises(HoplonError, match=r"no zoo data matches 'cifar'; near names: cifar10"):
        zoo.data("cifar")


def test_every_listed_name_is_known(monkeypatch, hoplon_data):
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    for name in set(zoo.model_names()) - set(RECIPES) - {"paper:vgg16"}:
        entry = zoo.model(name)
        assert entry.name == name
        assert len(entry.example) >= 2
    for name in ("digits", "mnist", "cifar10", "cifar10-plain"):
        assert zoo.data(name).name == name


def test_networks_of_a_recipe_come_from_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path))
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    recipe = RECIPES["lenet-mnist"]
    with pytest.raises(DataError, match="expected mnist-10k.npz in HOPLON_DATA, which is not set"):
        zoo.model("lenet-mnist")
    with seeded(5):
        kept = recipe.build()
    save_tensors(weights_path(recipe), kept.state_dict(), {})
    found = zoo.model("lenet-mnist")
    assert torch.equal(found.module.conv1.weight, kept.conv1.weight)
    assert found.example.shape == (4, 1, 28, 28)
