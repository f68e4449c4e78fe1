"""The studies' networks and data for hoplon's zoo, which finds this module by its entry point in ``hoplon.models``."""

from __future__ import annotations

from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.seeding import Progress
from hoplon_studies.networks.architectures import ARCHITECTURES, untrained
from hoplon_studies.networks.efficientnet import LITE0, lite0
from hoplon_studies.training import wheel
from hoplon_studies.training.classifier import train_lenet_digits
from hoplon_studies.training.recipes import RECIPES
from hoplon_studies.training.weights import trained

_PAPER = "paper:"


def names() -> tuple[str, ...]:
    """LeNet of any seed, networks of recipes, EfficientNet-Lite0, and the papers' networks with random weights.

    Example:
        >>> [name for name in names() if "radians" in name]
        ['dave-radians', 'dave-radians-racing', 'dave-radians-racing-tanh', 'paper:dave-radians']
    """
    return ("lenet-digits", *RECIPES, LITE0, *(f"{_PAPER}{name}" for name in ARCHITECTURES))


def model(name: str, *, seed: int = 0, progress: Progress | None = None) -> ZooModel:
    """A network by one of :func:`names`; arguments and errors as :func:`hoplon.zoo.registry.model`."""
    if name == "lenet-digits":
        return train_lenet_digits(seed=seed)
    if name in RECIPES:
        return trained(name, progress=progress)
    if name == LITE0:
        return lite0()
    return untrained(name.removeprefix(_PAPER), seed=seed)


def data_names() -> tuple[str, ...]:
    """Frames with steering angles out of the simulator of the driving study."""
    return (wheel.NAME,)


def data(name: str) -> ZooData:
    """Data by one of :func:`data_names`; errors as :func:`hoplon_studies.training.wheel.racing`."""
    return wheel.racing()
