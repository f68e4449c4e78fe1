from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError, HoplonWarning
from hoplon.formats.digest import content_digest
from hoplon.zoo.cache import cache_folder, load_tensors, save_tensors
from hoplon.zoo.seeding import seeded
from hoplon_studies.training import recipes, weights
from hoplon_studies.training.recipes import RECIPES, Recipe, train
from hoplon_studies.training.weights import trained, weights_path

REPOSITORY = Path(__file__).parents[3]


class Mean(nn.Module):
    """One number from an image: the weighted mean over its columns."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.mean((1, 2)))
        return out


def images(count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 4, 6), dtype=torch.uint8, generator=generator)


ANGLE = Recipe("angle", Mean, "-", epochs=60, learning_rate=0.3, task="degrees", batch_size=16)


def test_a_regression_is_learned_and_progress_is_told() -> None:
    x = images()
    degrees = 10 * (x.float().div(255).mean((1, 2))[:, 0] - 0.5)
    told: list[tuple[int, int, float]] = []
    net = train(ANGLE, x, degrees, progress=lambda *now: told.append(now))
    assert not net.training
    error = (net(x.float() / 255)[:, 0] - degrees).square().mean().sqrt()
    assert error < 0.5 * degrees.std()
    assert [now[:2] for now in told] == [(epoch, 60) for epoch in range(1, 61)]
    assert told[-1][2] < 0.5 * told[0][2]


def test_radians_are_compared_in_degrees() -> None:
    x, degrees = images(), torch.full((64,), 90.0)
    net = train(dataclasses.replace(ANGLE, task="radians"), x, degrees)
    assert net(x.float() / 255).mean().item() == pytest.approx(math.pi / 2, abs=0.1)


def test_a_mirrored_image_turns_the_angle_and_keeps_a_label() -> None:
    x, generator = images(), torch.Generator().manual_seed(1)
    mirrored = dataclasses.replace(ANGLE, mirror=True)
    changed, angles = recipes._changed(mirrored, x, torch.ones(64), generator)
    plain = x.float() / 255
    assert {-1.0, 1.0} == set(angles.tolist())
    turned = angles < 0
    assert torch.equal(changed[turned], plain[turned].flip(3))
    assert torch.equal(changed[~turned], plain[~turned])
    _, labels = recipes._changed(dataclasses.replace(mirrored, task="classification"), x, torch.ones(64), generator)
    assert labels.min() == 1


def test_images_move_by_no_more_than_the_shift() -> None:
    x = torch.zeros(50, 1, 9, 9)
    x[:, 0, 4, 4] = 1
    moved, _ = recipes._changed(
        dataclasses.replace(ANGLE, shift=2), x, torch.ones(50), torch.Generator().manual_seed(0)
    )
    places = moved.flatten(1).argmax(1)
    assert moved.sum() == 50
    assert len({int(place) for place in places}) > 5
    assert all(2 <= place // 9 <= 6 and 2 <= place % 9 <= 6 for place in places.tolist())


def test_same_recipe_same_weights_and_nothing_global_changes() -> None:
    x, degrees = images(), torch.zeros(64)
    short = dataclasses.replace(ANGLE, epochs=1)
    state = torch.random.get_rng_state()
    first, second, other = (train(recipe, x, degrees) for recipe in (short, short, dataclasses.replace(short, seed=1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(DataError, match="expected a finite loss in epoch 1 of angle, got (nan|inf)"):
        train(ANGLE, images(), torch.full((64,), math.inf))


def test_the_digest_follows_what_decides_the_weights() -> None:
    base = RECIPES["lenet-mnist"]
    others = [dataclasses.replace(base, epochs=9), dataclasses.replace(base, build=Mean), RECIPES["lenet-mnist-tanh"]]
    digests = [recipe.digest() for recipe in (base, *others)]
    assert len(set(digests)) == 4
    assert base.digest() == digests[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_a_network_that_takes_its_images(name: str) -> None:
    recipe = RECIPES[name]
    with seeded(0):
        net = recipe.build().eval()
    shape = {"mnist": (1, 28, 28), "driving": (3, 66, 200)}.get(recipe.data, (3, 32, 32))
    outputs = 10 if recipe.task == "classification" else 1
    assert net(torch.rand(2, *shape)).shape == (2, outputs)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One recipe of a tiny network, and how often it was trained."""
    recipe = Recipe("tiny", Mean, "mnist", epochs=1, learning_rate=0.1, task="degrees")
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    times: list[int] = []

    def made(data: str) -> tuple[Tensor, Tensor]:
        times.append(1)
        return images(), torch.ones(64)

    monkeypatch.setattr(weights, "training_set", made)
    return times


def test_weights_are_kept_and_not_trained_again(tiny: list[int], tmp_path: Path) -> None:
    first = trained("tiny", folder=tmp_path)
    again = trained("tiny", folder=tmp_path, make=False)
    assert len(tiny) == 1
    assert torch.equal(first.module.linear.weight, again.module.linear.weight)
    assert again.task == "degrees"
    path = weights_path(RECIPES["tiny"], folder=tmp_path)
    assert path.name == f"tiny-{RECIPES['tiny'].digest()}.safetensors"
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_weights_of_other_data_are_refused(tiny: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = trained("tiny", folder=tmp_path).module.linear.weight
    monkeypatch.setattr(weights, "training_set", lambda data: (images(), torch.full((64,), 2.0)))
    with pytest.raises(DataError, match="expected weights of tiny trained on the mnist data .*; remove the file"):
        trained("tiny", folder=tmp_path)

    def gone(data: str) -> tuple[Tensor, Tensor]:
        raise DataError("no data")

    monkeypatch.setattr(weights, "training_set", gone)
    assert torch.equal(trained("tiny", folder=tmp_path).module.linear.weight, kept)


def test_weights_that_note_no_data_are_told_of(tiny: list[int], tmp_path: Path) -> None:
    kept = Mean()
    save_tensors(weights_path(RECIPES["tiny"], folder=tmp_path), kept.state_dict(), {"torch": "2"})
    with pytest.warns(HoplonWarning, match="tiny-.* does not note what it was trained on; remove the file"):
        loaded = trained("tiny", folder=tmp_path).module
    assert torch.equal(loaded.linear.weight, kept.linear.weight)


def test_missing_and_damaged_weights_are_refused(tiny: list[int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the trained weights .*tiny-.*; train them with make=True"):
        trained("tiny", folder=tmp_path, make=False)
    path = weights_path(RECIPES["tiny"], folder=tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"no tensors")
    with pytest.raises(DataError, match="expected whole trained weights in .*; remove the file"):
        trained("tiny", folder=tmp_path)
    note = {"data": content_digest([images(), torch.ones(64)])}
    save_tensors(path, {"other": torch.zeros(1)}, note)
    with pytest.raises(DataError, match="expected the weights of tiny in .*; remove the file"):
        trained("tiny", folder=tmp_path)
    with pytest.raises(HoplonError, match="no recipe matches 'tinny'"):
        trained("tinny", folder=tmp_path)


def test_the_cache_is_outside_of_the_repository_and_can_be_moved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HOPLON_CACHE", raising=False)
    assert REPOSITORY not in cache_folder().parents
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there"
    (tmp_path / "there").write_text("a file")
    with pytest.raises(DataError, match="expected a folder for trained weights, got the file"):
        cache_folder()


def test_tensors_come_back_with_their_notes(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.5, float("nan")]), "b": torch.arange(3)}
    save_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"who": "me"})
    found, notes = load_tensors(tmp_path / "deep" / "x.safetensors")
    assert notes == {"who": "me"}
    assert torch.equal(found["a"].view(torch.int32), tensors["a"].view(torch.int32))
    assert torch.equal(found["b"], tensors["b"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected to write .*x.safetensors, got .*; set HOPLON_CACHE"):
        save_tensors(tmp_path / "file" / "x.safetensors", tensors, {})
