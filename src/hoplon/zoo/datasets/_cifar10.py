"""CIFAR-10, read from the files in ``HOPLON_DATA``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.datasets._pictures import pictures
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file, read_arrays

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue, by which the CIFAR ResNets here normalise too."""

_ALL = "cifar10-train.npz"


def cifar10(*, plain: bool = False, pixels: int = 32) -> ZooData:
    """CIFAR-10, normalised: 10,000 of the training images to calibrate with, the 10,000 test images held out.

    Inputs are float32 of shape ``(n, 3, 32, 32)``: RGB / 255, less the mean (0.485, 0.456, 0.406), over the
    standard deviation (0.229, 0.224, 0.225), as the pretrained ResNets expect. These networks have seen the
    calibration images.

    Args:
        plain: RGB in [0, 255] as it is, for networks that begin with a subtraction of the mean.
        pixels: height and width that the images are brought to, for networks whose maps would shrink to one value.
    Raises:
        DataError: ``HOPLON_DATA`` or a file is missing or unreadable.
    Source:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; here as JPEG-compressed
        copies, which costs the networks about ten points of their published accuracy.
    """
    calibration, _ = _split("cifar10-train20.npz", "CIFAR-10, training images", plain=plain, pixels=pixels)
    held_out, classes = _split("cifar10-test.npz", "CIFAR-10, test images", plain=plain, pixels=pixels)
    name = "cifar10" + "-plain" * plain + f"-{pixels}" * (pixels != 32)
    return ZooData(name=name, calibration=calibration, held_out=held_out, classes=classes)


def all_training_images(*, plain: bool = False) -> Inputs:
    """All 50,000 training images as :func:`cifar10` gives a fifth of them, in another order.

    Raises:
        DataError: as :func:`cifar10`; HoplonError: Pillow is not installed.
    """
    arrays = read_arrays(data_file(_ALL), ("jpeg", "offsets", "y"))
    x = pictures(arrays, file=_ALL, labels="y")
    return Inputs(x.float() if plain else normalised(x), torch.from_numpy(arrays["y"]), name="CIFAR-10, all training")


def resized(x: Tensor, pixels: int) -> Tensor:
    """Float images ``(n, channels, h, w)`` brought to a height and width, bilinear; of that size, as they are."""
    return x if x.shape[-1] == pixels else F.interpolate(x, (pixels, pixels), mode="bilinear", align_corners=False)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 pixels, shape ``(n, 3, h, w)``, as networks trained on ImageNet take them: float32, the same shape."""
    x = pixels.float().div_(255)
    return x.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1)).contiguous()


def _split(file: str, name: str, *, plain: bool, pixels: int) -> tuple[Inputs, tuple[str, ...]]:
    arrays = read_arrays(data_file(file), ("x", "y", "classes"))
    images = torch.from_numpy(arrays["x"])
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        got = f"{images.dtype} {tuple(images.shape)}"
        raise DataError(f"expected torch.uint8 images of shape (n, 32, 32, 3) in {file}, got {got}")
    channels_first = images.permute(0, 3, 1, 2)
    x = resized(channels_first.float().contiguous() if plain else normalised(channels_first), pixels)
    return Inputs(x, torch.from_numpy(arrays["y"]), name=name), tuple(arrays["classes"].tolist())
