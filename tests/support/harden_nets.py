"""Tiny models that differ in how their operators are wired, with weights from a fixed generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return model.eval()


class Residual(nn.Module):
    """Convolution, batch norm, in-place ReLU and a residual addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv1(x)))
        z = self.conv2(y)
        z += y
        z = self.relu(z)
        return self.fc(self.drop(torch.flatten(F.adaptive_avg_pool2d(z, 1), 1)))


class Branches(nn.Module):
    """Concatenation of two activations, max and average pooling, functional ReLU, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 2, 1)
        self.right = nn.Conv2d(2, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        y = F.avg_pool2d(self.pool(y), 3, stride=2, padding=1)
        return self.fc(y.flatten(1))


class Tied(nn.Module):
    """Two linear layers over one storage, an elu, a constant and a buffer outside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("gain", torch.tensor([0.7]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.a(x)) * self.gain + torch.tensor([0.25])
        return self.b(y).relu_()


class Views(nn.Module):
    """An in-place ReLU on a part of a tensor that is read as a whole, and one that overwrites what a view shares."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.fc = nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :2].relu_()
        flat = y.flatten(1)
        y.mul_(0.5).relu_()
        return self.fc(flat)


class Pooled(nn.Module):
    """A max pool that gives its indices, mean over the axes, hardswish and a split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.act = nn.ReLU6(inplace=True)
        self.pool = nn.AdaptiveMaxPool2d(2, return_indices=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, where = self.pool(self.act(self.conv(F.pad(x, (1, 1, 1, 1)))))
        first, second = y.split(2, 1)
        twice = torch.cat([where, where], 1)
        return F.hardswish(self.fc(torch.cat([second, first], 1).mean((2, 3)))) + (twice[:, :1, 0, 0] > 12)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = {
    "residual": Case(Residual, (2, 4, 4)),
    "branches": Case(Branches, (2, 4, 4)),
    "tied": Case(Tied, (4,)),
    "views": Case(Views, (2, 4, 4)),
    "pooled": Case(Pooled, (2, 5, 5)),
}


def sample(name: str, count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, *CASES[name].shape, generator=torch.Generator().manual_seed(seed))
