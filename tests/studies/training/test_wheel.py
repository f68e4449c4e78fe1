"""Frames of the simulator with the angle of the steering wheel: where the car stands, what is kept, what is refused."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from hoplon import zoo
from hoplon.errors import DataError, HoplonError
from hoplon_studies.driving.world.control import SPEED, Pose
from hoplon_studies.driving.world.roads import GRASS, PALETTE, ROAD
from hoplon_studies.driving.world.simulator import road_of
from hoplon_studies.training import wheel
from hoplon_studies.training.recipes import RECIPES, training_set

pytestmark = pytest.mark.skipif(
    find_spec("gymnasium") is None or find_spec("Box2D") is None,
    reason="needs gymnasium and Box2D: pip install 'hoplon[studies]'",
)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two tracks to train with and one held out, in a cache of their own."""
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path))
    monkeypatch.setattr(wheel, "_TRACKS", {"training": 2, "held out": 1})
    wheel.wheel_frames.cache_clear()
    yield tmp_path
    wheel.wheel_frames.cache_clear()


def standing(track: int, tile: int, *, right: float = 0.0, turned_left: float = 0.0) -> float:
    road = road_of(track)
    along = float(road.heading[tile])
    x, y = road.centre[tile] + right * np.array([math.cos(along), math.sin(along)])
    return wheel.wheel_angle(road, Pose(float(x), float(y), along + turned_left, SPEED))


def test_frames_are_a_function_of_their_tracks_alone() -> None:
    both, second = wheel.frames_of(range(7, 9)), wheel.frames_of(range(8, 9))
    assert both.pictures.shape == (2 * wheel.FRAMES_PER_TRACK, 66, 200)
    assert np.array_equal(both.pictures[wheel.FRAMES_PER_TRACK :], second.pictures)
    assert np.array_equal(both.degrees[wheel.FRAMES_PER_TRACK :], second.degrees)
    assert not np.array_equal(both.degrees[: wheel.FRAMES_PER_TRACK], second.degrees)
    assert np.array_equal(both.pixels[3, :, 5, 6].numpy(), PALETTE[both.pictures[3, 5, 6]])


@pytest.mark.parametrize("tile", [0, 60, 120, 200])
def test_whoever_stands_aside_or_askew_steers_back(tile: int) -> None:
    assert standing(7, tile, right=3.0) < standing(7, tile) < standing(7, tile, right=-3.0)  # left is negative
    assert standing(7, tile, turned_left=0.2) > standing(7, tile) > standing(7, tile, turned_left=-0.2)


def test_angles_are_large_and_end_at_the_lock() -> None:
    degrees = wheel.frames_of(range(20, 28)).degrees
    assert np.abs(degrees).max() <= 150
    assert (degrees > 60).mean() > 0.1
    assert (degrees < -60).mean() > 0.1


def test_the_road_is_before_the_car_and_grass_beside_it() -> None:
    nearest = np.stack([picture[-1] for picture in wheel.frames_of(range(7, 9)).pictures])
    assert np.isin(nearest[:, 100], ROAD).mean() > 0.95
    assert np.isin(wheel.frames_of(range(7, 8)).pictures[:, 0, [0, -1]], ROAD).mean() < 0.5
    assert (wheel.frames_of(range(7, 8)).pictures == GRASS).mean() > 0.2


def test_parts_have_tracks_of_their_own_and_are_kept(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zoo.data("racing")
    assert "racing" in zoo.data_names()
    assert (len(data.calibration), len(data.held_out)) == (10, 25)
    assert data.targets is not None
    assert torch.equal(data.targets[1], torch.from_numpy(wheel.frames_of(range(4_000_000, 4_000_001)).degrees))
    taught, angles = training_set("racing")
    assert len(taught) == len(angles) == 50
    assert RECIPES["comma-racing"].shape == taught.shape[1:] == data.held_out.x.shape[1:]
    assert set(data.targets[0].tolist()) < set(angles.tolist())
    assert not set(data.targets[1].tolist()) & set(angles.tolist())
    wheel.wheel_frames.cache_clear()
    monkeypatch.setattr(wheel, "frames_of", lambda tracks: pytest.fail("made again"))
    assert torch.equal(zoo.data("racing").held_out.x, data.held_out.x)
    (kept,) = (few / "data").glob("racing-held-out-*.npz")
    kept.write_bytes(kept.read_bytes()[:-40])
    wheel.wheel_frames.cache_clear()
    with pytest.raises(DataError, match=r"expected a whole \.npz file"):
        zoo.data("racing")


def test_without_the_simulator_there_are_no_frames(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(track: int) -> None:
        raise HoplonError("expected gymnasium with Box2D")

    monkeypatch.setattr(wheel, "road_of", gone)
    with pytest.raises(DataError, match="expected gymnasium with Box2D"):
        wheel.wheel_frames("training")


def test_other_settings_are_kept_apart(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = wheel._path("training")
    monkeypatch.setattr(wheel, "_ASIDE", 3.0)
    assert wheel._path("training") != first
