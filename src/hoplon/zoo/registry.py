"""The zoo's models and data by name."""

from __future__ import annotations

from hoplon.errors import no_match
from hoplon.zoo.datasets.digits import digits
from hoplon.zoo.datasets.driving import driving
from hoplon.zoo.datasets.mnist import mnist
from hoplon.zoo.datasets.torchvision import gtsrb, imagenet, original_cifar10, original_mnist
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.networks.cifar_resnet import cifar10, resnet_cifar10
from hoplon.zoo.networks.lenet_digits import lenet_digits
from hoplon_studies.networks.architectures import ARCHITECTURES, untrained
from hoplon_studies.training.classifier import Progress
from hoplon_studies.training.recipes import RECIPES
from hoplon_studies.training.weights import trained

_PRETRAINED_DEPTHS = {"resnet20-cifar10": 20, "resnet56-cifar10": 56}
_PAPER = "paper:"
_DATA = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar10-plain": lambda: cifar10(plain=True),
    "driving": driving,
    "mnist-original": original_mnist,
    "cifar10-original": original_cifar10,
    "gtsrb": gtsrb,
    "imagenet": imagenet,
}


def model_names() -> tuple[str, ...]:
    """Names that ``model`` knows: pretrained, trained by a recipe, and the papers' with random weights.

    Example:
        >>> model_names()[:4]
        ('lenet-digits', 'resnet20-cifar10', 'resnet56-cifar10', 'lenet-mnist')
        >>> [name for name in model_names() if "dave" in name]
        ['dave-degrees', 'dave-radians', 'dave-radians-tanh', 'paper:dave-radians', 'paper:dave-degrees']
    """
    return ("lenet-digits", *_PRETRAINED_DEPTHS, *RECIPES, *(f"{_PAPER}{name}" for name in ARCHITECTURES))


def data_names() -> tuple[str, ...]:
    """Names that ``data`` knows.

    Example:
        >>> data_names()[:5]
        ('digits', 'mnist', 'cifar10', 'cifar10-plain', 'driving')
    """
    return tuple(_DATA)


def model(name: str, *, seed: int = 0, progress: Progress | None = None) -> ZooModel:
    """A model of the zoo.

    Networks of a recipe come from the cache folder; where they are not there yet they are trained, which takes
    minutes, and kept.

    Args:
        seed: of the training of ``lenet-digits`` and of the random weights of ``paper:NAME``; recipes have their own.
        progress: told after every epoch of a training by recipe; ``lenet-digits`` trains in seconds, untold.
    Raises:
        HoplonError: the zoo has no such model; the message lists near names.
        DataError: the model's weights, or the data to train it with, are not in ``HOPLON_DATA``.
    """
    if name == "lenet-digits":
        return lenet_digits(seed=seed)
    if name in _PRETRAINED_DEPTHS:
        return resnet_cifar10(_PRETRAINED_DEPTHS[name])
    if name in RECIPES:
        return trained(name, progress=progress)
    if name.removeprefix(_PAPER) in ARCHITECTURES and name.startswith(_PAPER):
        return untrained(name.removeprefix(_PAPER), seed=seed)
    raise no_match("zoo model", name, model_names())


def data(name: str) -> ZooData:
    """Data of the zoo, in its calibration and its held-out part.

    Raises:
        HoplonError: the zoo has no such data; the message lists near names.
        DataError: the files are not in ``HOPLON_DATA``, or not where torchvision's data is kept; nothing is downloaded.
    """
    if name not in _DATA:
        raise no_match("zoo data", name, data_names())
    return _DATA[name]()
