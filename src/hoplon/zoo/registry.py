"""The zoo's models and data by name; other packages add to both through the entry point group ``hoplon.models``."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from hoplon.errors import HoplonError, Seed, checked, no_match
from hoplon.zoo.datasets._cifar10 import cifar10
from hoplon.zoo.datasets._digits import digits
from hoplon.zoo.datasets._driving import driving
from hoplon.zoo.datasets._imagenet import imagenet_samples
from hoplon.zoo.datasets._mnist import mnist
from hoplon.zoo.datasets._shakespeare import shakespeare
from hoplon.zoo.datasets._signs import signs
from hoplon.zoo.datasets.torchvision import gtsrb, imagenet, original_cifar10, original_mnist
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.pretrained import lenet_digits, resnet_cifar10
from hoplon.zoo.seeding import Progress

_LENET = "lenet-digits"
_PRETRAINED_DEPTHS = {"resnet20-cifar10": 20, "resnet56-cifar10": 56}
_DATA = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar10-plain": lambda: cifar10(plain=True),
    "cifar10-64": lambda: cifar10(pixels=64),
    "cifar10-plain-64": lambda: cifar10(plain=True, pixels=64),
    "cifar10-75": lambda: cifar10(pixels=75),
    "gtsrb": signs,
    "imagenet-samples": imagenet_samples,
    "driving": driving,
    "tinyshakespeare": shakespeare,
    "mnist-original": original_mnist,
    "cifar10-original": original_cifar10,
    "gtsrb-original": gtsrb,
    "imagenet": imagenet,
}


class ModelSource(Protocol):
    """Models of an installed package: a module or object that its entry point in ``hoplon.models`` names."""

    def names(self) -> tuple[str, ...]:
        """Names that :meth:`model` knows."""

    def model(self, name: str, *, seed: int, progress: Progress | None) -> ZooModel:
        """A model by one of these names; arguments as those of :func:`model`."""


@runtime_checkable
class DataSource(Protocol):
    """Data of an installed package, which its :class:`ModelSource` may give as well."""

    def data_names(self) -> tuple[str, ...]:
        """Names that :meth:`data` knows."""

    def data(self, name: str) -> ZooData:
        """Data by one of these names; errors as those of :func:`data`."""


def _sources() -> list[ModelSource]:
    return [entry.load() for entry in entry_points(group="hoplon.models")]


def _data_sources() -> list[DataSource]:
    return [source for source in _sources() if isinstance(source, DataSource)]


def model_names() -> tuple[str, ...]:
    """Names that ``model`` knows: those that come with weights, then those of installed packages.

    Example:
        >>> model_names()[:3]
        ('lenet-digits', 'resnet20-cifar10', 'resnet56-cifar10')
    """
    others = [name for source in _sources() for name in source.names()]
    return tuple(dict.fromkeys([_LENET, *_PRETRAINED_DEPTHS, *others]))


def data_names() -> tuple[str, ...]:
    """Names that ``data`` knows: those of hoplon, then those of installed packages.

    Example:
        >>> data_names()[:5]
        ('digits', 'mnist', 'cifar10', 'cifar10-plain', 'cifar10-64')
    """
    return tuple(dict.fromkeys([*_DATA, *(name for source in _data_sources() for name in source.data_names())]))


@checked
def model(name: str, *, seed: Seed = 0, progress: Progress | None = None) -> ZooModel:
    """A model of the zoo.

    Networks that another package trains come from the cache folder; where they are not there yet they are trained,
    which takes minutes, and kept.

    Args:
        seed: of the training of ``lenet-digits`` and of random weights (``paper:NAME``); recipes have their own.
            ``lenet-digits`` comes with the weights of seed 0; others are trained by ``hoplon_studies`` in seconds.
        progress: told after every epoch of a training that takes minutes.
    Raises:
        HoplonError: the zoo has no such model; the message lists near names. Or ``lenet-digits`` of another seed,
            and no installed package trains it.
        DataError: the model's weights, or the data to train it with, are not in ``HOPLON_DATA``.
    """
    if name == _LENET and seed == 0:
        return lenet_digits()
    if name in _PRETRAINED_DEPTHS:
        return resnet_cifar10(_PRETRAINED_DEPTHS[name])
    for source in _sources():
        if name in source.names():
            return source.model(name, seed=seed, progress=progress)
    if name == _LENET:
        raise HoplonError(
            f"expected seed 0 for {_LENET}, whose weights come with hoplon, got {seed}; "
            "install hoplon_studies, which trains it with other seeds"
        )
    raise no_match("zoo model", name, model_names())


@checked
def data(name: str) -> ZooData:
    """Data of the zoo, in its calibration and its held-out part.

    Raises:
        HoplonError: the zoo has no such data; the message lists near names.
        DataError: the files are not in ``HOPLON_DATA``, or not where torchvision's data is kept; nothing is downloaded.
    """
    if name in _DATA:
        return _DATA[name]()
    for source in _data_sources():
        if name in source.data_names():
            return source.data(name)
    raise no_match("zoo data", name, data_names())
