"""The road of a track: its centre line, what lies where, and how far a point is from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HALF_WIDTH = 40 / 6.0
"""From the centre line to the edge, in units of the simulator; a car is about 5 of them long."""

CELL = 0.4
"""Side of a cell of the painted ground, in units."""

GRASS, DARK_GRASS, WHITE, RED, BLUE = 0, 1, 5, 6, 7
ROAD = (2, 3, 4)  # neighbouring tiles differ a little, so that speed can be seen
PALETTE = np.array(
    [
        *([102, 230, 102], [92, 204, 92], [102, 102, 102], [105, 105, 105], [107, 107, 107]),
        *([255, 255, 255], [255, 0, 0], [30, 60, 200]),
    ],
    dtype=np.uint8,
)

_MARGIN = 70.0  # of grass around the road; beyond it there is more grass
_PATCH = 333.0 / 20
_SMOOTHING = (1.0, 2.0, 3.0, 2.0, 1.0)
_WINDOW = 60


@final
@dataclass(frozen=True, eq=False)
class Road:
    """A closed road.

    Args:
        centre: points on the centre line, about 3.5 units apart, float64, shape ``(tiles, 2)``.
        heading: of the road at each of them, in radians; 0 looks along the second axis.
        polygons: what is painted on grass, in order: corners of a convex polygon, and its colour's row in
            :data:`PALETTE`.
    """

    centre: Floats
    heading: Floats
    polygons: Sequence[tuple[Floats, int]]

    @cached_property
    def line(self) -> Floats:
        """The smoothed centre line, a point each unit: float64, shape ``(points, 2)``."""
        weights = np.array(_SMOOTHING) / sum(_SMOOTHING)
        shifts = range(-(len(weights) // 2), len(weights) // 2 + 1)
        smooth = sum(w * np.roll(self.centre, s, axis=0) for w, s in zip(weights, shifts, strict=True))
        closed = np.vstack([smooth, smooth[:1]])
        arc = np.concatenate([[0.0], np.hypot(*np.diff(closed, axis=0).T).cumsum()])
        at = np.arange(0.0, np.floor(arc[-1]))
        return np.stack([np.interp(at, arc, closed[:, axis]) for axis in (0, 1)], axis=1)

    def nearest(self, point: Floats, near: int | None = None) -> int:
        """The number of the point of :attr:`line` closest to a point; ``near``: not far from that one."""
        if near is None:
            return int(((self.line - point) ** 2).sum(1).argmin())
        around = np.arange(near - _WINDOW // 2, near + _WINDOW) % len(self.line)
        return int(around[((self.line[around] - point) ** 2).sum(1).argmin()])

    def distance(self, point: Floats, near: int) -> float:
        """From the unsmoothed centre line, in units, looking at the parts of it close to ``line[near]``."""
        tile = near * len(self.centre) // len(self.line)
        around = np.arange(tile - 12, tile + 14) % len(self.centre)
        start = self.centre[around[:-1]]
        along = self.centre[around[1:]] - start
        share = (((point - start) * along).sum(1) / (along**2).sum(1)).clip(0.0, 1.0)
        return float(np.hypot(*(start + share[:, None] * along - point).T).min())

    @cached_property
    def ground(self) -> Ground:
        """The track painted from above."""
        low = self.centre.min(0) - _MARGIN
        shape = np.ceil((self.centre.max(0) + _MARGIN - low) / CELL).astype(int)
        cells = _grass(low, shape)
        for corners, colour in self.polygons:
            _fill(cells, (corners - low) / CELL, colour)
        return Ground(low, cells)


@final
@dataclass(frozen=True, eq=False)
class Ground:
    """Colours from above: ``cells[i, j]`` is a row of :data:`PALETTE` at ``low + CELL * (i, j)``."""

    low: Floats
    cells: NDArray[np.uint8]

    def colours(self, x: Floats, y: Floats) -> NDArray[np.uint8]:
        """At these points, in units of the simulator; grass outside of what is painted."""
        height, width = self.cells.shape
        i = ((x - self.low[0]) * (1 / CELL)).astype(np.int64)
        j = ((y - self.low[1]) * (1 / CELL)).astype(np.int64)
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        found = self.cells[i.clip(0, height - 1), j.clip(0, width - 1)]
        return np.where(inside, found, np.uint8(GRASS))


def _grass(low: Floats, shape: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A chequerboard, which moves past when the car does."""
    i, j = (np.floor((low[axis] + CELL * np.arange(shape[axis])) / _PATCH).astype(int) for axis in (0, 1))
    dark = (i[:, None] % 2 == 0) & (j[None, :] % 2 == 0)
    return np.where(dark, DARK_GRASS, GRASS).astype(np.uint8)


def _fill(cells: NDArray[np.uint8], corners: Floats, colour: int) -> None:
    """Paint a convex polygon, its corners in cells."""
    first = np.floor(corners.min(0)).astype(int).clip(0)
    last = (np.ceil(corners.max(0)).astype(int) + 1).clip(first, cells.shape)
    i, j = np.arange(first[0], last[0])[:, None], np.arange(first[1], last[1])[None, :]
    sides = [
        (b[0] - a[0]) * (j - a[1]) - (b[1] - a[1]) * (i - a[0])
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    inside = np.all([side >= 0 for side in sides], axis=0) | np.all([side <= 0 for side in sides], axis=0)
    cells[first[0] : last[0], first[1] : last[1]][inside] = colour
