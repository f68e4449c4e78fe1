"""ResNet-18 and SqueezeNet of the Ranger paper, for images of 224 x 224 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hoplon_studies.networks.tensorflow_ops import Convolution, Normalisation, Product


class PaperBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm; where the width grows, the shortcut is a 1 x 1 convolution alone."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        grows = in_channels != out_channels
        self.shortcut = Convolution(in_channels, out_channels, 1, stride=stride, bias=False) if grows else None
        self.conv1 = Convolution(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1, self.relu1 = Normalisation(out_channels), nn.ReLU()
        self.conv2 = Convolution(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2, self.relu2 = Normalisation(out_channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, in_channels, h, w)`` to ``(n, out_channels, h / stride, w / stride)``."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        outer: Tensor = self.relu2(x + shortcut)
        return outer


class ResNet18(nn.Module):
    """The paper's ResNet-18 for ImageNet: input ``(n, 3, 224, 224)``, output ``(n, classes)`` logits.

    It has 17 batch norms: the 1 x 1 convolutions of the shortcuts have none, unlike torchvision's.

    Source:
        K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1; the shortcuts and the form of
        the batch norm as in Ranger's published artifact. Departure: the first convolution is padded by 3 on all sides;
        TensorFlow's "SAME" pads by 2 and 3.
    """

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = Convolution(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu1 = Normalisation(64), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        stages = ((64, 64), (64, 128), (128, 256), (256, 512))
        self.blocks = nn.Sequential()
        for number, (before, width) in enumerate(stages):
            self.blocks.extend([PaperBlock(before, width, stride=2 if number else 1), PaperBlock(width, width)])
        self.fc = Product(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)``."""
        x = self.blocks(self.pool(self.relu1(self.bn1(self.conv1(x)))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Fire(nn.Module):
    """A 1 x 1 convolution that squeezes, then 1 x 1 and 3 x 3 convolutions side by side."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.relu1 = Convolution(in_channels, squeezed, 1), nn.ReLU()
        self.expand1, self.relu2 = Convolution(squeezed, expanded, 1), nn.ReLU()
        self.expand3, self.relu3 = Convolution(squeezed, expanded, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, in_channels, h, w)`` to ``(n, 2 * expanded, h, w)``."""
        x = self.relu1(self.squeeze(x))
        return torch.cat([self.relu2(self.expand1(x)), self.relu3(self.expand3(x))], dim=1)


class SqueezeNet(nn.Module):
    """The paper's SqueezeNet 1.1 for ImageNet: input ``(n, 3, 224, 224)``, output ``(n, classes)`` logits.

    It ends in a convolution of 1 x 1, a ReLU and the mean over all pixels: there is no fully connected layer.

    Source:
        F. N. Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", arXiv:1602.07360, in
        version 1.1 of its authors' repository.
    """

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(Convolution(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        )
        self.dropout = nn.Dropout(0.5)
        self.conv10, self.relu10 = Convolution(512, classes, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)``."""
        logits: Tensor = self.relu10(self.conv10(self.dropout(self.features(x)))).mean((2, 3))
        return logits
