from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.program.capturing import capture
from hoplon.protections.ranges import inherent_range

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "relu": (F.relu, 0, math.inf),
    "relu6": (F.relu6, 0, 6),
    "hardtanh": (lambda x: F.hardtanh(x, -3, 2), -3, 2),
    "elu": (lambda x: F.elu(x, 1.5), -1.5, math.inf),
    "celu": (lambda x: F.celu(x, 2.0), -2, math.inf),
    "selu": (F.selu, -1.7580993, math.inf),
    "gelu": (F.gelu, -0.169972, math.inf),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), -0.170041, math.inf),
    "silu": (F.silu, -0.278465, math.inf),
    "mish": (F.mish, -0.308843, math.inf),
    "hardswish": (F.hardswish, -0.375, math.inf),
    "softplus": (F.softplus, 0, math.inf),
    "sigmoid": (torch.sigmoid, 0, 1),
    "hardsigmoid": (F.hardsigmoid, 0, 1),
    "tanh": (torch.tanh, -1, 1),
    "softmax": (lambda x: x.softmax(1), 0, 1),
    "log_softmax": (lambda x: x.log_softmax(1), -math.inf, 0),
    "log_sigmoid": (F.logsigmoid, -math.inf, 0),
    "atan": (torch.atan, -math.pi / 2, math.pi / 2),
    "leaky_relu": (F.leaky_relu, -math.inf, math.inf),
    "cos": (torch.cos, -math.inf, math.inf),  # not an activation: nothing is claimed
}


class _Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_value_leaves_the_range_and_its_finite_ends_are_tight(name: str) -> None:
    function, low, high = FUNCTIONS[name]
    x = torch.cat([torch.linspace(-40, 40, 80_000), torch.tensor([-1e38, 1e38, 1e-40, -0.0, 0.0])]).view(-1, 5)
    program = capture(_Applied(function).eval(), x[:3])
    found = inherent_range(next(step for step in program.compute_steps() if step.op is not None))
    values = function(torch.cat([x, x.flip(0) * 2]))
    assert (values >= found[0]).all()
    assert (values <= found[1]).all()
    assert found == pytest.approx((low, high), rel=1e-3, abs=1e-6)
