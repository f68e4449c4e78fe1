"""Training of students: an expert that sees the road says where to go, a student sees the same through a camera.

The weights that come with hoplon were made by ``safetensors.torch.save_file(student.state_dict(), path)``, for each
seed of ``student.TRAINED``, on one thread of an x86-64 processor: ``train(seed)``, and on straight roads ``train(seed,
tracks=160, roads="straight")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hoplon.program.inputs import Inputs
from hoplon.zoo.seeding import one_thread, seeded
from hoplon_studies.driving.student import UNITS_PER_OUTPUT, Student, as_output
from hoplon_studies.driving.world.camera import as_input, photograph
from hoplon_studies.driving.world.control import STRAIGHT_ON, Command, clipped, expert_waypoints, pursue
from hoplon_studies.driving.world.simulator import Roads, Scenario, World

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and its total."""

_DECISIONS: Mapping[Roads, int] = {"winding": 200, "straight": 125}  # of a lesson: 16 seconds, or the straight
_BURST_EVERY, _BURST_LONGEST = 25, 8  # decisions
_BURST_STEERING = 0.2  # radians


@final
@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures, and the waypoints of the expert.

    ``pictures``: uint8, shape ``(n, 64, 64)``, rows of the palette; ``targets``: float32, ``(n, 10)``, in the student's
    units.
    """

    pictures: NDArray[np.uint8]
    targets: Tensor

    def inputs(self, name: str) -> Inputs:
        """The pictures as data."""
        return Inputs(as_input(self.pictures), name=name)

    def labelled(self, name: str) -> Inputs:
        """The pictures with their targets as labels, which are whole numbers: in thousandths of the student's units."""
        return Inputs(as_input(self.pictures), (self.targets * 1000).round().to(torch.int64), name=name)


def lessons(
    seed: int,
    *,
    tracks: int,
    roads: Roads = "winding",
    decisions: int | None = None,
    progress: Progress | None = None,
) -> Frames:
    """Frames of the expert at the wheel, which now and then is jerked: so the student sees how to get back.

    Args:
        seed: decides tracks, starts and jerks. Episodes of another seed are on other tracks.
        tracks: one rolling start on each.
        roads: their kind.
        decisions: frames per track, 200 on winding roads and 125 on straight ones by default; fewer where the car was
            jerked off the road.
        progress: told each track.
    """
    pictures, targets = [], []
    for number in range(tracks):
        world = World(Scenario.drawn(seed, number, roads))
        jerks = _jerks(np.random.default_rng([seed, number, 1]), decisions or _DECISIONS[roads])
        for jerk in jerks:
            pose = world.pose
            waypoints = expert_waypoints(world.path, pose, world.near)
            pictures.append(photograph(world.road.ground, pose))
            targets.append(waypoints)
            command = pursue(clipped(waypoints), pose.speed)
            world.advance(Command(command.steering + float(jerk), command.gas, command.brake))
            if world.has_hit_the_obstacle or world.has_left_the_road:
                break
        if progress is not None:
            progress("lessons", number + 1, tracks)
    return Frames(np.stack(pictures), as_output(np.stack(targets)))


def _jerks(generator: np.random.Generator, decisions: int) -> NDArray[np.float64]:
    """Steering that is added, in radians: bursts of up to 0.64 seconds, one in about two seconds."""
    jerks = np.zeros(decisions)
    for start in range(int(generator.integers(_BURST_EVERY)), decisions, _BURST_EVERY):
        length = int(generator.integers(2, _BURST_LONGEST + 1))
        jerks[start : start + length] = generator.uniform(-_BURST_STEERING, _BURST_STEERING)
    return jerks


def train(
    seed: int,
    *,
    tracks: int = 80,
    roads: Roads = "winding",
    epochs: int = 12,
    batch: int = 64,
    progress: Progress | None = None,
) -> Student:
    """A student, taught from scratch on ``tracks`` tracks of its own; takes minutes on one core.

    Half of the frames of a batch are mirrored, and their waypoints too. Adam, smooth L1 loss, a learning rate that
    falls to zero along a cosine. The same seed gives the same weights on the same kernels.
    """
    frames = lessons(lesson_seed(seed), tracks=tracks, roads=roads, progress=progress)
    with seeded(seed):
        student = Student().train()
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
    steps = -(-len(frames.targets) // batch) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.enable_grad():
        for epoch in range(epochs):
            for x, y in _batches(frames, batch, generator):
                optimiser.zero_grad()
                F.smooth_l1_loss(student(x), y, beta=0.1).backward()
                optimiser.step()
                schedule.step()
            if progress is not None:
                progress("training", epoch + 1, epochs)
    optimiser.zero_grad()
    return student.eval()


def lesson_seed(seed: int) -> int:
    """Lessons are on tracks that no study drives on: their seeds begin at a million."""
    return 1_000_000 + seed


def _batches(frames: Frames, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """All frames in a new order, half of them mirrored."""
    side = torch.tensor([1.0, -1.0]).repeat(frames.targets.shape[1] // 2)
    for rows in torch.randperm(len(frames.targets), generator=generator).split(size):
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        x, y = as_input(frames.pictures[rows.numpy()]), frames.targets[rows]
        yield torch.where(mirrored[:, None, None, None], x.flip(3), x), torch.where(mirrored[:, None], y * side, y)


def squared_error(output: Tensor, labels: Tensor) -> Tensor:
    """Mean over waypoints, the loss of scores; ``labels`` as :meth:`Frames.labelled` has them."""
    return F.mse_loss(output, labels.to(output.dtype) / 1000)


def waypoint_error(student: nn.Module, frames: Frames) -> float:
    """Mean distance of a student's waypoints from the expert's, in units."""
    parts = np.array_split(frames.pictures, -(-len(frames.pictures) // 256))
    with torch.no_grad():
        return _mean_distance(torch.cat([student(as_input(part)) for part in parts]), frames)


def mean_error(frames: Frames, taught: Frames | None) -> float:
    """Mean distance, in units, of a predictor that does not look: the mean of ``taught``, or straight on for None."""
    said = as_output(STRAIGHT_ON[None]) if taught is None else taught.targets.mean(0, keepdim=True)
    return _mean_distance(said, frames)


def _mean_distance(outputs: Tensor, frames: Frames) -> float:
    pairs = (outputs - frames.targets).reshape(len(frames.targets), -1, 2)
    return float(pairs.norm(dim=2).mean()) * UNITS_PER_OUTPUT
