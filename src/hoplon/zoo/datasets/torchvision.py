"""The papers' data sets as their authors published them, through torchvision; downloaded only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hoplon.errors import Count, DataError, Seed, checked, said
from hoplon.program.inputs import Inputs
from hoplon.zoo.cache import cache_folder
from hoplon.zoo.datasets._cifar10 import normalised
from hoplon.zoo.entries import ZooData
from hoplon.zoo.torchvision_ops import import_torchvision


@checked
def original_mnist(folder: Path | None = None, *, download: bool = False) -> ZooData:
    """MNIST's 60,000 training images and 10,000 test images: float32, ``(n, 1, 28, 28)``, in [0, 1].

    Args:
        folder: that holds the data, or will; ``data`` in the cache folder by default.
        download: fetch what is missing.
    Raises:
        DataError: the data is not there and ``download=False``, or is damaged; HoplonError: no torchvision.
    """
    parts = [_opened("MNIST", folder, download=download, train=train) for train in (True, False)]
    made = [Inputs(part.data.unsqueeze(1).float() / 255, part.targets.long(), name="MNIST") for part in parts]
    return ZooData("mnist-original", made[0], made[1], tuple("0123456789"))


@checked
def original_cifar10(folder: Path | None = None, *, download: bool = False) -> ZooData:
    """CIFAR-10's 50,000 training images and 10,000 test images, normalised as
    :func:`hoplon.zoo.datasets._cifar10.cifar10` does.

    Arguments and errors as :func:`original_mnist`.
    """
    parts = [_opened("CIFAR10", folder, download=download, train=train) for train in (True, False)]
    made = [
        Inputs(normalised(torch.from_numpy(part.data).permute(0, 3, 1, 2)), torch.tensor(part.targets), name="CIFAR-10")
        for part in parts
    ]
    return ZooData("cifar10-original", made[0], made[1], tuple(parts[0].classes))


@checked
def gtsrb(folder: Path | None = None, *, download: bool = False, count: Count | None = None, seed: Seed = 0) -> ZooData:
    """The German traffic signs, 43 classes, resized to 32 x 32 and normalised: float32, ``(n, 3, 32, 32)``.

    Args:
        folder: as :func:`original_mnist`.
        download: likewise.
        count: so many images of each part, drawn by ``seed``; all by default.
        seed: of that choice.
    Raises:
        DataError: as :func:`original_mnist`.
    Source:
        J. Stallkamp et al., "Man vs. computer: Benchmarking machine learning algorithms for traffic sign recognition",
        Neural Networks 32, 2012. The data of the Ranger paper's VGG11.
    """
    options = {"download": download, "transform": _preparation(32, 32)}
    parts = [_opened("GTSRB", folder, split=split, **options) for split in ("train", "test")]
    made = [_images(part, count=count, seed=seed, name="GTSRB") for part in parts]
    return ZooData("gtsrb-original", made[0], made[1], tuple(f"{number:02d}" for number in range(43)))


@checked
def imagenet(folder: Path | None = None, *, count: Count = 1000, seed: Seed = 0, pixels: int = 224) -> ZooData:
    """Images of ImageNet's training and validation part, resized and cropped: float32, ``(count, 3, pixels, pixels)``.

    torchvision cannot download ImageNet: put the archives ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar`` and
    ``ILSVRC2012_devkit_t12.tar.gz`` into the folder.

    Args:
        folder: as :func:`original_mnist`.
        count: images of each part, drawn by ``seed``.
        seed: of that choice.
        pixels: height and width of the crop; the shorter side is resized to 8 / 7 of it.
    Raises:
        DataError: the data is not there, or is damaged.
    """
    prepare = _preparation(pixels * 8 // 7, pixels)
    parts = [_opened("ImageNet", folder, split=split, transform=prepare) for split in ("train", "val")]
    made = [_images(part, count=count, seed=seed, name="ImageNet") for part in parts]
    return ZooData("imagenet", made[0], made[1], tuple(names[0] for names in parts[0].classes))


def _opened(name: str, folder: Path | None, **options: Any) -> Any:
    root = folder or cache_folder() / "data"
    import_torchvision()
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, name)(str(root), **options)
    except (RuntimeError, OSError) as error:
        way_out = "put its archives there" if name == "ImageNet" else "ask for it with download=True"
        raise DataError(f"expected {name} in {root}, got: {said(error)}; {way_out}") from error


def _images(dataset: Dataset[Any], *, count: int | None, seed: int, name: str) -> Inputs:
    total = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: count or total].sort().values
    return Inputs.from_dataset(Subset(dataset, order.tolist()), name=name)


def _preparation(side: int, crop: int) -> Callable[[Any], Tensor]:
    """The preparation of a picture: resized, cropped and normalised."""

    def prepare(picture: Any) -> Tensor:
        from torchvision.transforms import functional

        rgb = picture.convert("RGB")
        sized = functional.resize(rgb, [side, side] if side == crop else [side])
        pixels: Tensor = functional.pil_to_tensor(functional.center_crop(sized, [crop, crop]))
        return normalised(pixels.unsqueeze(0))[0]

    return prepare
