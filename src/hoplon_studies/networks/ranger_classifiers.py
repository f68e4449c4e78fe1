"""Classifiers of the Ranger paper, built as its published graphs are, so that what is counted can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hoplon_studies.networks.tensorflow_ops import Activation, Convolution, Product, Reshape, activation_module


class MnistLeNet(nn.Module):
    """The paper's LeNet for MNIST: input ``(n, 1, 28, 28)``, output ``(n, 10)`` logits.

    Args:
        probabilities: end in a softmax, as the graph does whose operations the paper counts.
        activation: of all layers.
    Source:
        Z. Chen, G. Li and K. Pattabiraman, "A Low-cost Fault Corrector for Deep Neural Networks through Range
        Restriction", DSN 2021, Table I; layer sizes read off its published artifact (TensorFlow's MNIST tutorial).
    """

    def __init__(self, *, probabilities: bool = False, activation: Activation = "relu") -> None:
        super().__init__()
        self.conv1, self.act1 = Convolution(1, 32, 5, padding=2), activation_module(activation)
        self.pool1 = nn.MaxPool2d(2)  # (n, 32, 14, 14)
        self.conv2, self.act2 = Convolution(32, 64, 5, padding=2), activation_module(activation)
        self.pool2 = nn.MaxPool2d(2)  # (n, 64, 7, 7)
        self.reshape = Reshape(64 * 7 * 7)
        self.fc1, self.act3 = Product(64 * 7 * 7, 512), activation_module(activation)
        self.dropout = nn.Dropout(0.5)
        self.fc2 = Product(512, 10)
        self.softmax = nn.Softmax(dim=1) if probabilities else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or probabilities, of shape ``(n, 10)``."""
        x = self.pool1(self.act1(self.conv1(x)))
        x = self.pool2(self.act2(self.conv2(x)))
        logits: Tensor = self.fc2(self.dropout(self.act3(self.fc1(self.reshape(x)))))
        return logits if self.softmax is None else self.softmax(logits)


def _convolutions(blocks: Sequence[tuple[int, int]], activation: Activation, *, glorot: bool) -> nn.Sequential:
    """Convolutions of 3 x 3 in blocks of a width and a number, each block ending in a pooling of 2 x 2."""
    features, channels = nn.Sequential(), 3
    for width, count in blocks:
        for _ in range(count):
            features.extend([Convolution(channels, width, 3, padding=1, glorot=glorot), activation_module(activation)])
            channels = width
        features.append(nn.MaxPool2d(2))
    return features


class AlexNet(nn.Module):
    """The paper's AlexNet for CIFAR-10: input ``(n, 3, 32, 32)``, output ``(n, 10)`` logits.

    It begins with a reshape, since its graph takes images as rows of numbers; here the reshape keeps their shape.

    Args:
        activation: of all layers but the last.
        glorot: draw the layers in front of it after Glorot, as a hyperbolic tangent needs it.
    Source:
        Ranger (see ``MnistLeNet``), Table I; layer sizes read off its published artifact. TensorFlow's "SAME" pooling
        of 3 x 3 pads on the right and at the bottom, which is ``ceil_mode`` here.
    """

    def __init__(self, *, activation: Activation = "relu", glorot: bool = False) -> None:
        super().__init__()
        self.images = Reshape(3, 32, 32)
        self.features = _convolutions(((32, 1), (64, 1), (128, 3)), activation, glorot=glorot)  # (n, 128, 4, 4)
        self.features[2] = nn.MaxPool2d(3, 2, ceil_mode=True)  # (n, 32, 16, 16)
        self.reshape = Reshape(128 * 4 * 4)
        self.fc1, self.act = Product(128 * 4 * 4, 1500, glorot=glorot), activation_module(activation)
        self.dropout = nn.Dropout(0.5)
        self.fc2 = Product(1500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, 10)``."""
        x = self.reshape(self.features(self.images(x)))
        logits: Tensor = self.fc2(self.dropout(self.act(self.fc1(x))))
        return logits


class Vgg(nn.Module):
    """Convolutions of 3 x 3 in blocks, each ending in a pooling of 2 x 2, then fully connected layers; logits.

    Args:
        blocks: width and number of the convolutions of each block.
        neurons: of the fully connected layers, the classes last.
        pixels: height and width of the RGB images.
        activation: of all layers but the last.
        dropout: after each fully connected layer but the last, in training.
        glorot: as of :class:`AlexNet`.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[int, int]],
        neurons: Sequence[int],
        *,
        pixels: int,
        activation: Activation = "relu",
        dropout: float = 0.5,
        glorot: bool = False,
    ) -> None:
        super().__init__()
        self.features = _convolutions(blocks, activation, glorot=glorot)
        width = blocks[-1][0] * (pixels >> len(blocks)) ** 2
        self.reshape = Reshape(width)
        self.head = nn.Sequential()
        for features, count in pairwise((width, *neurons[:-1])):
            layer = Product(features, count, glorot=glorot)
            self.head.extend([layer, activation_module(activation), nn.Dropout(dropout)])
        self.output = Product(neurons[-2], neurons[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, neurons[-1])``."""
        logits: Tensor = self.output(self.head(self.reshape(self.features(x))))
        return logits


class Vgg11(Vgg):
    """The paper's VGG11 for traffic signs (GTSRB): input ``(n, 3, 32, 32)``, output ``(n, 43)`` logits.

    Eight convolutions and three fully connected layers, narrower than Simonyan and Zisserman's.

    Source:
        Ranger (see ``MnistLeNet``), Table I; layer sizes read off its published artifact.
    """

    def __init__(self, *, classes: int = 43, activation: Activation = "relu", glorot: bool = False) -> None:
        blocks = ((32, 2), (64, 2), (128, 2), (128, 2))
        neurons = (128, 128, classes)
        super().__init__(blocks, neurons, pixels=32, activation=activation, dropout=0.2, glorot=glorot)


class Vgg16(nn.Module):
    """The paper's VGG16 for ImageNet: input ``(n, 3, 224, 224)``, RGB in [0, 255], output ``(n, 1000)`` logits.

    Two operators that torchvision's has not: the mean of the training images is subtracted in the graph, and it ends
    in a softmax if ``probabilities`` are asked for. No adaptive pooling.

    Args:
        probabilities: end in a softmax, as the graph does whose operations the paper counts.
        classes, pixels, width: of a smaller stand-in; ``width`` multiplies the channels and the neurons.
    Source:
        K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
        Table 1, column D; the subtraction and the softmax as in Ranger's published artifact.
    """

    mean: Tensor

    def __init__(
        self, *, probabilities: bool = False, classes: int = 1000, pixels: int = 224, width: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1), persistent=False)
        blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
        narrowed = [(int(channels * width), count) for channels, count in blocks]
        neurons = int(4096 * width)
        self.net = Vgg(narrowed, (neurons, neurons, classes), pixels=pixels)
        self.softmax = nn.Softmax(dim=1) if probabilities else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or probabilities, of shape ``(n, classes)``."""
        logits: Tensor = self.net(x - self.mean)
        return logits if self.softmax is None else self.softmax(logits)
