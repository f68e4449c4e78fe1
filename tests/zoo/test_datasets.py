from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hoplon.errors import DataError
from hoplon.zoo.datasets import _driving as driving_module
from hoplon.zoo.datasets._cifar10 import all_training_images, cifar10, normalised
from hoplon.zoo.datasets._driving import driving, frames, trivial_errors
from hoplon.zoo.datasets._imagenet import imagenet_samples
from hoplon.zoo.datasets._mnist import mnist
from hoplon.zoo.datasets._pictures import pictures
from hoplon.zoo.datasets._signs import signs, tracks
from hoplon.zoo.datasets.torchvision import gtsrb, imagenet, original_cifar10, original_mnist


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOPLON_DATA", str(tmp_path))
    driving_module.frames.cache_clear()
    yield tmp_path
    driving_module.frames.cache_clear()


def write_drive(folder: Path, angles: list[float]) -> None:
    """Frames of one colour each, as JPEG files one after another."""
    files = []
    for number in range(len(angles)):
        buffer = io.BytesIO()
        Image.new("RGB", (200, 66), (number * 10, 0, 255)).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    steering = np.array(angles, np.float32)
    np.savez(folder / "driving-udacity.npz", jpeg=jpeg, offsets=offsets, steering_deg=steering)


def test_driving_frames_are_split_by_time(folder: Path) -> None:
    write_drive(folder, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -10.0])
    drive, data = frames(), driving()
    assert drive.border == 8
    assert drive.pixels.shape == (10, 3, 66, 200)
    assert (drive.pixels[3, 0].float().mean() - 30).abs() < 3  # channels first, red
    assert data.targets is not None
    assert data.targets[1].tolist() == [9.0, -10.0]
    assert len(data.calibration) == len(data.targets[0]) == 1
    assert torch.equal(data.held_out.x, drive.pixels[8:].float() / 255)
    errors = trivial_errors(data.targets[1], training_mean=4.5)
    assert errors.always_zero == pytest.approx(np.sqrt((81 + 100) / 2))
    assert errors.training_mean == pytest.approx(np.sqrt((4.5**2 + 14.5**2) / 2))
    assert errors.best == errors.always_zero


def test_a_drive_whose_parts_do_not_fit_is_refused(folder: Path) -> None:
    np.savez(folder / "driving-udacity.npz", jpeg=np.zeros(3, np.uint8), offsets=[0, 3], steering_deg=[1.0, 2.0])
    with pytest.raises(
        DataError, match="expected one offset more than steering_deg in driving-udacity.npz, got 2 and 2"
    ):
        frames()


def test_the_drives_trivial_predictors_are_those_of_its_description(
    hoplon_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    driving_module.frames.cache_clear()
    drive = frames()
    mean = float(drive.degrees[: drive.border].double().mean())
    errors = trivial_errors(drive.degrees[drive.border :], mean)
    assert (round(errors.always_zero, 2), round(errors.training_mean, 2)) == (2.98, 3.12)
    assert (len(drive.pixels), drive.border) == (4053, 3242)


def test_mnist_is_shuffled_and_split(folder: Path) -> None:
    x = (np.arange(10_000) % 251).astype(np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    np.savez(folder / "mnist-10k.npz", x=x, y=np.arange(10_000) % 10)
    data = mnist()
    assert (len(data.calibration), len(data.held_out)) == (8000, 2000)
    shades = torch.cat([part.x[:, 0, 0, 0] * 255 for part in (data.calibration, data.held_out)]).round().long()
    assert torch.equal(shades.sort().values, torch.from_numpy(x[:, 0, 0]).long().sort().values)
    assert not torch.equal(data.held_out.y, torch.arange(8000, 10_000) % 10)
    assert torch.equal(mnist().held_out.y, data.held_out.y)


def test_other_mnist_files_are_refused(folder: Path) -> None:
    np.savez(folder / "mnist-10k.npz", x=np.zeros((5, 28, 28), np.uint8), y=np.zeros(5, np.int64))
    with pytest.raises(DataError, match="expected more than 8,000 images in mnist-10k.npz, got 5"):
        mnist()
    np.savez(folder / "mnist-10k.npz", x=np.zeros((5, 28, 27), np.uint8), y=np.zeros(5, np.int64))
    with pytest.raises(DataError, match=r"expected torch.uint8 images of shape \(n, 28, 28\)"):
        mnist()


def jpegs(shades: list[int], side: int = 32) -> dict[str, np.ndarray]:
    """Grey pictures as files one after another."""
    files = []
    for shade in shades:
        stream = io.BytesIO()
        Image.new("RGB", (side, side), (shade, shade, shade)).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "y": np.arange(len(shades)) % 10,
    }


def test_traffic_signs_are_read_from_the_data_folder(folder: Path) -> None:
    np.savez(folder / "gtsrb-train.npz", **jpegs([0, 255, 128]), track=np.array([0, 0, 1], np.int32))
    np.savez(folder / "gtsrb-test.npz", **jpegs([255]))
    data = signs()
    assert (data.name, len(data.classes)) == ("gtsrb", 43)
    assert data.calibration.x.shape == (3, 3, 32, 32)
    assert data.held_out.x[0, :, 9, 9].tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])
    assert data.calibration.x[0, 0, 5, 5] < data.calibration.x[2, 0, 5, 5] < data.calibration.x[1, 0, 5, 5]
    assert data.calibration.y.tolist() == [0, 1, 2]
    assert tracks().tolist() == [0, 0, 1]


def test_all_training_images_of_cifar10_are_those_of_the_fifth(folder: Path) -> None:
    np.savez(folder / "cifar10-train.npz", **jpegs([0, 255]))
    found = all_training_images(plain=True)
    assert found.x[:, :, 7, 7].tolist() == [[0.0] * 3, [255.0] * 3]
    assert found.y.tolist() == [0, 1]
    assert torch.equal(all_training_images().x, normalised(found.x.to(torch.uint8)))
    x = np.zeros((2, 32, 32, 3), np.uint8)
    x[1] = 255
    for file in ("cifar10-train20.npz", "cifar10-test.npz"):
        np.savez(folder / file, x=x, y=np.arange(2), classes=np.array(["a", "b"]))
    data = cifar10(plain=True, pixels=64)
    assert data.name == "cifar10-plain-64"
    assert torch.equal(data.held_out.x[1], torch.full((3, 64, 64), 255.0))
    assert torch.equal(cifar10(plain=True).calibration.x, found.x)


def test_images_of_imagenet_are_halved(folder: Path) -> None:
    names = np.array([f"name {number}" for number in range(10)])
    np.savez(folder / "imagenet-1k-samples.npz", **jpegs(list(range(0, 250, 25)), 224), name=names)
    data = imagenet_samples()
    assert data.calibration.x.shape == data.held_out.x.shape == (5, 3, 224, 224)
    assert sorted([*data.calibration.y.tolist(), *data.held_out.y.tolist()]) == list(range(10))
    x = torch.cat([data.calibration.x, data.held_out.x])[:, 0, 0, 0].sort().values
    assert x.tolist() == pytest.approx([(shade - 127) / 128 for shade in range(0, 250, 25)])


def test_pictures_that_are_none_or_of_several_sizes_are_refused(folder: Path) -> None:
    arrays = jpegs([0, 9])
    with pytest.raises(DataError, match="expected pictures of one size in x, got: cannot identify"):
        pictures({**arrays, "jpeg": np.zeros(5000, np.uint8)}, file="x", labels="y")
    small, other = jpegs([0], 8), jpegs([0], 9)
    two = {"jpeg": np.concatenate([small["jpeg"], other["jpeg"]]), "y": np.zeros(2)}
    two["offsets"] = np.array([0, len(small["jpeg"]), len(two["jpeg"])])
    with pytest.raises(DataError, match="expected pictures of one size in x, got: all input arrays must have the same"):
        pictures(two, file="x", labels="y")


@pytest.mark.parametrize("load", [original_mnist, original_cifar10, gtsrb, imagenet])
def test_original_data_is_not_downloaded_unasked(load, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"expected .* in {tmp_path}, got: .*; (ask for it|put its archives there)"):
        load(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_traffic_signs_are_read_from_the_folder_they_come_in(tmp_path: Path) -> None:
    training = tmp_path / "gtsrb" / "GTSRB" / "Training"
    for label, shade in ((0, 255), (3, 0)):
        (training / f"{label:05d}").mkdir(parents=True)
        Image.new("RGB", (40, 50), (shade, shade, shade)).save(training / f"{label:05d}" / "0.ppm")
    test = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    Image.new("RGB", (20, 30), (255, 0, 0)).save(test / "00000.ppm")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;20;7\n")
    data = gtsrb(tmp_path)
    assert data.calibration.x.shape == (2, 3, 32, 32)
    assert data.held_out.y.tolist() == [7]
    assert data.held_out.x[0, :, 9, 9].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert data.calibration.x[0, 0, 0, 0] > 2 > -2 > data.calibration.x[1, 0, 0, 0]
    assert len(gtsrb(tmp_path, count=1).calibration) == 1
