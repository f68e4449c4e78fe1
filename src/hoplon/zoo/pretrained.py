"""Networks that come with weights: LeNet's are in this package, those of the CIFAR ResNets in ``HOPLON_DATA``."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from hoplon.errors import DataError
from hoplon.zoo.datasets._digits import digits
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.files import data_file, read_state_dict
from hoplon.zoo.networks.cifar_resnet import CifarResNet
from hoplon.zoo.networks.lenet_digits import LeNet
from hoplon.zoo.seeding import seeded

_WEIGHTS = Path(__file__).parent / "weights" / "lenet-digits.safetensors"


def lenet_digits() -> ZooModel:
    """LeNet with the weights that come with hoplon: 40 epochs on the training split of the digits, seed 0."""
    with seeded(0):  # only so that the weights soon replaced draw nothing from the caller's random state
        net = LeNet()
    net.load_state_dict(load_file(_WEIGHTS))
    return ZooModel(name="lenet-digits", module=net.eval(), example=digits().calibration.tensors[0][:4].clone())


def resnet_cifar10(depth: int) -> ZooModel:
    """The CIFAR ResNet of 20 or 56 layers with pretrained weights from ``cifar10-resnet{depth}.pt``.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing, or the file holds the weights of another network.
    """
    path = data_file(f"cifar10-resnet{depth}.pt")
    stored = read_state_dict(path)
    with seeded(0):  # as above
        net = CifarResNet(depth)
    expected = {name: value.shape for name, value in net.state_dict().items()}
    shapes = {name: value.shape for name, value in stored.items()}
    unlike = sorted(name for name in expected | shapes if expected.get(name) != shapes.get(name))
    if unlike:
        raise DataError(
            f"expected the weights of a CIFAR ResNet-{depth} in {path}, got {len(unlike)} tensors that are missing, "
            f"left over or of another shape, such as {unlike[0]}"
        )
    net.load_state_dict(stored)
    example = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return ZooModel(name=f"resnet{depth}-cifar10", module=net.eval(), example=example)
