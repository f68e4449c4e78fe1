"""One decision struck, the frame before held in its place, and the straight road with an obstacle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from hoplon_studies.driving.decision_text import deviations, driven_on, said_of_one_decision
from hoplon_studies.driving.episodes import Blind, Expert, drive
from hoplon_studies.driving.previous_frame import LastSound, largest_jumps
from hoplon_studies.driving.settings import SETTINGS, Class, prepare
from hoplon_studies.driving.single_frames import ASIDE, drawn_frame, drive_on, strike_one_frame
from hoplon_studies.driving.student import trained
from hoplon_studies.driving.training import lessons, mean_error, waypoint_error
from hoplon_studies.driving.trials import Classroom, Task
from hoplon_studies.driving.world.control import SPEED, STRAIGHT_ON, Pose, direction, expert_waypoints, wheel_angle
from hoplon_studies.driving.world.obstacle import CAR, LENGTH, WIDTH, Obstacle, straight_track
from hoplon_studies.driving.world.roads import HALF_WIDTH
from hoplon_studies.driving.world.simulator import Scenario, World

needs_simulator = pytest.mark.skipif(
    find_spec("gymnasium") is None or find_spec("Box2D") is None,
    reason="needs gymnasium and Box2D: pip install 'hoplon[studies]'",
)
SINGLE = next(one for one in SETTINGS if one.name == "single")
ARM = {arm.name: arm for arm in SINGLE.arms}
FEW = dataclasses.replace(SINGLE, count=160)
BEND = Scenario(track=5, place=0.3, lateral=0.0, slant=0.0)
LEFT = np.stack([np.zeros(5), 5.0 * np.arange(1, 6)], axis=1)


@pytest.fixture(scope="module")
def room() -> Classroom:
    return Classroom(prepare(trained(0), 0, range_tracks=2, score_tracks=1))


@pytest.fixture(scope="module")
def straight() -> Class:
    return prepare(trained(0, "straight"), 0, range_tracks=1, score_tracks=1, roads="straight")


def test_angles_of_waypoints() -> None:
    assert wheel_angle(STRAIGHT_ON) == direction(STRAIGHT_ON) == 0.0
    assert direction(LEFT) == pytest.approx(90)
    assert wheel_angle(LEFT) == pytest.approx(15 * math.degrees(0.4))  # full lock
    assert wheel_angle(LEFT * [1, -1]) == -wheel_angle(LEFT)
    slight = STRAIGHT_ON + np.stack([np.zeros(5), 0.1 * np.arange(1, 6)], axis=1)
    wheel = math.degrees(math.atan(3.24 * 2 * math.sin(math.radians(direction(slight))) / 10.75))  # pure pursuit
    assert wheel_angle(slight) == pytest.approx(15 * wheel)


def test_holds_the_last_sound_decision() -> None:
    held = LastSound([1.0] * 5)
    ahead, aside = STRAIGHT_ON + np.array([0.0, 0.9]), STRAIGHT_ON + np.array([0.0, 2.5])
    assert held.choose(ahead, alarmed=True) is STRAIGHT_ON  # there was none before
    assert held.choose(ahead, alarmed=False) is ahead
    assert held.choose(aside, alarmed=False) is ahead  # 1.6 units in one frame
    assert held.choose(np.full((5, 2), np.nan), alarmed=False) is ahead
    assert held.choose(aside, alarmed=True) is ahead
    assert held.choose(aside, alarmed=False) is aside  # 1.6 units in four frames
    assert held.held == 4
    held.begin(STRAIGHT_ON)
    assert held.choose(aside, alarmed=False) is STRAIGHT_ON
    assert held.held == 1


def test_largest_jumps_are_of_single_waypoints() -> None:
    bent = STRAIGHT_ON.copy()
    bent[4, 1] += 3.0
    assert largest_jumps([[STRAIGHT_ON, bent], [STRAIGHT_ON, STRAIGHT_ON]]) == (0.0, 0.0, 0.0, 0.0, 3.0)


def test_a_straight_track_is_closed() -> None:
    track = np.array(straight_track())
    place, heading = track[:, 2:], track[:, 1]
    steps = np.roll(place, -1, axis=0) - place
    assert np.allclose(np.hypot(*steps.T), 3.5, atol=0.02)
    along = np.stack([-np.sin(heading), np.cos(heading)], axis=1)
    assert ((steps * along).sum(1) > 3.4).all()  # 0 looks along the second axis


@pytest.mark.parametrize(
    ("right", "along", "heading", "hit"),
    [
        (0.0, 100.0, 0.0, True),
        (WIDTH / 2 + 1.3, 100.0, 0.0, False),  # beside it
        (WIDTH / 2 + 1.3, 100.0, 0.5, True),  # turned into it
        (0.0, 100.0 - LENGTH / 2 - 2.5, 0.0, True),
        (0.0, 100.0 - LENGTH / 2 - 2.7, 0.0, False),
    ],
)
def test_rectangles_overlap_or_not(right: float, along: float, heading: float, hit: bool) -> None:
    assert Obstacle(100.0, 0.0).is_hit(Pose(right, along, heading, SPEED).placed(CAR)) == hit


@needs_simulator
def test_expert_drives_round_the_obstacle_and_the_blind_hit_it() -> None:
    for number in range(12):
        scenario = Scenario.drawn(1, number, "straight")
        assert scenario.obstacle is not None
        assert drive(scenario, Expert()).ending == "finished"
        blocked = dataclasses.replace(scenario, lateral=scenario.obstacle.right, slant=0.0)
        episode = drive(blocked, Blind())
        assert (episode.ending, episode.hit) == ("crash", True)
        world = World(scenario)
        beside = world.path[np.abs(world.path[:, 1] - scenario.obstacle.along) < LENGTH]
        beside = beside[np.abs(beside[:, 0]) < HALF_WIDTH]
        assert (np.abs(beside[:, 0] - scenario.obstacle.right) > (WIDTH + 2.4) / 2 + 1).all()
        waypoints = expert_waypoints(world.path, world.pose, world.near)
        assert (waypoints[:, 0] > 4).all()


@needs_simulator
def test_student_of_the_straight_road_sees_the_obstacle(straight: Class) -> None:
    frames = lessons(9_000_000, tracks=3, roads="straight")
    error = waypoint_error(trained(0, "straight"), frames)
    assert error < min(mean_error(frames, None), mean_error(frames, frames)) / 2
    episodes = [drive(Scenario.drawn(2, n, "straight"), Classroom(straight).driver(ARM["none"])) for n in range(3)]
    assert [episode.ending for episode in episodes] == ["finished"] * 3


@needs_simulator
def test_a_decision_is_struck_in_its_frame_alone(room: Classroom) -> None:
    driver = room.driver(ARM["none"], "values")
    number, struck = next(
        (n, found) for n in range(9) if (found := room._struck(Task(FEW, 8, n, 1), n)).first("wheel") is not None
    )
    scenario, word = Scenario.drawn(8, number), struck.first("wheel")
    assert word is not None
    chosen = struck.words.index(word)
    assert struck.frame == drawn_frame(8, number)
    assert struck.wheel[chosen] > ASIDE
    assert (struck.wheel[:chosen] <= ASIDE).all()
    film, off = drive_on(scenario, driver, struck, word, decisions=8)
    assert off == struck.wheel[chosen]
    poses: list[Pose] = []
    with driver.under([]):
        golden = drive(scenario, driver, decisions=struck.frame + 9, watch=lambda _, moment: poses.append(moment.pose))
    apart = [a.pose != b for a, b in zip(film.moments, poses, strict=True)]
    assert apart == [number > struck.frame for number in range(len(poses))]
    assert [moment.waypoints.tolist() for moment in film.moments[: struck.frame]] == [
        waypoints.tolist() for waypoints in struck.before
    ]
    again = strike_one_frame(scenario, driver, struck.words[:4], frame=struck.frame, decisions=8)
    assert again.episode == golden


@needs_simulator
def test_policies_meet_the_same_fault_and_bring_the_decision_back(room: Classroom) -> None:
    records = room(Task(FEW, seed=8, first=0, count=3))
    assert records == [record for n in range(3) for record in room(Task(FEW, seed=8, first=n, count=1))]
    by_arm = {name: [record for record in records if record["arm"] == name] for name in ARM}
    assert [record["drawn"] for record in by_arm["none"]] == [FEW.count] * 3
    assert by_arm["aside"]
    for name in ("aside-ranger", "aside-zero", "aside-channel", "aside-previous", "aside-4"):
        words = [
            [(one["episode"], one["site"], one["element"], one["bit"]) for one in by_arm[arm]]
            for arm in ("aside", name)
        ]
        assert words[0] == words[1]
    assert all(record["off"] > ASIDE for record in by_arm["aside"] + by_arm["aside-4"])
    assert all(record["off"] < ASIDE for name in ("aside-ranger", "aside-previous") for record in by_arm[name])
    assert all(record["held"] >= 1 for record in by_arm["aside-previous"])
    assert not any(record["held"] for record in by_arm["aside-ranger"])


def _record(arm: str, episode: int, ending: str, **more: Any) -> dict[str, Any]:
    counts = {"nonfinite": 0, "corrected": 0, "mitigated": 0, "uncorrectable": 0, "held": 0, "hit": False}
    return {"arm": arm, "episode": episode, "ending": ending, "seconds": 4.0, "widest": 2.0, **counts, **more}


def _cells(rows: Sequence[Sequence[Any]], first: str) -> Sequence[Any]:
    return next(row for row in rows if row[0] == first)


def test_counts_of_one_decision() -> None:
    drawn = {"frame": 10, "drawn": 100, "wheel-15": 4, "wheel-30": 4, "wheel-60": 3, "wheel-120": 1, "direction": 0}
    nothing = {key: value if key in ("frame", "drawn") else 0 for key, value in drawn.items()}
    records = [_record("none", 1, "finished", **nothing), _record("none", 0, "finished", **drawn)]
    for arm, ending in (("aside", "finished"), ("aside-4", "crash")):
        records.append(_record(arm, 0, ending, off=200.0, site="relu", element=3, bit=30))
    table = deviations(records)
    row = _cells(table.rows, "steering wheel off by more than 60 degrees")
    assert (row[1], row[2], row[4], row[5]) == (200, 3, 2, 1)
    assert row[3].startswith("1.5 [")
    crashes = table_of = driven_on(SINGLE, records)
    assert [one[0] for one in table_of.rows] == ["no faults", "one decision aside", "4 decisions in a row"]
    assert _cells(crashes.rows, "4 decisions in a row")[1:5] == (1, 200.0, 1, 1)
    meant, said = said_of_one_decision(SINGLE, records)
    assert "60 are 4 at the front wheels" in meant
    assert "Of 200 faults drawn, 3 turn the wheel by more than 60 degrees" in said
    assert "**0 of 1 end in a crash, 0 [0, 79] %**" in said
    assert said.endswith("The latest crash of all rows came 3.2 seconds after the struck frame.")
    assert said_of_one_decision(SINGLE, records[:1]) == (meant,)
