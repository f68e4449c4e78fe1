"""The zoo's models and data by name."""

from __future__ import annotations

from hoplon.errors import no_match
from hoplon.zoo.cifar import cifar10, resnet_cifar10
from hoplon.zoo.digits import digits
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.lenet import lenet_digits

_PRETRAINED_DEPTHS = {"resnet20-cifar10": 20, "resnet56-cifar10": 56}
_DATA = {"digits": digits, "cifar10": cifar10}


def model_names() -> tuple[str, ...]:
    """Names that ``model`` knows.

    Example:
        >>> model_names()
        ('lenet-digits', 'resnet20-cifar10', 'resnet56-cifar10')
    """
    return ("lenet-digits", *_PRETRAINED_DEPTHS)


def data_names() -> tuple[str, ...]:
    """Names that ``data`` knows.

    Example:
        >>> data_names()
        ('digits', 'cifar10')
    """
    return tuple(_DATA)


def model(name: str, *, seed: int = 0) -> ZooModel:
    """A trained model of the zoo; ``seed`` is that of its training, pretrained weights do not depend on it.

    Raises:
        HoplonError: the zoo has no such model; the message lists near names.
        DataError: the model's weights are not in ``HOPLON_DATA``.
    """
    if name == "lenet-digits":
        return lenet_digits(seed=seed)
    if name in _PRETRAINED_DEPTHS:
        return resnet_cifar10(_PRETRAINED_DEPTHS[name])
    raise no_match("zoo model", name, model_names())


def data(name: str) -> ZooData:
    """Data of the zoo, in its calibration and its held-out part.

    Raises:
        HoplonError: the zoo has no such data; the message lists near names.
        DataError: the files are not in ``HOPLON_DATA``.
    """
    if name not in _DATA:
        raise no_match("zoo data", name, data_names())
    return _DATA[name]()
