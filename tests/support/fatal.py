"""A network that an infinite value ends: by an error, by a loop without an end, or by killing its process."""

from __future__ import annotations

import os
import signal
import time
from typing import Literal

import torch
from torch import Tensor, nn

from hoplon import Inputs, capture
from hoplon.program.program import Program

End = Literal["exception", "hang", "stuck", "death"]
INPUTS = 6


class Fatal(nn.Module):
    """Boxes as exponentials, and classes; a box that is not finite is fatal."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end
        self.features, self.box, self.classes = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).relu()
        box = self.box(features).exp()
        while not bool(box.isfinite().all()):
            if self.end == "exception":
                raise ArithmeticError("a box without an end")
            if self.end == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.end == "stuck":  # as an operator that does not come back
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(0.01)
        return self.classes(features * box.mean(1, keepdim=True))


def program(end: End) -> Program:
    """The network, with the same weights whatever its end."""
    torch.manual_seed(3)
    model = Fatal(end).eval()
    return capture(model, data().x[:2], form="eager")


def data() -> Inputs:
    """Some inputs."""
    return Inputs(torch.randn(INPUTS, 5, generator=torch.Generator().manual_seed(1)), name="random")
