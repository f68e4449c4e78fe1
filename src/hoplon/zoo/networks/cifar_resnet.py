"""ResNets for images of 32 x 32 pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import Count, HoplonError, checked


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


@checked
class CifarResNet(nn.Module):
    """The ResNet family for images of 32 x 32 pixels: ``depth`` layers with weights, in three widths.

    Input ``(n, 3, 32, 32)``, output ``(n, classes)`` logits. ``depth`` is 6 k + 2: 20, 32, 44, 56, 110.

    Source:
        K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016
        (arXiv:1512.03385), section 4.2, shortcuts of option A. Names of the parameters are those of Y.
        Idelbayev, "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch"
        (akamaster/pytorch_resnet_cifar10, BSD 2-clause), the origin of the pretrained weights.
    """

    def __init__(self, depth: int, *, classes: Count = 10) -> None:
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
