"""A film strip: one crash and its hardened twin, from above and as the student saw it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from hoplon_studies.driving.episodes import Driver, Episode, Moment, drive
from hoplon_studies.driving.world.obstacle import CAR
from hoplon_studies.driving.world.roads import PALETTE, Road
from hoplon_studies.driving.world.simulator import SECONDS_PER_DECISION, Scenario, World
from hoplon_studies.framework.figures import Figure, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAMES = 6
_SIDE = 1.6  # inches of a panel
_RADIUS = 26.0  # units from the car to the edge of a panel
_GRASS, _INK, _PATH, _WAYPOINTS = "#66cc66", "#111827", "#1d4ed8", "#dc2626"


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


def draw_film(name: str, *, title: str, films: Sequence[tuple[str, Film]], first: int = 0) -> Figure:
    """The films one below the other, at the same moments: up to the end of the shortest.

    Args:
        name: of the file.
        title: under it.
        films: each with its caption.
        first: decision from which on they are shown.
    """
    last = min(len(film.moments) for _, film in films) - 1
    content = io.BytesIO()
    with drawing(content, width=_SIDE * FRAMES, height=(2 * _SIDE + 0.3) * len(films)) as figure:
        panels = figure.subplots(2 * len(films), FRAMES, squeeze=False)
        for row, (caption, film) in enumerate(films):
            panels[2 * row, 0].set_title(caption, loc="left")
            for column in range(FRAMES):
                moment = first + round((last - first) * column / (FRAMES - 1))
                _from_above(panels[2 * row, column], film, moment)
                panels[2 * row + 1, column].imshow(PALETTE[film.moments[moment].picture], interpolation="none")
                panels[2 * row + 1, column].axis("off")
    alt = "; ".join(f"{caption}: {film.episode.ending} after {film.episode.seconds:g} s" for caption, film in films)
    return Figure(name, title, alt, content.getvalue())


def _from_above(axes: Axes, film: Film, at: int) -> None:
    """The road around the car, the way it came, and the waypoints it follows, at one moment of a film."""
    assert film.road is not None
    pose = film.moments[at].pose
    near = [polygon for polygon in film.road.polygons if np.abs(polygon[0] - pose.point).max() < 2 * _RADIUS]
    for corners, colour in near:
        axes.fill(*corners.T, color=PALETTE[colour] / 255, lw=0)
    axes.plot(*np.array([moment.pose.point for moment in film.moments[: at + 1]]).T, color=_PATH)
    axes.fill(*pose.placed(CAR).T, facecolor="white", edgecolor=_INK)
    waypoints = pose.placed(film.moments[at].waypoints[:, ::-1] * [-1, 1])
    axes.plot(*np.vstack([pose.point, waypoints]).T, "--", color=_WAYPOINTS, lw=1)
    axes.plot(*waypoints.T, "o", color=_WAYPOINTS, ms=3)
    axes.text(0.04, 0.9, f"{at * SECONDS_PER_DECISION:.1f} s", color="white", transform=axes.transAxes)
    axes.set(
        xlim=(pose.x - _RADIUS, pose.x + _RADIUS),
        ylim=(pose.y - _RADIUS, pose.y + _RADIUS),
        aspect="equal",
        facecolor=_GRASS,
        xticks=[],
        yticks=[],
    )
