"""German traffic signs, read from the files in ``HOPLON_DATA``."""

from __future__ import annotations

import torch
from torch import Tensor

from hoplon.program.inputs import Inputs
from hoplon.zoo.datasets._cifar10 import normalised
from hoplon.zoo.datasets._pictures import pictures
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file, read_arrays

_TRAIN, _TEST = "gtsrb-train.npz", "gtsrb-test.npz"
_CLASSES = 43


def signs() -> ZooData:
    """The German traffic signs: the official training images to calibrate with, the official test images held out.

    Inputs are float32 of shape ``(n, 3, 32, 32)``, normalised as those of CIFAR-10. The 30 training images of one
    physical sign are nearly equal: :func:`tracks` tells them apart.

    Raises:
        DataError: ``HOPLON_DATA`` or a file is missing or unreadable; HoplonError: Pillow is not installed.
    Source:
        J. Stallkamp et al., "Man vs. computer: Benchmarking machine learning algorithms for traffic sign recognition",
        Neural Networks 32, 2012. The data of the Ranger paper's VGG11.
    """
    return ZooData(
        name="gtsrb",
        calibration=_part(_TRAIN, "GTSRB, training images"),
        held_out=_part(_TEST, "GTSRB, test images"),
        classes=tuple(f"{number:02d}" for number in range(_CLASSES)),
    )


def tracks() -> Tensor:
    """Which physical sign each training image shows, int64 of shape ``(n,)``.

    Raises:
        DataError: as :func:`signs`.
    """
    return torch.from_numpy(read_arrays(data_file(_TRAIN), ("track",))["track"]).long()


def _part(file: str, name: str) -> Inputs:
    arrays = read_arrays(data_file(file), ("jpeg", "offsets", "y"))
    x = normalised(pictures(arrays, file=file, labels="y"))
    return Inputs(x, torch.from_numpy(arrays["y"]).long(), name=name)
