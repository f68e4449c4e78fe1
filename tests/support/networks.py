"""Toy networks: every shape of graph, every way of sharing memory, one with labelled data, a wide one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.program.capturing import Form, capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program

CHANNELS = 64


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


class InPlaceSum(nn.Module):
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


class Shared(nn.Module):
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


class Wide(nn.Module):
    """Convolutions wide enough to be run by blocks of channels, batch norms, a sum that takes an older map up again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(2))
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.first(x)).relu()
        x = (self.norms[1](self.second(x)) + x).relu()
        return self.head(x.mean((2, 3)))


def small_net() -> nn.Module:
    """Takes ``(n, 1, 6, 6)``, gives ``(n, 4)``; in eval mode."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return net


def small_data() -> tuple[Inputs, Inputs]:
    """Held-out and calibration data; labels are what the network says, but for each fourth sample."""
    generator = torch.Generator().manual_seed(1)
    net = small_net()

    def labelled(x: Tensor, name: str) -> Inputs:
        with torch.no_grad():
            y = net(x).argmax(1)
        y[::4] = (y[::4] + 1) % 4
        return Inputs(x, y, name=name)

    return (
        labelled(torch.randn(20, 1, 6, 6, generator=generator), "small, held out"),
        labelled(torch.randn(16, 1, 6, 6, generator=generator), "small, calibration"),
    )


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, its state drawn from a normal distribution, running variances at least 0.5."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return model.eval()


@dataclass(frozen=True)
class Network:
    """A network, the shape of one sample, and its sites as a person would name them.

    ``drawn``: its state is that of :func:`seeded`, instead of the layers' own beginning.
    """

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    sites: tuple[str, ...] = ()
    drawn: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build().eval()
            if self.drawn:
                return seeded(model, seed)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 2)
        return model

    def batch(self, size: int, seed: int = 1) -> Tensor:
        return torch.randn(size, *self.sample, generator=torch.Generator().manual_seed(seed))


NETWORKS: dict[str, Network] = {
    "mlp": Network(Mlp, (6,), ("fc1:linear", ":relu", "fc2:linear", ":tanh", "fc3:linear")),
    "residual": Network(
        Residual,
        (2, 8, 8),
        (
            *("stem:conv", "pool:max_pool", "conv1:conv", "bn1:batch_norm", "relu:relu", "conv2:conv"),
            *("bn2:batch_norm", ":pad", ":add", "relu:relu.1", ":mean", "head:linear"),
        ),
    ),
    "concat": Network(
        Concat,
        (2, 6, 6),
        ("left:conv", "relu:relu", "right:conv", ":gelu", ":cat", "avg:avg_pool", "head:linear"),
    ),
    "tied": Network(
        Tied,
        (6,),
        ("first:linear", ":sigmoid", "second:linear", ":relu", "second:linear.1", ":relu.1", "head:linear"),
    ),
    "in-place": Network(
        InPlace,
        (2, 5, 5),
        (
            *("conv1:conv", "relu:relu", "conv2:conv", ":add", ":mul", ":leaky_relu"),
            *(":adaptive_avg_pool", "head:linear"),
        ),
    ),
    "in-place-sum": Network(InPlaceSum, (2, 4, 4), drawn=True),
    "branches": Network(Branches, (2, 4, 4), drawn=True),
    "shared": Network(Shared, (4,), drawn=True),
    "views": Network(Views, (2, 4, 4), drawn=True),
    "pooled": Network(Pooled, (2, 5, 5), drawn=True),
    "small": Network(small_net, (1, 6, 6)),
}

# Between them they hold every shape of graph, and tell their sites.
GRAPHS = tuple(name for name, network in NETWORKS.items() if network.sites)
# Between them they hold every way in which operators share memory.
WIRINGS = tuple(name for name, network in NETWORKS.items() if network.drawn)


@functools.cache
def _captured(name: str, batch: int, form: Form) -> tuple[Program, str]:
    network = NETWORKS[name]
    program = capture(network.model(), network.batch(batch), form=form)
    return program, program.fingerprint()


def captured(name: str, batch: int = 2, *, form: Form = "auto") -> Program:
    """The network captured on a batch of this size: one program for all tests, which none may write to."""
    program, fingerprint = _captured(name, batch, form)
    assert program.fingerprint() == fingerprint, f"a test has written to the memory of {name}"
    return program
