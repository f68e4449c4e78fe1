"""Episodes in the simulator: determinism, crashes, faults and guards, and the study as a whole."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from hoplon.errors import HoplonError
from hoplon.program.inputs import Inputs
from hoplon.program.sites import Values
from hoplon.zoo import ZooData, ZooModel
from hoplon_studies import Profile, profile_named, run_study, write_pages
from hoplon_studies.driving import episodes
from hoplon_studies.driving.episodes import Blind, Expert, drive
from hoplon_studies.driving.settings import ARMS, SETTINGS, Class, Setting, prepare
from hoplon_studies.driving.student import as_output, trained
from hoplon_studies.driving.study import STUDY
from hoplon_studies.driving.training import lessons, mean_error, train, waypoint_error
from hoplon_studies.driving.trials import Classroom, Task
from hoplon_studies.driving.world import simulator
from hoplon_studies.driving.world.camera import as_input, photograph
from hoplon_studies.driving.world.control import STRAIGHT_ON
from hoplon_studies.driving.world.simulator import Scenario, World
from hoplon_studies.framework.profiles import DrivingCounts
from tests.reference.study_figures import compared_driving, verdicts

pytestmark = pytest.mark.skipif(
    find_spec("gymnasium") is None or find_spec("Box2D") is None,
    reason="needs gymnasium and Box2D: pip install 'hoplon[studies]'",
)

MAIN, INSIDE, ONE, CONTROL, LATE, VALUES = (
    next(one for one in SETTINGS if one.name == name) for name in ("main", "inside", "one", "control", "late", "values")
)
BEND = Scenario(track=5, place=0.3, lateral=0.0, slant=0.0)
ONE_EACH = {"main": 1, "other": 1, "single": 1, "obstacle": 1, "range_tracks": 1, "score_tracks": 1}
COUNTS = DrivingCounts(students=(0,), single_students=(0,), single_faults=8, **ONE_EACH)
ARM = {arm.name: arm for arm in ARMS}


@pytest.fixture(scope="module")
def student() -> Class:
    """The first student, with guards made of little data."""
    return prepare(trained(0), 0, range_tracks=COUNTS.range_tracks, score_tracks=COUNTS.score_tracks)


@pytest.fixture(scope="module")
def room(student: Class) -> Classroom:
    return Classroom(student)


class Says:
    """A driver that says given things, one after the other, and the last one for ever."""

    def __init__(self, *said: np.ndarray | None) -> None:
        self.said, self.at = said, count()

    def waypoints(self, picture: np.ndarray, world: object) -> np.ndarray | None:
        return self.said[min(next(self.at), len(self.said) - 1)]


def test_expert_stays_on_the_road_and_the_blind_do_not() -> None:
    episode = drive(BEND, Expert())
    assert episode == drive(BEND, Expert())  # bit for bit
    assert (episode.ending, episode.seconds) == ("finished", 10.0)
    assert episode.widest < 4
    assert episode.progress == pytest.approx(250, abs=10)
    assert drive(BEND, Blind()).ending == "crash"


def test_waypoints_that_are_not_finite_leave_the_last_ones_in_place() -> None:
    nothing, left = np.full((5, 2), np.nan), STRAIGHT_ON + np.array([0.0, 3.0])
    blind, lost = drive(BEND, Blind(), decisions=10), drive(BEND, Says(nothing), decisions=10)
    assert lost.nonfinite == 10
    assert dataclasses.replace(lost, nonfinite=0) == blind
    held, turning = drive(BEND, Says(left, nothing), decisions=10), drive(BEND, Says(left), decisions=10)
    assert dataclasses.replace(held, nonfinite=0) == turning
    assert turning.progress != blind.progress


def test_a_stop_and_a_stall_are_no_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drive(BEND, Says(STRAIGHT_ON, None), decisions=10).ending == "stopped"
    monkeypatch.setattr(episodes, "SPEED", 3 * episodes.SPEED)  # a plan of which half is out of reach
    assert drive(BEND, Expert(), decisions=10).ending == "stall"


def test_student_is_worth_hitting(student: Class) -> None:
    frames = lessons(9_000_000, tracks=2, decisions=60)
    error = waypoint_error(trained(0), frames)
    assert error < mean_error(frames, None) / 3
    assert error < mean_error(frames, frames) / 3


def test_words_of_a_fault(student: Class) -> None:
    for setting in SETTINGS:
        if setting.target == "values":
            continue
        tables = {kind: student.table(setting, kind, seed=3, episode=7) for kind in ("random", "important")}
        for table in tables.values():
            assert len(table) == 1
            assert table.frame.height == setting.count
            flips = table.frame["flip"].to_list()
            assert {flip.bit_count() for flip in flips} == {setting.fault_model.count}  # type: ignore[attr-defined]
            assert setting is not CONTROL or not any(flip & 1 << 30 for flip in flips)
        again = student.table(setting, "important", seed=3, episode=7)
        assert again == tables["important"]
        assert again != student.table(setting, "important", seed=3, episode=8)
        chosen = student.samplings["important"].chosen  # type: ignore[attr-defined]
        for row in again.frame.iter_rows(named=True):
            assert row["element"] in chosen[row["site"]]


def test_attacked_weights_are_more_than_the_protected_ones(student: Class) -> None:
    attacked = student.samplings["important"].chosen  # type: ignore[attr-defined]
    protected = student.protections["aspis"].scores.top(0.01)  # type: ignore[attr-defined]
    sizes = [sum(part.numel() for part in chosen.values()) for chosen in (attacked, protected)]
    assert sizes[0] == pytest.approx(5 * sizes[1], rel=0.01)
    kept = sum(int(torch.isin(part, attacked[name]).sum()) for name, part in protected.items())
    assert 0.5 * sizes[1] < kept < sizes[1]  # other tracks give other scores, but not entirely others


def test_strikes_the_live_weights_bit_for_bit_and_puts_them_back(student: Class, room: Classroom) -> None:
    driver = room.driver(ARM["important"])
    task = Task(MAIN, seed=3, first=0, count=1)
    picture = np.full((64, 64), 3, dtype=np.uint8)
    words = room.faults(task, 0)["important"]
    twin = trained(0)
    state = {name: tensor.numpy().view(np.uint32).reshape(-1) for name, tensor in twin.state_dict().items()}
    golden = as_output(driver.waypoints(picture, None)[None])  # type: ignore[index, arg-type]
    for word in words:
        state[word["site"]][word["element"]] ^= np.uint32(word["flip"])
    with torch.no_grad():
        expected = twin(as_input(picture[None]))
    with driver.under(words):
        struck = driver.waypoints(picture, None)  # type: ignore[arg-type]
    assert not np.allclose(as_output(struck[None]), golden)  # type: ignore[index]
    assert np.array_equal(as_output(struck[None]), expected, equal_nan=True)  # type: ignore[index]
    untouched = trained(0).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in driver.module.memory().items())


def test_a_guard_repairs_before_the_first_look_or_after_it(room: Classroom) -> None:
    driver, none = room.driver(ARM["parity"]), room.driver(ARM["none"])
    picture = np.full((64, 64), 3, dtype=np.uint8)
    words = room.faults(Task(ONE, seed=3, first=0, count=1), 0)["important"]
    golden = none.waypoints(picture, None)  # type: ignore[arg-type]
    with driver.under(words, "before") as same:
        assert np.array_equal(driver.waypoints(picture, None), golden)  # type: ignore[arg-type]
        assert driver.found.corrected == 1
    with none.under([]) as unstruck:
        assert same == unstruck  # so a campaign drives it once
    with driver.under(words, "after") as same:
        assert same is None
        assert not np.array_equal(driver.waypoints(picture, None), golden)  # type: ignore[arg-type]
        assert driver.found.corrected == 0
        assert np.array_equal(driver.waypoints(picture, None), golden)  # type: ignore[arg-type]
        assert driver.found.corrected == 1


def test_a_guard_that_cannot_repair_stops_the_car(room: Classroom) -> None:
    driver = room.driver(ARM["parity"])
    with driver.under(room.faults(Task(MAIN, seed=3, first=0, count=1), 0)["important"]):
        assert drive(BEND, driver, decisions=2).ending == "stopped"
        assert driver.found.uncorrectable > 0


@pytest.mark.parametrize("setting", [MAIN, LATE])
def test_arms_driven_once_drive_as_each_would_alone(student: Class, setting: Setting) -> None:
    chosen = tuple(ARM[name] for name in ("important", "aspis", "parity"))
    tasks = [Task(dataclasses.replace(setting, arms=arms), 4, 0, 1, decisions=8) for arms in (chosen, *zip(chosen))]
    together = Classroom(student)(tasks[0])
    assert [record["arm"] for record in together] == ["important", "aspis", "parity"]
    assert together == [record for task in tasks[1:] for record in Classroom(student)(task)]


def test_a_value_is_struck_in_each_decision_and_bounded_behind_the_fault(room: Classroom) -> None:
    arms, world = {arm.name: arm for arm in VALUES.arms}, World(BEND)
    picture = photograph(world.road.ground, world.pose)
    relu = next(site.name for site in Values().select(room.student.program) if site.kind == "relu")
    top = {"site": relu, "element": 0, "format": "float32", "keep": np.uint64(2**32 - 1), "flip": np.uint64(1 << 30)}
    said = {}
    for name in ("value", "value-ranger", "value-zero"):
        driver = room.driver(arms[name], "values")
        with driver.under([top]) as same:
            assert same is None
            said[name] = [driver.waypoints(picture, None) for _ in range(2)]  # type: ignore[arg-type]
        with driver.under([]):
            assert np.array_equal(driver.waypoints(picture, None), said[name][1])  # type: ignore[arg-type]
    assert all(np.array_equal(said[name][1], said["value"][1]) for name in said)
    far = {name: np.abs(first - second).max() for name, (first, second) in said.items()}
    assert far["value"] > 1e3 > far["value-ranger"]


def test_faults_of_the_protected_share_are_all_repaired(room: Classroom) -> None:
    task = Task(INSIDE, seed=5, first=0, count=1, decisions=2)
    records = {record["arm"]: record for record in room(task)}
    assert records["inside-aspis"]["corrected"] == INSIDE.count
    golden = Classroom(room.student)(Task(dataclasses.replace(MAIN, arms=MAIN.arms[:1]), 5, 0, 1, decisions=2))[0]
    assert records["inside-aspis"]["progress"] == golden["progress"]


def test_missing_simulator_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium.envs.box2d", None)
    simulator.racing.cache_clear()
    with pytest.raises(HoplonError, match=r"expected gymnasium with Box2D .* pip install 'hoplon\[studies\]'"):
        simulator.racing()


def test_interrupted_study_gives_the_same_page(tmp_path: Path) -> None:
    profile: Profile = dataclasses.replace(profile_named("quick"), driving=COUNTS)
    first = run_study(STUDY, out=tmp_path, profile=profile, only=("drivers", "main"))
    pages = [write_pages(tmp_path, first).document.read_bytes()]
    folder = next(tmp_path.rglob("study.json")).parent
    (folder / "parts" / "main.json").unlink()
    again = run_study(STUDY, out=tmp_path, profile=profile, only=("drivers", "main"))
    pages.append(write_pages(tmp_path, again).document.read_bytes())
    assert pages[0] == pages[1]
    rows = {row["arm"]: row for row in json.loads(pages[0])["rows"]}
    assert rows["important weights"]["paper"] == 12
    assert compared_driving(tmp_path) == len(MAIN.arms) == 9
    assert verdicts(tmp_path, "driving") == 20


@pytest.mark.parametrize(
    ("module", "got"), [(torch.nn.Flatten(), r"shape \(1, 12288\)"), (torch.nn.Linear(5, 1), "mat1")]
)
def test_a_model_that_is_no_student_is_refused(tmp_path: Path, module: torch.nn.Module, got: str) -> None:
    x = torch.zeros(2, 3, 64, 64)
    own = ZooModel("mine", module, x), ZooData("none", Inputs(x), Inputs(x))
    with pytest.raises(HoplonError, match=rf"expected a student that makes five waypoints.*got {got}.*from mine"):
        run_study(STUDY, out=tmp_path, profile=profile_named("quick"), own=own, only=("main",))


@pytest.mark.slow
def test_a_lesson_teaches() -> None:
    frames = lessons(9_000_000, tracks=2, decisions=60)
    assert waypoint_error(train(5, tracks=4, epochs=4), frames) < mean_error(frames, frames)
