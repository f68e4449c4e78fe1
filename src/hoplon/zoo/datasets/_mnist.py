"""MNIST, read from the file in ``HOPLON_DATA``: the 10,000 test images in a fixed split."""

from __future__ import annotations

import torch

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file, read_arrays

_TRAIN_COUNT = 8000


def mnist() -> ZooData:
    """8,000 of MNIST's 10,000 test images to train and calibrate with, 2,000 held out, shuffled with a fixed seed.

    Inputs are float32 of shape ``(n, 1, 28, 28)`` in [0, 1]. This is not the usual protocol of 60,000 and 10,000
    images. The split is random, since the two halves of the file differ in difficulty.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing or unreadable.
    Source:
        Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
    """
    arrays = read_arrays(data_file("mnist-10k.npz"), ("x", "y"))
    pixels, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != (28, 28):
        got = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise DataError(f"expected torch.uint8 images of shape (n, 28, 28) in mnist-10k.npz, got {got}")
    if len(pixels) <= _TRAIN_COUNT:
        raise DataError(f"expected more than {_TRAIN_COUNT:,} images in mnist-10k.npz, got {len(pixels)}")
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    x, y = pixels[order].unsqueeze(1).float().div_(255), labels[order].long()
    return ZooData(
        name="mnist",
        calibration=Inputs(x[:_TRAIN_COUNT], y[:_TRAIN_COUNT], name="MNIST-10k, 8,000 shuffled"),
        held_out=Inputs(x[_TRAIN_COUNT:], y[_TRAIN_COUNT:], name="MNIST-10k, the other 2,000"),
        classes=tuple("0123456789"),
    )
