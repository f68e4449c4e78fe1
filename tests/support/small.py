"""A small network with a convolution and a linear layer, and labelled data that it gets right in part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hoplon.program.inputs import Inputs


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
