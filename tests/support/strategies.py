"""Random networks of feature maps, for tests of replay."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import Phase, strategies as st
from torch import Tensor, nn

BATCH = 3
# Sign, every part of the exponent, the first and the last bits of the mantissa.
BITS = (31, 30, 29, 27, 24, 23, 22, 12, 3, 0)


@dataclass(frozen=True)
class Layer:
    """One step of a random network; ``numbers`` decide its details."""

    kind: str
    numbers: tuple[int, ...] = field(default=(0,) * 6)


class Random(nn.Module):
    """Layers one after another; some keep what came before and take it up again."""

    def __init__(self, layers: tuple[Layer, ...], size: tuple[int, int]) -> None:
        super().__init__()
        self.layers, self.parts = layers, nn.ModuleDict()
        channels, height, width = 4, *size
        for number, layer in enumerate(layers):
            module = self._module(layer, channels, height, width)
            if module is not None:
                self.parts[str(number)] = module
            with torch.no_grad():
                shape = self._step(number, torch.zeros(1, channels, height, width)).shape
            channels, height, width = shape[1:]
        self.head = nn.Linear(channels * height * width, 5)

    def _module(self, layer: Layer, channels: int, height: int, width: int) -> nn.Module | None:
        a, b, c, d, e, f = layer.numbers
        if layer.kind in ("conv", "residual", "branches"):
            kernel = (1 + a % 3, 1 + b % 3)
            dilation = 1 + c % 2
            padding = (d % 3, e % 3)
            reach = [(k - 1) * dilation + 1 for k in kernel]
            if reach[0] > height + 2 * padding[0] or reach[1] > width + 2 * padding[1]:
                kernel, dilation = (1, 1), 1
            stride = 1 + f % 2
            if layer.kind != "conv":
                kernel, stride, padding, dilation = (3, 3), 1, (1, 1), 1
            groups = (1, 2, channels)[(a + f) % 3] if channels % 2 == 0 else 1
            out = channels if groups != 1 or layer.kind != "conv" else 4 + 2 * (b % 3)
            return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=bool(c % 2))
        if layer.kind == "norm":
            norm = nn.BatchNorm2d(channels)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
            return norm.eval()  # a map of one pixel and one sample has no variance
        return None

    def _step(self, number: int, x: Tensor) -> Tensor:
        layer = self.layers[number]
        a, b, c, d, _, _ = layer.numbers
        module = dict(self.parts).get(str(number))
        if module is not None:
            y = module(x)
            if layer.kind == "residual":
                return F.relu(y) + x
            return torch.cat([y, x[:, ::2], y.clamp(-1, 1)], 1) if layer.kind == "branches" else y
        if layer.kind == "relu":
            return F.relu(x) if a % 2 else F.leaky_relu(x, 0.1)
        if layer.kind == "thin":
            return F.pad(x[:, :, a % 2 :: 2, ::2], (b % 2, 0, c % 2, 1, 1, d % 2))
        if min(x.shape[2:]) < 3:
            return x * 2
        if layer.kind == "max":
            return F.max_pool2d(x, (2 + a % 2, 2), stride=1 + b % 2, padding=c % 2, ceil_mode=bool(d % 2))
        return F.avg_pool2d(x, 2 + a % 2, stride=1 + b % 2, padding=c % 2)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(len(self.layers)):
            x = self._step(number, x)
        return self.head(x.flatten(1))


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # every try captures a model: no shrinking
KINDS = ("conv", "conv", "conv", "norm", "relu", "relu", "residual", "branches", "thin", "max", "avg")
LAYERS = st.lists(
    st.builds(Layer, st.sampled_from(KINDS), st.tuples(*[st.integers(0, 5)] * 6)), min_size=2, max_size=8
).map(tuple)
SIZES = st.tuples(st.integers(5, 14), st.integers(5, 14))
