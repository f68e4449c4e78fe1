"""LeNet for the 8 x 8 digits."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions and three linear layers for images of 8 x 8 pixels; 10 logits.

    Input ``(n, 1, 8, 8)``, output ``(n, 10)``. Every operator is a module of its own, so that every site has
    a name.

    Source:
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-Based Learning Applied to Document
        Recognition", Proceedings of the IEEE, 1998, section II.B (LeNet-5). Departures: kernels of 3 x 3 with
        padding, since the images are 8 x 8; ReLU and max-pooling, as is usual today; a linear last layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)  # (n, 6, 8, 8)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)  # (n, 6, 4, 4)
        self.conv2 = nn.Conv2d(6, 16, 3, padding=1)  # (n, 16, 4, 4)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)  # (n, 16, 2, 2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(64, 120)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, 10)``."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(self.flatten(x)))
        logits: Tensor = self.fc3(self.relu4(self.fc2(x)))
        return logits
