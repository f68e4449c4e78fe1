from __future__ import annotations

import sys

import pytest
import torch

from hoplon import zoo
from hoplon.errors import DataError, HoplonError
from hoplon.zoo.cache import save_tensors
from hoplon.zoo.seeding import seeded
from hoplon_studies.networks.efficientnet import LITE0
from hoplon_studies.training.recipes import RECIPES
from hoplon_studies.training.weights import weights_path


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(HoplonError, match=r"no zoo model matches 'resnet-20-cifar10'; near names: resnet20-cifar10,"):
        zoo.model("resnet-20-cifar10")
    with pytest.raises(HoplonError, match=r"no zoo data matches 'cifar'; near names: cifar10"):
        zoo.data("cifar")


def test_every_listed_name_is_known(monkeypatch, hoplon_data):
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    for name in set(zoo.model_names()) - set(RECIPES) - {"paper:vgg16", LITE0}:
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


def test_models_of_another_package_are_listed_once_it_is_installed(monkeypatch, tmp_path):
    (tmp_path / "others.py").write_text(
        "import torch\n"
        "from hoplon.zoo import ZooModel\n"
        "def names(): return ('wide', 'lenet-digits')\n"
        "def model(name, *, seed, progress):\n"
        "    return ZooModel(f'{name}, seed {seed}', torch.nn.ReLU(), torch.zeros(2, 1))\n"
        "def data_names(): return ('tall', 'digits')\n"
        "def data(name):\n"
        "    return name\n"
    )
    metadata = tmp_path / "others-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[hoplon.models]\nothers = others\n")
    assert "wide" not in zoo.model_names()
    monkeypatch.syspath_prepend(tmp_path)
    assert "wide" in zoo.model_names()
    assert zoo.model_names().count("lenet-digits") == 1
    assert zoo.model("wide", seed=3).name == "wide, seed 3"
    assert zoo.model("lenet-digits").name == "lenet-digits"  # what comes with hoplon needs no package
    assert zoo.data_names().count("digits") == 1
    assert zoo.data("tall") == "tall"
    assert zoo.data("digits").name == "digits"
    monkeypatch.delattr("others.data_names")  # models alone will do
    assert "tall" not in zoo.data_names()


def test_another_seed_of_lenet_needs_a_package_that_trains_it(monkeypatch):
    monkeypatch.setattr(sys, "path", [])  # no package is installed
    with pytest.raises(HoplonError, match="expected seed 0 for lenet-digits, .* got 5; install hoplon_studies"):
        zoo.model("lenet-digits", seed=5)
    assert "lenet-mnist" not in zoo.model_names()
