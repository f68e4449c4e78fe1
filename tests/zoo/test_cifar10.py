from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hoplon.errors import DataError, HoplonError
from hoplon.zoo import CifarResNet, data, model
from hoplon.zoo.networks.cifar_resnet import ResidualBlock


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018)])
def test_parameter_count_of_the_published_networks(depth, count):
    assert sum(parameter.numel() for parameter in CifarResNet(depth).parameters()) == count


def test_convolutions_are_depth_less_one():
    kinds = [type(module) for module in CifarResNet(20).modules()]
    assert kinds.count(torch.nn.Conv2d) == 19
    assert kinds.count(torch.nn.Linear) == 1


@pytest.mark.parametrize("depth", [2, 19, 21, 0, -4])
def test_impossible_depth_is_refused(depth):
    with pytest.raises(HoplonError, match=rf"expected a depth of 6 k \+ 2 layers .*, got {depth}"):
        CifarResNet(depth)


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    block = ResidualBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
    x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    wanted = np.zeros((2, 8, 3, 3), dtype=np.float32)
    for n, channel, row, column in np.ndindex(2, 4, 3, 3):
        wanted[n, 2 + channel, row, column] = x[n, channel, 2 * row, 2 * column]
    np.testing.assert_array_equal(block(x).detach().numpy(), wanted)


def test_batch_norm_and_both_convolutions_reach_the_output():
    block = ResidualBlock(4, 4).eval()
    x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    before = block(x)
    for name, parameter in block.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.mul_(2).add_(0.5)
            assert not torch.equal(block(x), before), name
            parameter.copy_(kept)


def test_missing_weights_say_what_to_set(monkeypatch):
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    with pytest.raises(DataError, match=r"expected cifar10-resnet20\.pt in HOPLON_DATA, which is not set; set"):
        model("resnet20-cifar10")


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    torch.save(CifarResNet(8).state_dict(), tmp_path / "cifar10-resnet20.pt")
    monkeypatch.setenv("HOPLON_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"expected the weights of a CIFAR ResNet-20 in .*, got 72 .* such as layer1\.1\.bn1\.bias"
    ):
        model("resnet20-cifar10")


def _write_images(folder: Path, x: np.ndarray) -> None:
    for name in ("cifar10-train20.npz", "cifar10-test.npz"):
        np.savez(folder / name, x=x, y=np.arange(len(x)), classes=np.array(["airplane", "automobile"]))


def test_images_are_normalised_and_channel_first(monkeypatch, tmp_path):
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    images[1, 5, 7] = (255, 51, 102)
    _write_images(tmp_path, images)
    monkeypatch.setenv("HOPLON_DATA", str(tmp_path))
    loaded = data("cifar10")
    assert loaded.classes == ("airplane", "automobile")
    for part in (loaded.calibration, loaded.held_out):
        assert part.x.shape == (2, 3, 32, 32)
        assert part.x.dtype == torch.float32
        wanted = [(1.0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.4 - 0.406) / 0.225]
        torch.testing.assert_close(part.x[1, :, 5, 7], torch.tensor(wanted))
        torch.testing.assert_close(part.x[0, :, 5, 7], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
        assert part.y.tolist() == [0, 1]


@pytest.mark.parametrize("x", [np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 3, 32, 32), np.uint8)])
def test_images_of_another_form_are_refused(monkeypatch, tmp_path, x):
    _write_images(tmp_path, x)
    monkeypatch.setenv("HOPLON_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"expected torch\.uint8 images of shape \(n, 32, 32, 3\) in cifar10-train20"):
        data("cifar10")


@pytest.mark.parametrize("depth", [20, 56])
def test_pretrained_weights_load_strictly(monkeypatch, hoplon_data, depth):
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    before = torch.random.get_rng_state()
    entry = model(f"resnet{depth}-cifar10")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert entry.example.shape == (4, 3, 32, 32)
    assert not entry.module.training
    stored = torch.load(hoplon_data / f"cifar10-resnet{depth}.pt", weights_only=True)
    loaded = entry.module.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_resnet20_classifies_as_well_as_the_data_folder_says(monkeypatch, hoplon_data):
    """81.03 % on all 10,000 images; a fair sample of 500 lies within 4 standard errors (7 points), false alarm 6e-5."""
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    net, images = model("resnet20-cifar10").module, data("cifar10")
    assert (len(images.calibration), len(images.held_out), len(images.classes)) == (10_000, 10_000, 10)
    x, y = images.held_out.x[:500], images.held_out.y[:500]
    with torch.no_grad():
        accuracy = (net(x).argmax(1) == y).double().mean().item()
    assert accuracy == pytest.approx(0.8103, abs=0.07)
