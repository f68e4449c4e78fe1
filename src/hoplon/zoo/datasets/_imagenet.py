"""A thousand images of ImageNet, read from the file in ``HOPLON_DATA``."""

from __future__ import annotations

import torch

from hoplon.program.inputs import Inputs
from hoplon.zoo.datasets._pictures import pictures
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file, read_arrays

_FILE = "imagenet-1k-samples.npz"


def imagenet_samples() -> ZooData:
    """One training image of each class of ImageNet: a random half to calibrate with, the other one held out.

    Inputs are float32 of shape ``(500, 3, 224, 224)``, (pixels - 127) / 128, as networks of the EfficientNet-Lite
    family take them. Networks trained on ImageNet have seen both parts, so accuracy on them is none on unseen data.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing or unreadable; HoplonError: Pillow is not installed.
    Source:
        O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, in the choice of
        ``EliSchwartz/imagenet-sample-images``.
    """
    arrays = read_arrays(data_file(_FILE), ("jpeg", "offsets", "y", "name"))
    pixels, y = pictures(arrays, file=_FILE, labels="y"), torch.from_numpy(arrays["y"]).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    halves = {"one half": order[: len(y) // 2].sort().values, "the other half": order[len(y) // 2 :].sort().values}
    calibration, held_out = (
        Inputs(pixels[rows].float().sub_(127).div_(128), y[rows], name=f"ImageNet, samples, {name}")
        for name, rows in halves.items()
    )
    return ZooData("imagenet-samples", calibration, held_out, tuple(arrays["name"].tolist()))
