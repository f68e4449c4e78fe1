"""The networks of the Ranger paper by name: how to build them, what they take, which of their operators are struck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from hoplon.zoo.entries import ZooModel
from hoplon.zoo.seeding import seeded
from hoplon_studies.networks.ranger_classifiers import AlexNet, MnistLeNet, Vgg11, Vgg16
from hoplon_studies.networks.ranger_resnet import ResNet18, SqueezeNet
from hoplon_studies.networks.steering import Comma, Dave

_LAYERS = ("conv", "add", "relu", "max_pool", "cat")


@dataclass(frozen=True)
class Architecture:
    """One network of the paper's Table I.

    Attributes:
        title: its name in the paper.
        data: its data in the paper.
        build: makes it, untrained.
        shape: of one sample.
        kinds: operators that the paper's injector lists; None: all value sites.
        last: how many listed operators at the end are never struck: the last fully connected layer and what follows it.
        task: what the output means, as in :class:`ZooModel`.
    """

    title: str
    data: str
    build: Callable[[], nn.Module] = field(repr=False)
    shape: tuple[int, ...]
    kinds: tuple[str, ...] | None = None
    last: int = 2
    task: str = "classification"


ARCHITECTURES: dict[str, Architecture] = {
    "lenet": Architecture("LeNet", "MNIST", MnistLeNet, (1, 28, 28)),
    "alexnet": Architecture("AlexNet", "CIFAR-10", AlexNet, (3, 32, 32)),
    "vgg11": Architecture("VGG11", "GTSRB", Vgg11, (3, 32, 32)),
    "vgg16": Architecture("VGG16", "ImageNet", Vgg16, (3, 224, 224), kinds=(*_LAYERS, "matmul")),
    "resnet18": Architecture("ResNet-18", "ImageNet", ResNet18, (3, 224, 224), last=3),
    "squeezenet": Architecture("SqueezeNet", "ImageNet", SqueezeNet, (3, 224, 224), kinds=_LAYERS, last=0),
    "dave-radians": Architecture(
        "Dave", "Driving", partial(Dave, unit="radians"), (3, 66, 200), last=4, task="radians"
    ),
    "dave-degrees": Architecture("Dave (degrees)", "Driving", Dave, (3, 66, 200), task="degrees"),
    "comma": Architecture("Comma", "Driving", Comma, (3, 66, 200), task="degrees"),
}
"""The eight networks; Dave in its two forms."""


def untrained(name: str, *, seed: int = 0) -> ZooModel:
    """A network of the paper with random weights drawn from ``seed``; ``name`` is a key of ``ARCHITECTURES``."""
    architecture = ARCHITECTURES[name]
    with seeded(seed):
        net = architecture.build().eval()
    example = torch.rand(2, *architecture.shape, generator=torch.Generator().manual_seed(seed))
    return ZooModel(name=f"paper:{name}", module=net, example=example, task=architecture.task)
