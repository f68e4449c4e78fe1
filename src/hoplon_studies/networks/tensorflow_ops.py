"""Operators written apart as TensorFlow 1.x draws them: convolution and bias, product and bias, reshape."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]


class Convolution(nn.Module):
    """A convolution, then its bias as an operator of its own: two value sites, ``conv`` and ``add``.

    Input ``(n, in_channels, h, w)``; weights as ``torch.nn.Conv2d`` has them, drawn after He et al., ICCV 2015.

    Args:
        glorot: draw them after Glorot and Bengio, AISTATS 2010, as a hyperbolic tangent behind needs it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        glorot: bool = False,
    ) -> None:
        super().__init__()
        self._glorot = glorot
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        if glorot:
            nn.init.xavier_normal_(self.weight)
        else:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self._stride, self._padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """``(n, out_channels, h', w')``."""
        x = F.conv2d(x, self.weight, None, self._stride, self._padding)
        return x if self.bias is None else x + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        """How its weights were drawn, where not after He et al.: digests of recipes tell it."""
        return "glorot" if self._glorot else ""


class Product(nn.Module):
    """A matrix product, then its bias as an operator of its own: two value sites, ``matmul`` and ``add``.

    ``weight`` has the shape ``(features, neurons)``, as in TensorFlow; drawn as those of :class:`Convolution`.
    """

    def __init__(self, features: int, neurons: int, *, glorot: bool = False) -> None:
        super().__init__()
        self._glorot = glorot
        spread = 2 / (features + neurons) if glorot else 2 / features
        self.weight = nn.Parameter(torch.randn(features, neurons) * math.sqrt(spread))
        self.bias = nn.Parameter(torch.zeros(neurons))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, features)`` to ``(n, neurons)``."""
        return x.matmul(self.weight) + self.bias

    def extra_repr(self) -> str:
        """As of :class:`Convolution`."""
        return "glorot" if self._glorot else ""


class Reshape(nn.Module):
    """A reshape whose output can be struck: one value site, ``cat``.

    In PyTorch a reshape is a view of its input and no place of its own; in TensorFlow it is an operator whose output
    is drawn like any other. A concatenation of one tensor is such an operator, and Ranger's bounds travel through it.

    Args:
        shape: of one sample.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape)``."""
        return torch.cat([x.reshape(-1, *self._shape)])


class Normalisation(nn.Module):
    """Batch norm over channels; in eval mode one multiplication and one addition: two value sites, ``mul`` and ``add``.

    In train mode it is ``torch.nn.functional.batch_norm``. What is computed from parameters alone is no site.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Shape of the input, ``(n, channels, h, w)``."""
        if self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, eps=self._epsilon)
        scale = self.weight * (self.running_var + self._epsilon).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


def activation_module(name: Activation) -> nn.Module:
    """A ReLU, or the hyperbolic tangent that Hong et al. (USENIX Security 2019) put in its place."""
    return nn.ReLU() if name == "relu" else nn.Tanh()
