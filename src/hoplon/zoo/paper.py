"""Networks of the Ranger paper, built as its published graphs are, so that what is counted on them can be compared."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class MnistLeNet(nn.Module):
    """The paper's LeNet for MNIST: input ``(n, 1, 28, 28)``, output ``(n, 10)`` probabilities.

    Source:
        Z. Chen, G. Li and K. Pattabiraman, "A Low-cost Fault Corrector for Deep Neural Networks through Range
        Restriction", DSN 2021, Table I; layer sizes read off its published artifact (TensorFlow's MNIST tutorial).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 32, 5, padding=2), nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)  # (n, 32, 14, 14)
        self.conv2, self.relu2 = nn.Conv2d(32, 64, 5, padding=2), nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)  # (n, 64, 7, 7)
        self.flatten = nn.Flatten()
        self.fc1, self.relu3 = nn.Linear(64 * 7 * 7, 512), nn.ReLU()
        self.fc2, self.softmax = nn.Linear(512, 10), nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of shape ``(n, 10)``."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        probabilities: Tensor = self.softmax(self.fc2(self.relu3(self.fc1(self.flatten(x)))))
        return probabilities


class Dave(nn.Module):
    """NVIDIA's steering network in the paper's form: input ``(n, 3, 66, 200)``, output ``(n, 1)``, an angle in degrees.

    Source:
        M. Bojarski et al., "End to End Learning for Self-Driving Cars", arXiv:1604.07316, figure 4; the fully
        connected layer of 1164 neurons and the output in degrees (section V of the Ranger paper) read off Ranger's
        published artifact.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 36, 48, 64, 64)
        shapes = ((5, 2), (5, 2), (5, 2), (3, 1), (3, 1))  # kernel, stride
        self.features = nn.Sequential()
        for (channels, width), (kernel, stride) in zip(pairwise(widths), shapes, strict=True):
            self.features.extend([nn.Conv2d(channels, width, kernel, stride=stride), nn.ReLU()])
        self.flatten = nn.Flatten()  # (n, 64, 1, 18) to (n, 1152)
        neurons = (64 * 18, 1164, 100, 50, 10)
        self.head = nn.Sequential()
        for count, width in pairwise(neurons):
            self.head.extend([nn.Linear(count, width), nn.ReLU()])
        self.output = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Steering angles of shape ``(n, 1)``."""
        angle: Tensor = self.output(self.head(self.flatten(self.features(x))))
        return angle


class Vgg16(nn.Module):
    """The paper's VGG16 for ImageNet: input ``(n, 3, 224, 224)``, RGB in [0, 255], output ``(n, 1000)`` probabilities.

    Two operators that torchvision's has not: the mean of the training images is subtracted in the graph, and it ends
    in a softmax. No adaptive pooling.

    Source:
        K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
        Table 1, column D; the subtraction and the softmax as in Ranger's published artifact.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1), persistent=False)
        self.features = nn.Sequential()
        channels = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                self.features.extend([nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)])
                channels = width
            self.features.append(nn.MaxPool2d(2))
        self.flatten = nn.Flatten()  # (n, 512, 7, 7) to (n, 25088)
        self.fc1, self.relu1 = nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True)
        self.fc2, self.relu2 = nn.Linear(4096, 4096), nn.ReLU(inplace=True)
        self.fc3, self.softmax = nn.Linear(4096, 1000), nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of shape ``(n, 1000)``."""
        x = self.flatten(self.features(x - self.mean))
        probabilities: Tensor = self.softmax(self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(x))))))
        return probabilities
