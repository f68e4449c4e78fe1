"""Tiny networks whose sums are exact in their dtype, so that words and outcomes are the same on every processor.

Weights and inputs are small multiples of powers of two; biases are odd multiples of a finer one, so that no sum of a
layer is zero and no two logits are equal by accident.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hoplon as hp

SAMPLES = 12
CLASSES = 4


class Convolutional(nn.Module):
    """Convolution, batch norm, ReLU, both kinds of pooling, linear: takes ``(n, 1, 6, 6)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.pool = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, eps=0.0), nn.MaxPool2d(2)
        self.second, self.mean, self.head = nn.Conv2d(3, 4, 2), nn.AvgPool2d(2), nn.Linear(4, CLASSES)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.first(x))))
        return self.head(self.mean(self.relu(self.second(x))).flatten(1))


class Residual(nn.Module):
    """One ReLU module called twice around a sum: takes ``(n, 1, 4, 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        return self.head(self.relu(x + self.branch(x)).mean((2, 3)))


class Branching(nn.Module):
    """Its way depends on a value, so that it runs in eager form only: takes ``(n, 6)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 4), nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.left(x) if float(x.sum()) > 4 else self.right(x)


class Narrow(nn.Module):
    """Two linear layers whose sums have at most eight significant bits: takes ``(n, 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Convolutional: (1, 6, 6),
    Residual: (1, 4, 4),
    Branching: (6,),
    Narrow: (4,),
}

# Of the weights; with these the logits of every input are well apart.
SEEDS: dict[type[nn.Module], int] = {Convolutional: 1, Residual: 1, Branching: 2, Narrow: 0}


def _multiples(shape: tuple[int, ...], most: int, unit: float, generator: torch.Generator) -> Tensor:
    """Multiples of a unit, up to the most in either direction, zero left out."""
    size = torch.randint(1, most + 1, shape, generator=generator)
    sign = 2 * torch.randint(2, shape, generator=generator) - 1
    return size * sign * unit


def build(kind: type[nn.Module]) -> nn.Module:
    """A network in eval mode, always with the same weights."""
    generator = torch.Generator().manual_seed(SEEDS[kind])
    net = kind().eval()
    narrow = kind is Narrow
    bias_unit = 1 / 8
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                most, unit = (2, 1 / 2) if narrow else (4, 1 / 4)
                module.weight.copy_(_multiples(tuple(module.weight.shape), most, unit, generator))
                odd = 2 * torch.randint(-4, 4, module.bias.shape, generator=generator) + 1
                module.bias.copy_(odd * bias_unit)
                bias_unit /= 4 if narrow else 16
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.tensor([0.25, -0.25, 0.5]))
                module.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
                module.weight.copy_(torch.tensor([1.0, 0.5, 0.5]))
                module.bias.copy_(torch.tensor([0.5, 0.25, 0.25]))
    return net


def inputs(kind: type[nn.Module], *, seed: int = 1, count: int = SAMPLES) -> hp.Inputs:
    """Inputs of a network, labelled by their number, which is the network's class for some only."""
    generator = torch.Generator().manual_seed(seed)
    x = _multiples((count, *SHAPES[kind]), 2 if kind is Narrow else 4, 1 / 2, generator)
    return hp.Inputs(x, torch.arange(count) % 3, name="multiples")


def program(kind: type[nn.Module]) -> hp.Program:
    """A captured network; the one that branches in eager form."""
    form = "eager" if kind is Branching else "auto"
    return hp.capture(build(kind), inputs(kind).x[:2], name=kind.__name__.lower(), form=form)


def narrow_program() -> hp.Program:
    """The narrow network in bfloat16."""
    net = build(Narrow).to(torch.bfloat16)
    return hp.capture(net, narrow_inputs().x[:2], name="narrow")


def narrow_inputs() -> hp.Inputs:
    """Inputs of the narrow network in bfloat16."""
    data = inputs(Narrow)
    return hp.Inputs(data.x.to(torch.bfloat16), data.y, name=data.name)


def convolutional() -> tuple[nn.Module, Tensor]:
    """What a command takes for a model: the network and an example batch."""
    return build(Convolutional), inputs(Convolutional).x[:4]
