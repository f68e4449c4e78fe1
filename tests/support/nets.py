"""Tiny networks that between them hold every shape of graph the core has to get right, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.tanh(self.fc2(F.relu(self.fc1(x)))))


class Residual(nn.Module):
    """One ReLU module called twice, a strided shortcut, batch norm, a mean as pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2)
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.head = nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(self.relu(h + shortcut).mean((2, 3)))


class Concat(nn.Module):
    """Branches that meet in a concatenation; pooling, dropout in eval, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 3, padding=1)
        self.relu, self.avg = nn.ReLU(inplace=True), nn.AvgPool2d(2)
        self.drop, self.head = nn.Dropout(), nn.Linear(7 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.relu(self.left(x)), F.gelu(self.right(x))], 1)
        return self.head(self.drop(torch.flatten(self.avg(joined), 1)))


class Tied(nn.Module):
    """Two layers that share one weight, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        return self.head(torch.relu(self.second(torch.relu(self.second(x)))))


class InPlace(nn.Module):
    """Operators that overwrite their input, a slice of another value among them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        y = self.conv2(x)
        y += x
        y[:, :2].mul_(1.5)
        F.leaky_relu_(y, 0.1)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


@dataclass(frozen=True)
class Net:
    """A network, the shape of one sample, and its sites as a person would name them."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    sites: tuple[str, ...]

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build().eval()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 2)
        return model

    def batch(self, size: int, seed: int = 1) -> Tensor:
        return torch.randn(size, *self.sample, generator=torch.Generator().manual_seed(seed))


NETS: dict[str, Net] = {
    "mlp": Net(Mlp, (6,), ("fc1:linear", ":relu", "fc2:linear", ":tanh", "fc3:linear")),
    "residual": Net(
        Residual,
        (2, 8, 8),
        (
            *("stem:conv", "pool:max_pool", "conv1:conv", "bn1:batch_norm", "relu:relu", "conv2:conv"),
            *("bn2:batch_norm", ":pad", ":add", "relu:relu.1", ":mean", "head:linear"),
        ),
    ),
    "concat": Net(
        Concat,
        (2, 6, 6),
        ("left:conv", "relu:relu", "right:conv", ":gelu", ":cat", "avg:avg_pool", "head:linear"),
    ),
    "tied": Net(
        Tied,
        (6,),
        ("first:linear", ":sigmoid", "second:linear", ":relu", "second:linear.1", ":relu.1", "head:linear"),
    ),
    "in-place": Net(
        InPlace,
        (2, 5, 5),
        (
            *("conv1:conv", "relu:relu", "conv2:conv", ":add", ":mul", ":leaky_relu"),
            *(":adaptive_avg_pool", "head:linear"),
        ),
    ),
}
