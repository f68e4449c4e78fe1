"""Steering networks of the Ranger paper: one camera frame to one steering angle."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from hoplon_studies.networks.tensorflow_ops import Activation, Convolution, Product, Reshape, activation_module

Unit = Literal["degrees", "radians"]


class Dave(nn.Module):
    """NVIDIA's steering network in the paper's form: input ``(n, 3, 66, 200)``, output ``(n, 1)``, an angle.

    Args:
        unit: ``"radians"``: twice the arc tangent of the last layer, as the paper evaluates it in section IV;
            ``"degrees"``: the last layer itself, as in section V.
        activation: of all layers but the last; those in front of a hyperbolic tangent are drawn after Glorot.
    Source:
        M. Bojarski et al., "End to End Learning for Self-Driving Cars", arXiv:1604.07316, figure 4; the fully
        connected layer of 1164 neurons and the two outputs read off Ranger's published artifact.
    """

    def __init__(self, *, unit: Unit = "degrees", activation: Activation = "relu") -> None:
        super().__init__()
        widths = (3, 24, 36, 48, 64, 64)
        glorot = activation == "tanh"
        shapes = ((5, 2), (5, 2), (5, 2), (3, 1), (3, 1))  # kernel, stride
        self.features = nn.Sequential()
        for (channels, width), (kernel, stride) in zip(pairwise(widths), shapes, strict=True):
            layer = Convolution(channels, width, kernel, stride=stride, glorot=glorot)
            self.features.extend([layer, activation_module(activation)])
        self.reshape = Reshape(64 * 18)  # of (n, 64, 1, 18)
        self.head = nn.Sequential()
        for count, width in pairwise((64 * 18, 1164, 100, 50, 10)):
            self.head.extend([Product(count, width, glorot=glorot), activation_module(activation), nn.Dropout(0.2)])
        self.output = Product(10, 1)
        self._in_radians = unit == "radians"

    def forward(self, x: Tensor) -> Tensor:
        """Steering angles of shape ``(n, 1)``."""
        angle: Tensor = self.output(self.head(self.reshape(self.features(x))))
        return 2.0 * angle.atan() if self._in_radians else angle


class Comma(nn.Module):
    """The steering network of Comma.ai in the paper's form: input ``(n, 3, 66, 200)``, output ``(n, 1)``, degrees.

    Args:
        tanh: put hyperbolic tangents in place of the ELUs, and draw the layers in front of them after Glorot.
    Source:
        E. Santana and G. Hotz, "Learning a Driving Simulator", arXiv:1608.01230, and the repository that goes with it
        (commaai/research, ``train_steering_model.py``). Departure: TensorFlow's "SAME" pads the second convolution by
        1 and 2 columns, here by 2 and 2; the shapes are the same.
    """

    def __init__(self, *, tanh: bool = False) -> None:
        super().__init__()
        activation = nn.Tanh if tanh else nn.ELU
        conv, product = partial(Convolution, glorot=tanh), partial(Product, glorot=tanh)
        self.conv1, self.act1 = conv(3, 16, 8, stride=4, padding=(3, 2)), activation()  # (n, 16, 17, 50)
        self.conv2, self.act2 = conv(16, 32, 5, stride=2, padding=2), activation()  # (n, 32, 9, 25)
        self.conv3 = conv(32, 64, 5, stride=2, padding=2)  # (n, 64, 5, 13)
        self.reshape, self.dropout1, self.act3 = Reshape(64 * 5 * 13), nn.Dropout(0.2), activation()
        self.fc1, self.dropout2, self.act4 = product(64 * 5 * 13, 512), nn.Dropout(0.5), activation()
        self.fc2 = Product(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Steering angles of shape ``(n, 1)``."""
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        x = self.act3(self.dropout1(self.reshape(self.conv3(x))))
        angle: Tensor = self.fc2(self.act4(self.dropout2(self.fc1(x))))
        return angle
