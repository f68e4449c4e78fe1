"""The student: a small network from one picture to five waypoints, and its trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from hoplon.errors import DataError
from hoplon_studies.driving.world.camera import SIZE
from hoplon_studies.driving.world.control import WAYPOINTS
from hoplon_studies.driving.world.roads import Floats
from hoplon_studies.driving.world.simulator import Roads

UNITS_PER_OUTPUT = 10.0
"""Units that an output of 1 stands for: outputs near 1 train better than outputs near 25."""

TRAINED: Mapping[Roads, tuple[int, ...]] = {"winding": (0, 1, 2), "straight": (0,)}
"""Training seeds whose weights come with hoplon, by the roads of their lessons."""

_FILES: Mapping[Roads, str] = {"winding": "student", "straight": "straight"}
_WIDTHS = (3, 16, 32, 64, 96, 128)
_KERNELS = (5, 5, 3, 3, 3)
_HIDDEN = 128


class Student(nn.Module):
    """Input ``(n, 3, 64, 64)`` in [0, 1]; output ``(n, 10)``: five pairs (ahead, left), in tens of units.

    Five convolutions of stride 2, each with a ReLU, then two linear layers; about 265,000 weights. Every operator is a
    module of its own, so that every site has a name.

    Source:
        After D. Chen, B. Zhou, V. Koltun and P. Krähenbühl, "Learning by Cheating", CoRL 2019. Departures: a small
        network of its own in place of a ResNet-34 with a branch for each command (there is one command: follow the
        road), and waypoints as numbers in place of the maxima of heat maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for (channels, width), kernel in zip(pairwise(_WIDTHS), _KERNELS, strict=True):
            self.features.extend([nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2), nn.ReLU()])
        self.flatten = nn.Flatten()  # (n, 128, 2, 2) to (n, 512)
        side = SIZE // 2 ** len(_KERNELS)
        self.hidden, self.relu = nn.Linear(_WIDTHS[-1] * side**2, _HIDDEN), nn.ReLU()
        self.output = nn.Linear(_HIDDEN, 2 * WAYPOINTS)

    def forward(self, x: Tensor) -> Tensor:
        """Waypoints of shape ``(n, 10)``, in tens of units."""
        x = self.relu(self.hidden(self.flatten(self.features(x))))
        waypoints: Tensor = self.output(x)
        return waypoints


def waypoints_of(output: Tensor) -> Floats:
    """One output ``(10,)`` as waypoints in units: float64, shape ``(5, 2)``; NaN and infinity stay."""
    found: Floats = output.detach().to(torch.float64).numpy().reshape(WAYPOINTS, 2) * UNITS_PER_OUTPUT
    return found


def as_output(waypoints: Floats) -> Tensor:
    """Waypoints ``(n, 5, 2)`` in units as the student should give them: float32, shape ``(n, 10)``."""
    return torch.from_numpy((np.asarray(waypoints) / UNITS_PER_OUTPUT).reshape(len(waypoints), -1)).to(torch.float32)


def trained(seed: int, roads: Roads = "winding") -> Student:
    """A student with the weights that come with hoplon, in eval mode.

    The recipes that made them stand in ``hoplon_studies.driving.training``.

    Raises:
        DataError: no weights of this seed.
    """
    if seed not in TRAINED[roads]:
        known = TRAINED[roads]
        raise DataError(f"expected a training seed out of {known}, got {seed}; training.train(seed) makes another")
    name = f"{_FILES[roads]}-{seed}.safetensors"
    found = files("hoplon_studies.driving").joinpath("weights", name).read_bytes()
    student = Student()
    student.load_state_dict(load(found))
    return student.eval()
