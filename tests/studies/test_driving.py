"""The pieces of the driving study that need no simulator: roads, camera, control, student, statistics, film."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hoplon.errors import DataError
from hoplon.stats.intervals import wilson
from hoplon_studies.driving.settings import SETTINGS, Setting
from hoplon_studies.driving.statistics import compared, crashes_of_one, tally
from hoplon_studies.driving.student import UNITS_PER_OUTPUT, as_output, trained, waypoints_of
from hoplon_studies.driving.training import Frames, mean_error, squared_error
from hoplon_studies.driving.world.camera import as_input, photograph
from hoplon_studies.driving.world.control import ASIDE, SPEED, STRAIGHT_ON, Pose, clipped, expert_waypoints, pursue
from hoplon_studies.driving.world.roads import CELL, GRASS, PALETTE, ROAD, Road
from hoplon_studies.driving.world.simulator import Scenario


@pytest.fixture(scope="module")
def circle() -> Road:
    """A round road of radius 60 around the origin, driven counter-clockwise, its tiles painted in one colour."""
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    outward = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inner, outer = 54.0 * outward, 66.0 * outward
    tiles = [(np.array([inner[i - 1], outer[i - 1], outer[i], inner[i]]), ROAD[0]) for i in range(100)]
    return Road(60.0 * outward, angle, tiles)


@pytest.fixture
def at_start() -> Pose:
    """On the centre line of the circle, looking along it."""
    return Pose(60.0, 0.0, 0.0, SPEED)


def test_smoothed_line_has_a_point_each_unit(circle: Road) -> None:
    assert np.allclose(np.hypot(*circle.line.T), 60.0, atol=0.5)
    assert np.allclose(np.hypot(*np.diff(circle.line, axis=0).T), 1.0, atol=0.01)


@pytest.mark.parametrize("radius", [55.0, 60.0, 63.5])
def test_distance_from_the_centre_line(circle: Road, radius: float) -> None:
    point = radius * np.array([math.cos(1.0), math.sin(1.0)])
    assert circle.distance(point, circle.nearest(point)) == pytest.approx(abs(radius - 60.0), abs=0.05)


def test_paints_tiles_and_leaves_grass(circle: Road) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-80, 80, size=(2, 2000))
    radius = np.hypot(x, y)
    clear = np.abs(np.abs(radius - 60.0) - 6.0) > 3 * CELL  # away from the edges, which cells round
    is_road = np.isin(circle.ground.colours(x, y), ROAD)
    assert (is_road == (np.abs(radius - 60.0) < 6.0))[clear].all()
    assert circle.ground.colours(np.array([1e4]), np.array([0.0])).tolist() == [GRASS]


def test_expert_says_where_the_road_goes(circle: Road, at_start: Pose) -> None:
    waypoints = expert_waypoints(circle.line, at_start, circle.nearest(at_start.point))
    angle = 5.0 * np.arange(1, 6) / 60.0  # a waypoint each 5 units along the circle
    expected = np.stack([60 * np.sin(angle), 60 * (1 - np.cos(angle))], axis=1)
    assert np.allclose(waypoints, expected, atol=0.6)  # points of the line are a unit apart


def test_picture_shows_the_road_ahead_bending_to_the_left(circle: Road, at_start: Pose) -> None:
    road = np.isin(photograph(circle.ground, at_start), ROAD)
    near, far = road[-1].nonzero()[0].mean(), road[8].nonzero()[0].mean()
    assert near == pytest.approx(31.5, abs=1.0)
    assert far < 26
    mirrored = Pose(-60.0, 0.0, 0.0, SPEED)  # the other way round, where the road bends to the right
    assert np.isin(photograph(circle.ground, mirrored), ROAD)[8].nonzero()[0].mean() > 37


def test_pictures_become_colours() -> None:
    pictures = np.arange(len(PALETTE), dtype=np.uint8)[None, :, None].repeat(2, 0)
    x = as_input(pictures)
    assert x.shape == (2, 3, len(PALETTE), 1)
    assert torch.equal((x[1, :, :, 0].T * 255).round().to(torch.uint8), torch.from_numpy(PALETTE))


def test_controller_steers_to_the_side_of_the_waypoints_and_keeps_the_speed() -> None:
    left = STRAIGHT_ON + np.array([0.0, 2.0])
    assert pursue(left, SPEED).steering > 0.05
    assert pursue(left * [1, -1], SPEED).steering == -pursue(left, SPEED).steering
    assert pursue(STRAIGHT_ON, SPEED - 5).gas > 0.2
    assert pursue(STRAIGHT_ON, SPEED + 5).brake > 0.1
    assert pursue(np.zeros((5, 2)), SPEED).steering == 0.0


def test_clips_what_no_car_can_reach_and_leaves_nan() -> None:
    said = clipped(np.array([[np.inf, -np.inf], [-1e38, 1e38], [5.0, 0.0], [np.nan, 0.0], [10.0, 1.0]]))
    assert said[:3].tolist() == [[30.0, ASIDE[0]], [0.0, ASIDE[1]], [5.0, 0.0]]
    assert np.isnan(said[3, 0])


def test_outputs_are_waypoints_in_tens_of_units() -> None:
    output = as_output(STRAIGHT_ON[None])
    assert output[0, :4].tolist() == [0.5, 0.0, 1.0, 0.0]
    assert np.allclose(waypoints_of(output[0]), STRAIGHT_ON)


def test_labels_of_scores_are_thousandths() -> None:
    frames = Frames(np.zeros((2, 64, 64), dtype=np.uint8), torch.tensor([[0.1234] * 10, [-1.0] * 10]))
    labels = frames.labelled("x").y
    assert labels is not None
    assert labels[:, 0].tolist() == [123, -1000]
    assert squared_error(torch.zeros(2, 10), labels).item() == pytest.approx((0.123**2 + 1) / 2)
    assert mean_error(frames, frames) == pytest.approx(UNITS_PER_OUTPUT * math.sqrt(2) * (0.1234 + 1) / 2, rel=1e-4)


def test_scenarios_are_functions_of_seed_and_number() -> None:
    assert Scenario.drawn(1, 2) == Scenario.drawn(1, 2)
    assert len({Scenario.drawn(seed, number).track for seed in range(3) for number in range(3)}) == 9


def test_no_weights_of_an_unknown_seed() -> None:
    with pytest.raises(DataError, match=r"expected a training seed out of .*, got 99"):
        trained(99)


def _record(arm: str, episode: int, ending: str) -> dict[str, object]:
    counts = {"nonfinite": int(ending == "crash"), "corrected": 0, "mitigated": 0, "uncorrectable": 0}
    return {"arm": arm, "episode": episode, "ending": ending, **counts}


def test_counts_and_pairs() -> None:
    first = ["crash"] * 6 + ["finished", "stall", "stopped", "finished"]
    second = ["finished"] * 6 + ["crash", "finished", "finished", "finished"]
    records = [_record("a", i, e) for i, e in enumerate(first)] + [_record("b", i, e) for i, e in enumerate(second)]
    found = tally(records, "a")
    assert (found.episodes, found.crashes, found.stalls, found.stops, found.nonfinite) == (10, 6, 1, 1, 6)
    assert found.crash == wilson(6, 10)
    pair = compared(records, "a", "b")
    assert (pair.only_first, pair.only_second) == (6, 1)
    assert pair.p_value == pytest.approx(2 * (1 + 7) / 2**7)  # two-sided binomial tail
    assert pair.verdict(1) == "not told apart"
    assert crashes_of_one(records, "a", "b") == [0, 1, 2, 3, 4, 5]


def test_arms_have_names_and_titles_of_their_own() -> None:
    arms = {arm for setting in SETTINGS for arm in setting.arms}
    assert len({arm.name for arm in arms}) == len({arm.title for arm in arms}) == len(arms)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_pairs_are_of_arms_of_their_setting(setting: Setting) -> None:
    assert {name for pair in setting.pairs for name in pair} <= {arm.name for arm in setting.arms}
