"""Recipes of trained networks: data, length, step sizes; the digest of a recipe names its weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import DataError
from hoplon.zoo.datasets._cifar10 import cifar10
from hoplon.zoo.datasets._driving import frames
from hoplon.zoo.datasets._mnist import mnist
from hoplon.zoo.seeding import Progress, one_thread, seeded
from hoplon_studies.networks.ranger_classifiers import AlexNet, MnistLeNet, Vgg11, Vgg16
from hoplon_studies.networks.ranger_resnet import ResNet18, SqueezeNet
from hoplon_studies.networks.steering import Comma, Dave

_PROCEDURE = 1  # goes up when `train` changes what the same recipe gives


@dataclass(frozen=True)
class Recipe:
    """One network, trained the same way every time.

    Attributes:
        name: of the trained network in the zoo.
        build: makes the network, untrained.
        data: of the zoo; it is trained on the calibration part, on driving frames on all of the first 80 %.
        task: ``"classification"``: cross-entropy; ``"degrees"``, ``"radians"``: squared error in degrees.
        epochs: passes over the training data.
        learning_rate: the highest; it rises over the first tenth of the steps and falls to nothing by half a cosine.
        batch_size: samples per step.
        weight_decay: of AdamW.
        mirror: show every image mirrored half of the time, a steering angle then with the other sign.
        shift: move images by up to so many pixels along both axes.
        smoothing: of the labels.
        seed: of the weights, the order and the changes.
    """

    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    data: str
    epochs: int
    learning_rate: float
    task: str = "classification"
    batch_size: int = 64
    weight_decay: float = 0.01
    mirror: bool = False
    shift: int = 0
    smoothing: float = 0.0
    seed: int = 0

    def digest(self) -> str:
        """Digest, 16 hexadecimal digits, of all that decides the weights but torch and the content of the data."""
        with torch.device("meta"):
            net = self.build()
        shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
        said = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "build"}
        text = json.dumps([_PROCEDURE, str(net), shapes, said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def train(recipe: Recipe, x: Tensor, targets: Tensor, *, progress: Progress | None = None) -> nn.Module:
    """A network trained from scratch, in eval mode.

    Training runs on one thread, so that the number of cores changes no weight.

    Args:
        x: images, uint8 (they are divided by 255, a batch at a time) or float32, shape ``(n, channels, h, w)``.
        targets: int64 labels or float32 angles in degrees, shape ``(n,)``.
        progress: told after every epoch: epochs done, all epochs, mean loss.
    Raises:
        DataError: the loss is no longer finite.
    Source:
        I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    with seeded(recipe.seed), one_thread(), torch.enable_grad():
        net = recipe.build().train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        steps = recipe.epochs * math.ceil(len(x) / recipe.batch_size)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.1)
        for epoch in range(recipe.epochs):
            total = 0.0
            for rows in torch.randperm(len(x), generator=generator).split(recipe.batch_size):
                images, wanted = _changed(recipe, x[rows], targets[rows], generator)
                loss = _loss(recipe, net(images), wanted)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                optimiser.step()
                plan.step()
                total += loss.item() * len(rows)
            if not math.isfinite(total):
                raise DataError(f"expected a finite loss in epoch {epoch + 1} of {recipe.name}, got {total}")
            if progress is not None:
                progress(epoch + 1, recipe.epochs, total / len(x))
        optimiser.zero_grad()
    return net.eval()


def _changed(recipe: Recipe, x: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, moved and mirrored as the recipe says."""
    x = x.float().div_(255) if x.dtype == torch.uint8 else x
    if recipe.mirror:
        turned = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(turned.view(-1, 1, 1, 1), x.flip(3), x)
        targets = torch.where(turned, -targets, targets) if recipe.task != "classification" else targets
    if recipe.shift:
        height, width = x.shape[2:]
        padded = F.pad(x, [recipe.shift] * 4)
        corners = torch.randint(2 * recipe.shift + 1, (len(x), 2), generator=generator).tolist()
        x = torch.stack(
            [image[:, i : i + height, j : j + width] for image, (i, j) in zip(padded, corners, strict=True)]
        )
    return x, targets


def _loss(recipe: Recipe, outputs: Tensor, targets: Tensor) -> Tensor:
    if recipe.task == "classification":
        return F.cross_entropy(outputs, targets, label_smoothing=recipe.smoothing)
    degrees = outputs.squeeze(1) * (180 / math.pi if recipe.task == "radians" else 1.0)
    return F.mse_loss(degrees, targets)


def training_set(data: str) -> tuple[Tensor, Tensor]:
    """Images and targets that recipes name.

    Raises:
        DataError: the files are not in ``HOPLON_DATA``.
    """
    if data == "driving":
        drive = frames()
        return drive.pixels[: drive.border], drive.degrees[: drive.border]
    made = mnist() if data == "mnist" else cifar10(plain=data == "cifar10-plain")
    assert made.calibration.y is not None, data
    return made.calibration.tensors[0], made.calibration.y


_CIFAR = partial(Recipe, data="cifar10", mirror=True, shift=3, epochs=20, learning_rate=1e-3)
_ANGLE = partial(Recipe, data="driving", task="degrees", mirror=True, epochs=16, learning_rate=5e-4)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("lenet-mnist", MnistLeNet, "mnist", epochs=8, learning_rate=1e-3),
        Recipe("lenet-mnist-quick", MnistLeNet, "mnist", epochs=1, learning_rate=1e-3),
        Recipe("lenet-mnist-tanh", partial(MnistLeNet, activation="tanh"), "mnist", epochs=8, learning_rate=5e-4),
        _CIFAR("alexnet-cifar10", AlexNet, epochs=8),
        _CIFAR("alexnet-cifar10-tanh", partial(AlexNet, activation="tanh"), epochs=8, learning_rate=5e-4),
        _CIFAR("vgg11-cifar10", partial(Vgg11, classes=10)),
        _CIFAR("vgg11-cifar10-tanh", partial(Vgg11, classes=10, activation="tanh"), epochs=8, learning_rate=5e-4),
        _CIFAR(
            "vgg16-half-cifar10",
            partial(Vgg16, classes=10, pixels=32, width=0.5),
            data="cifar10-plain",
            epochs=8,
            learning_rate=2e-4,
        ),
        _CIFAR("resnet18-cifar10", partial(ResNet18, classes=10), epochs=8),
        _CIFAR("squeezenet-cifar10", partial(SqueezeNet, classes=10)),
        _ANGLE("dave-degrees", Dave),
        _ANGLE("dave-radians", partial(Dave, unit="radians"), task="radians", learning_rate=1e-4),
        _ANGLE(
            "dave-radians-tanh", partial(Dave, unit="radians", activation="tanh"), task="radians", learning_rate=1e-4
        ),
        _ANGLE("comma-driving", Comma, epochs=12, shift=8, learning_rate=2e-4),
        _ANGLE("comma-driving-tanh", partial(Comma, tanh=True), epochs=12, shift=8, learning_rate=2e-4),
    )
}
"""Recipes by the name of what they train. Those on CIFAR-10 stand in for data that no file here holds.

How long Comma is trained and with which steps was chosen on stretches of the training part: ``validation``.
"""
