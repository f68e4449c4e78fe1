"""Recipes of trained networks: data, length, step sizes; the digest of a recipe names its weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.campaign.executors import torch_threads
from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.datasets._cifar10 import all_training_images, cifar10, resized
from hoplon.zoo.datasets._driving import frames
from hoplon.zoo.datasets._mnist import mnist
from hoplon.zoo.datasets._shakespeare import WINDOW, shakespeare
from hoplon.zoo.datasets._signs import signs, tracks
from hoplon.zoo.seeding import Progress, seeded
from hoplon_studies.networks.aspis_networks import inception_v3, resnet50, vgg19
from hoplon_studies.networks.decoder import Decoder
from hoplon_studies.networks.ranger_classifiers import AlexNet, MnistLeNet, Vgg11, Vgg16
from hoplon_studies.networks.ranger_resnet import ResNet18, SqueezeNet
from hoplon_studies.networks.steering import Comma, Dave
from hoplon_studies.training.checkpoints import Diary, Run
from hoplon_studies.training.wheel import NAME as RACING, wheel_frames

ALL = "cifar10-all"
"""Name of the data of recipes that train on all 50,000 images of CIFAR-10 but those set aside."""

_PROCEDURE = 1  # goes up when `train` changes what the same recipe gives


def _later(default: Any) -> Any:
    """A field that the first recipes had not: at its default it is left out of digests, which stay what they were."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class Recipe:
    """One network, trained the same way every time.

    Attributes:
        name: of the trained network in the zoo.
        build: makes the network, untrained.
        data: of the zoo; it is trained on the calibration part, on driving frames on all of the first 80 %, on those of
            CarRacing on all of the training tracks.
        task: ``"classification"``: cross-entropy; ``"degrees"``, ``"radians"``: squared error in degrees; ``"tokens"``:
            cross-entropy of the next token.
        epochs: passes over the training data.
        learning_rate: the highest; it rises over the first tenth of the steps and falls to nothing by half a cosine.
        batch_size: samples per step.
        weight_decay: of AdamW.
        mirror: show every image mirrored half of the time, a steering angle then with the other sign.
        shift: move images by up to so many pixels along both axes.
        smoothing: of the labels.
        seed: of the weights, the order and the changes.
        warp: turn images by up to so many degrees and scale them by up to as many hundredths.
        light: change contrast and brightness by up to this.
        pixels: height and width that images are brought to; 0: as they are.
        aside: one in so many images, of traffic signs one in so many physical signs, is not trained on but shows
            after each epoch how many the network gets right; 0: none.
        channels_last: train in this order in memory, which is faster for some and adds sums in another order.
        half: multiply in bfloat16 while training, weights and their steps in float32; faster on processors that have
            the instruction, and other sums than on those that have not.
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
    warp: float = _later(0.0)
    light: float = _later(0.0)
    pixels: int = _later(0)
    aside: int = _later(0)
    channels_last: bool = _later(False)
    half: bool = _later(False)

    def digest(self) -> str:
        """Digest, 16 hexadecimal digits, of all that decides the weights but torch and the content of the data."""
        with torch.device("meta"):
            net = self.build()
        shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
        text = json.dumps([_PROCEDURE, str(net), shapes, self.said()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        side = self.pixels or 32
        known = {"mnist": (1, 28, 28), "driving": (3, 66, 200), RACING: (3, 66, 200), "tinyshakespeare": (WINDOW,)}
        return known.get(self.data, (3, side, side))

    def said(self) -> dict[str, Any]:
        """Its settings by name, without the network and without later settings that it does not use."""
        values = {part: getattr(self, part.name) for part in fields(self) if part.name != "build"}
        return {
            part.name: value
            for part, value in values.items()
            if not ("later" in part.metadata and value == part.default)
        }


def train(
    recipe: Recipe, x: Tensor, targets: Tensor, *, progress: Progress | None = None, diary: Diary | None = None
) -> nn.Module:
    """A network trained from scratch, or from where its diary left it, in eval mode.

    Training runs on one thread, so that the number of cores changes no weight.

    Args:
        x: images, uint8 (they are divided by 255, a batch at a time) or float32, shape ``(n, channels, h, w)``.
        targets: int64 labels or float32 angles in degrees, shape ``(n,)``.
        progress: told after every epoch: epochs done, all epochs, mean loss.
        diary: keeps every epoch, so that a training that is stopped loses no more than one.
    Raises:
        DataError: the loss is no longer finite; or what the diary raises.
    Source:
        I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    with seeded(recipe.seed), torch_threads(1), torch.enable_grad():
        run = _begun(recipe, len(x), layout)
        for epoch in range(0 if diary is None else diary.resume(run), recipe.epochs):
            total = 0.0
            for rows in torch.randperm(len(x), generator=run.generator).split(recipe.batch_size):
                images, wanted = _changed(recipe, x[rows], targets[rows], run.generator)
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half):
                    outputs = run.net(images.to(memory_format=layout))
                loss = _loss(recipe, outputs, wanted)
                run.optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(run.net.parameters(), 5.0)
                run.optimiser.step()
                run.plan.step()
                total += loss.item() * len(rows)
            if not math.isfinite(total):
                raise DataError(f"expected a finite loss in epoch {epoch + 1} of {recipe.name}, got {total}")
            if diary is not None:
                diary.keep(run, total / len(x))
            if progress is not None:
                progress(epoch + 1, recipe.epochs, total / len(x))
        run.optimiser.zero_grad()
    # as weights that come from a file lie in memory, so that kernels are the same
    run.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return run.net.eval()


def _begun(recipe: Recipe, count: int, layout: torch.memory_format) -> Run:
    """A training of so many samples before its first step."""
    net = recipe.build().train()
    net.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * math.ceil(count / recipe.batch_size)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    return Run(net, optimiser, plan, torch.Generator().manual_seed(recipe.seed))


def as_taken(recipe: Recipe, x: Tensor) -> Tensor:
    """Images as the network takes them, unchanged."""
    x = x.float().div_(255) if x.dtype == torch.uint8 else x
    return resized(x, recipe.pixels) if recipe.pixels else x


def _changed(recipe: Recipe, x: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, moved and mirrored as the recipe says; tokens as they are."""
    if recipe.task == "tokens":
        return x, targets
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
    if recipe.warp:
        x = _warped(x, recipe.warp, generator)
    if recipe.light:
        contrast, brightness = recipe.light * (2 * torch.rand(2, len(x), 1, 1, 1, generator=generator) - 1)
        x = x * (1 + contrast) + brightness
    return as_taken(recipe, x), targets


def _warped(x: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Images turned about their middles by up to ``most`` degrees and scaled by up to ``most`` hundredths."""
    angle, scale = most * (2 * torch.rand(2, len(x), generator=generator) - 1)
    angle, scale = torch.deg2rad(angle), 1 + scale / 100
    rows = torch.stack([angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale], 1)
    moves = F.pad(rows.view(-1, 2, 2), [0, 1])  # (n, 2, 3): no shift
    grid = F.affine_grid(moves, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _loss(recipe: Recipe, outputs: Any, targets: Tensor) -> Tensor:
    if recipe.task == "tokens":
        return F.cross_entropy(outputs[0].float().flatten(0, 1), targets.flatten())
    outputs = outputs.float()
    if recipe.task == "classification":
        return F.cross_entropy(outputs, targets, label_smoothing=recipe.smoothing)
    degrees = outputs.squeeze(1) * (180 / math.pi if recipe.task == "radians" else 1.0)
    return F.mse_loss(degrees, targets)


def training_set(data: str) -> tuple[Tensor, Tensor]:
    """Images and targets that recipes name.

    Raises:
        DataError: the files are not in ``HOPLON_DATA``; or as :func:`hoplon_studies.training.wheel.wheel_frames`.
    """
    if data == RACING:
        taught = wheel_frames("training")
        return taught.pixels, taught.angles
    if data == "driving":
        drive = frames()
        return drive.pixels[: drive.border], drive.degrees[: drive.border]
    made = _CALIBRATIONS[data]()
    assert isinstance(made.y, Tensor), data
    return made.tensors[0], made.y


_CALIBRATIONS: dict[str, Callable[[], Inputs]] = {
    "mnist": lambda: mnist().calibration,
    "cifar10": lambda: cifar10().calibration,
    "cifar10-plain": lambda: cifar10(plain=True).calibration,
    ALL: all_training_images,
    f"{ALL}-plain": lambda: all_training_images(plain=True),
    "gtsrb": lambda: signs().calibration,
    "tinyshakespeare": lambda: shakespeare().calibration,
}


def set_aside(recipe: Recipe, count: int) -> Tensor:
    """Which of the training samples are not trained on, bool of shape ``(count,)``: whole physical signs, or images.

    Raises:
        DataError: the files are not in ``HOPLON_DATA``.
    """
    if not recipe.aside:
        return torch.zeros(count, dtype=torch.bool)
    names, group = (tracks() if recipe.data == "gtsrb" else torch.arange(count)).unique(return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return order[group] < len(names) // recipe.aside


_SIGNS = partial(
    Recipe, data="gtsrb", warp=10, shift=2, light=0.3, aside=10, epochs=16, learning_rate=1e-3, channels_last=True
)
_CIFAR = partial(Recipe, data="cifar10", mirror=True, shift=3, epochs=20, learning_rate=1e-3)
_ALL = partial(_CIFAR, data=ALL, aside=25, half=True, channels_last=True)
_TANH: Mapping[str, Any] = {"activation": "tanh", "glorot": True}
_ANGLE = partial(Recipe, data="driving", task="degrees", mirror=True, epochs=16, learning_rate=5e-4)
_RACING = partial(_ANGLE, data=RACING, epochs=12)
_DAVE = partial(_RACING, half=True)
_RADIANS: Mapping[str, Any] = {"task": "radians", "learning_rate": 2e-4}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("lenet-mnist", MnistLeNet, "mnist", epochs=8, learning_rate=1e-3),
        Recipe("lenet-mnist-quick", MnistLeNet, "mnist", epochs=1, learning_rate=1e-3),
        Recipe("lenet-mnist-tanh", partial(MnistLeNet, activation="tanh"), "mnist", epochs=8, learning_rate=5e-4),
        _CIFAR("alexnet-cifar10", AlexNet, epochs=8),
        _CIFAR("alexnet-cifar10-tanh", partial(AlexNet, activation="tanh"), epochs=8, learning_rate=5e-4),
        _CIFAR("vgg11-cifar10", partial(Vgg11, classes=10)),
        _CIFAR("vgg11-cifar10-again", partial(Vgg11, classes=10), seed=1),
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
        _SIGNS("vgg11-gtsrb", Vgg11, smoothing=0.05),
        _SIGNS("vgg11-gtsrb-tanh", partial(Vgg11, **_TANH), smoothing=0.05),
        _ALL("alexnet-cifar10-all", AlexNet, epochs=14),
        _ALL("alexnet-cifar10-all-tanh", partial(AlexNet, **_TANH), epochs=14),
        _ALL(
            "vgg16-half-cifar10-all",
            partial(Vgg16, classes=10, pixels=64, width=0.5),
            data=f"{ALL}-plain",
            pixels=64,
            epochs=6,
            learning_rate=2e-4,
        ),
        _ALL("resnet18-cifar10-all", partial(ResNet18, classes=10), pixels=64, epochs=8),
        _ALL("squeezenet-cifar10-all", partial(SqueezeNet, classes=10), pixels=64, epochs=14),
        _ALL("vgg19-cifar10", vgg19, epochs=7),
        _ALL("resnet50-cifar10", resnet50, epochs=8),
        _ALL("inception-v3-cifar10", inception_v3, epochs=6, pixels=75),
        Recipe(
            "decoder-shakespeare",
            Decoder,
            "tinyshakespeare",
            task="tokens",
            batch_size=16,
            epochs=4,
            learning_rate=3e-3,
            weight_decay=0.1,
        ),
        _ANGLE("dave-degrees", Dave),
        _ANGLE("dave-radians", partial(Dave, unit="radians"), task="radians", learning_rate=1e-4),
        _ANGLE("comma-driving", Comma, epochs=12, shift=8, learning_rate=2e-4),
        _DAVE("dave-degrees-racing", Dave),
        _DAVE("dave-radians-racing", partial(Dave, unit="radians"), **_RADIANS),
        _DAVE("dave-radians-racing-tanh", partial(Dave, unit="radians", activation="tanh"), **_RADIANS),
        _RACING("comma-racing", Comma),
        _RACING("comma-racing-tanh", partial(Comma, tanh=True), learning_rate=2e-3),
    )
}
"""Recipes by the name of what they train. Those on CIFAR-10 stand in for data that no file here holds.

How long Comma is trained on the recorded drive and with which steps was chosen on stretches of the training part:
``validation``.
"""
