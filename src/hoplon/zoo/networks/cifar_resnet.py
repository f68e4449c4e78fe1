"""CIFAR-10 and the ResNets trained on it, read from the files in ``HOPLON_DATA``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError
from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.files import data_file, read_arrays, read_state_dict
from hoplon_studies.training.classifier import seeded

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut without parameters (option A).

    Where the width grows, the shortcut takes every ``stride``-th pixel and adds zero channels on both sides.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self._stride = stride
        self._padding = (out_channels - in_channels) // 2

    def _shortcut(self, x: Tensor) -> Tensor:
        if self._padding == 0:
            return x
        thinned = x[:, :, :: self._stride, :: self._stride]
        return F.pad(thinned, (0, 0, 0, 0, self._padding, self._padding))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, in_channels, h, w)`` to ``(n, out_channels, h / stride, w / stride)``."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self._shortcut(x))


class CifarResNet(nn.Module):
    """The ResNet family for images of 32 x 32 pixels: ``depth`` layers with weights, in three widths.

    Input ``(n, 3, 32, 32)``, output ``(n, classes)`` logits. ``depth`` is 6 k + 2: 20, 32, 44, 56, 110.

    Source:
        K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016
        (arXiv:1512.03385), section 4.2, shortcuts of option A. Names of the parameters are those of Y.
        Idelbayev, "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch"
        (akamaster/pytorch_resnet_cifar10, BSD 2-clause), the origin of the pretrained weights that
        ``resnet_cifar10`` loads.
    """

    def __init__(self, depth: int, *, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise HoplonError(f"expected a depth of 6 k + 2 layers (20, 32, 44, 56, 110), got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)  # (n, 16, 32, 32)
        self.layer2 = _stage(16, 32, blocks, stride=2)  # (n, 32, 16, 16)
        self.layer3 = _stage(32, 64, blocks, stride=2)  # (n, 64, 8, 8)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(blocks - 1)))


def resnet_cifar10(depth: int) -> ZooModel:
    """The CIFAR ResNet of 20 or 56 layers with pretrained weights from ``cifar10-resnet{depth}.pt``.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing, or the file holds the weights of another network.
    """
    path = data_file(f"cifar10-resnet{depth}.pt")
    stored = read_state_dict(path)
    with seeded(0):  # only so that the weights soon replaced draw nothing from the caller's random state
        net = CifarResNet(depth)
    wanted = {name: value.shape for name, value in net.state_dict().items()}
    found = {name: value.shape for name, value in stored.items()}
    unlike = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if unlike:
        raise DataError(
            f"expected the weights of a CIFAR ResNet-{depth} in {path}, got {len(unlike)} tensors that are missing, "
            f"left over or of another shape, such as {unlike[0]}"
        )
    net.load_state_dict(stored)
    example = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return ZooModel(name=f"resnet{depth}-cifar10", module=net.eval(), example=example)


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


def _split(file: str, name: str, *, plain: bool) -> tuple[Inputs, tuple[str, ...]]:
    arrays = read_arrays(data_file(file), ("x", "y", "classes"))
    pixels = torch.from_numpy(arrays["x"])
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (32, 32, 3):
        got = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise DataError(f"expected torch.uint8 images of shape (n, 32, 32, 3) in {file}, got {got}")
    x = pixels.permute(0, 3, 1, 2).float()
    if not plain:
        x.div_(255).sub_(torch.tensor(_MEAN).view(3, 1, 1)).div_(torch.tensor(_STD).view(3, 1, 1))
    return Inputs(x.contiguous(), torch.from_numpy(arrays["y"]), name=name), tuple(arrays["classes"].tolist())
