"""CIFAR-10, read from the files in ``HOPLON_DATA``."""

from __future__ import annotations

import torch
from torch import Tensor

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file, read_arrays

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue, by which the CIFAR ResNets here normalise too."""


def cifar10(*, plain: bool = False) -> ZooData:
    """CIFAR-10, normalised: 10,000 of the training images to calibrate with, the 10,000 test images held out.

    Inputs are float32 of shape ``(n, 3, 32, 32)``: RGB / 255, less the mean (0.485, 0.456, 0.406), over the
    standard deviation (0.229, 0.224, 0.225), as the pretrained ResNets expect. These networks have seen the
    calibration images.

    Args:
        plain: RGB in [0, 255] as it is, for networks that begin with a subtraction of the mean.
    Raises:
        DataError: ``HOPLON_DATA`` or a file is missing or unreadable.
    Source:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; here as JPEG-compressed
        copies, which costs the networks about ten points of their published accuracy.
    """
    calibration, _ = _split("cifar10-train20.npz", "CIFAR-10, training images", plain=plain)
    held_out, classes = _split("cifar10-test.npz", "CIFAR-10, test images", plain=plain)
    return ZooData(
        name="cifar10-plain" if plain else "cifar10", calibration=calibration, held_out=held_out, classes=classes
    )


def normalised(pixels: Tensor) -> Tensor:
    """uint8 pixels, shape ``(n, 3, h, w)``, as networks trained on ImageNet take them: float32, the same shape."""
    x = pixels.float().div_(255)
    return x.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1)).contiguous()


def _split(file: str, name: str, *, plain: bool) -> tuple[Inputs, tuple[str, ...]]:
    arrays = read_arrays(data_file(file), ("x", "y", "classes"))
    pixels = torch.from_numpy(arrays["x"])
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (32, 32, 3):
        got = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise DataError(f"expected torch.uint8 images of shape (n, 32, 32, 3) in {file}, got {got}")
    channels_first = pixels.permute(0, 3, 1, 2)
    x = channels_first.float().contiguous() if plain else normalised(channels_first)
    return Inputs(x, torch.from_numpy(arrays["y"]), name=name), tuple(arrays["classes"].tolist())
