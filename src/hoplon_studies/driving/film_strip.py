"""A film strip: one crash and its hardened twin, from above and as the student saw it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from hoplon_studies.driving.episodes import Driver, Episode, Moment, drive
from hoplon_studies.driving.roads import PALETTE, Floats, Road
from hoplon_studies.driving.simulator import SECONDS_PER_DECISION, Pose, Scenario, World
from hoplon_studies.framework.figures import Figure, picture

FRAMES = 6
_SIDE, _GAP, _LEFT, _TOP = 150, 8, 10, 34
_RADIUS = 26.0  # units from the car to the edge of a panel
_CAR = np.array([[1.2, 2.6], [-1.2, 2.6], [-1.2, -2.4], [1.2, -2.4]])
_INK, _PATH, _SAID = "#111827", "#1d4ed8", "#dc2626"


@final
class Film:
    """One episode, all of it kept."""

    def __init__(self, scenario: Scenario, driver: Driver, *, decisions: int) -> None:
        self.moments: list[Moment] = []
        self.road: Road | None = None
        self.episode: Episode = drive(scenario, driver, decisions=decisions, watch=self._keep)

    def _keep(self, world: World, moment: Moment) -> None:
        self.road = world.road
        self.moments.append(moment)


def film_strip(name: str, *, title: str, films: Sequence[tuple[str, Film]]) -> Figure:
    """The films one below the other, at the same moments: up to the end of the shortest.

    Args:
        name: of the file.
        title: under it.
        films: each with its caption.
    """
    last = min(len(film.moments) for _, film in films) - 1
    times = [round(last * k / (FRAMES - 1)) for k in range(FRAMES)]
    block = _TOP + 2 * _SIDE + 2 * _GAP
    width, height = 2 * _LEFT + FRAMES * (_SIDE + _GAP) - _GAP, len(films) * block + _GAP
    parts = []
    for row, (caption, film) in enumerate(films):
        top = row * block
        parts.append(f'<text x="{_LEFT}" y="{top + 22}" font-size="14">{caption}</text>')
        for column, at in enumerate(times):
            parts.append(_frame(film, at, _LEFT + column * (_SIDE + _GAP), top + _TOP))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}">'
    )
    content = "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>", ""])
    alt = "; ".join(f"{caption}: {film.episode.ending} after {film.episode.seconds:g} s" for caption, film in films)
    return Figure(name, title, alt, content.encode())


def _frame(film: Film, at: int, x: float, y: float) -> str:
    """From above, and below it what the camera took."""
    moment = film.moments[at]
    seen = picture("camera", title="", alt="", pixels=torch.from_numpy(PALETTE[moment.picture]))
    data = base64.b64encode(seen.content).decode("ascii")
    return "\n".join(
        [
            f'<svg x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" viewBox="0 0 {_SIDE} {_SIDE}">',
            _from_above(film, at),
            "</svg>",
            f'<image x="{x}" y="{y + _SIDE + _GAP / 2:g}" width="{_SIDE}" height="{_SIDE}" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>',
        ]
    )


def _from_above(film: Film, at: int) -> str:
    assert film.road is not None
    pose = film.moments[at].pose
    parts = ['<rect width="100%" height="100%" fill="#66cc66"/>']
    for corners, colour in film.road.polygons:
        if np.abs(corners - pose.point).max() < 2 * _RADIUS:
            fill = "#{:02x}{:02x}{:02x}".format(*PALETTE[colour])
            parts.append(f'<polygon points="{_points(corners, pose)}" fill="{fill}"/>')
    driven = np.array([moment.pose.point for moment in film.moments[: at + 1]])
    parts.append(f'<polyline points="{_points(driven, pose)}" fill="none" stroke="{_PATH}" stroke-width="2"/>')
    parts.append(f'<polygon points="{_points(_placed(_CAR, pose), pose)}" fill="#ffffff" stroke="{_INK}"/>')
    said = _placed(film.moments[at].waypoints[:, ::-1] * [-1, 1], pose)
    path = _points(np.vstack([pose.point, said]), pose)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{_SAID}" stroke-dasharray="3 2"/>')
    for spot in said:
        cx, cy = _panel(spot[None], pose)[0]
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="{_SAID}"/>')
    seconds = f"{at * SECONDS_PER_DECISION:.1f} s"
    parts.append(f'<text x="6" y="16" fill="#ffffff">{seconds}</text>')
    return "\n".join(parts)


def _placed(points: Floats, pose: Pose) -> Floats:
    """Points beside (to the right) and ahead of the car, where they are on the track."""
    sine, cosine = np.sin(pose.heading), np.cos(pose.heading)
    found: Floats = points @ np.array([[cosine, sine], [-sine, cosine]]) + pose.point
    return found


def _panel(points: Floats, pose: Pose) -> Floats:
    """Points of the track in a panel with the car in the middle, the y axis up."""
    flipped: Floats = (points - pose.point) * [1, -1]
    return flipped * (_SIDE / 2 / _RADIUS) + _SIDE / 2


def _points(points: Floats, pose: Pose) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in _panel(points, pose))
