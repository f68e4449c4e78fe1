from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError, HoplonWarning
from hoplon.files import read_json
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


class Flat(nn.Module):
    """One number from maps: their mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)).unsqueeze(1)


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


def test_a_half_recipe_multiplies_in_bfloat16_and_keeps_weights_in_float32() -> None:
    met: list[torch.dtype] = []

    class Watched(Mean):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            met.append(out.dtype)
            return out

    net = train(dataclasses.replace(ANGLE, build=Watched, epochs=1, half=True), images(), torch.ones(64))
    assert set(met) == {torch.bfloat16}
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}


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


def test_images_turn_and_scale_about_their_middle_by_no_more_than_the_warp() -> None:
    x = torch.zeros(200, 1, 33, 33)
    x[:, 0, 16, 16] = x[:, 0, 16, 28] = 1  # the middle, and 12 to the right of it
    warped = dataclasses.replace(ANGLE, warp=10.0)
    moved, _ = recipes._changed(warped, x, torch.ones(200), torch.Generator().manual_seed(0))
    right = moved.clone()
    right[:, :, :, :22] = 0
    places = right.flatten(1).argmax(1)
    rows, columns = places // 33 - 16, places % 33 - 16
    lengths = rows.double().square().add(columns.square()).sqrt()
    assert moved[:, 0, 16, 16].min() > 0.5
    assert 3 >= rows.max() >= 1 >= -1 >= rows.min() >= -3  # 12 sin 10 degrees = 2.1
    assert 12 / 1.1 - 1 < lengths.min() < 11.9 < 12.1 < lengths.max() < 12 / 0.9 + 1


def test_light_changes_contrast_and_brightness_of_each_image() -> None:
    x = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)], 0).repeat(100, 1, 1, 1)
    lit = dataclasses.replace(ANGLE, light=0.2)
    found, _ = recipes._changed(lit, x, torch.ones(200), torch.Generator().manual_seed(0))
    assert torch.equal(found[:, :1, :1, :1].expand_as(found), found)
    dark, bright = found[::2, 0, 0, 0], found[1::2, 0, 0, 0]
    assert 0.15 < dark.abs().max() <= 0.2
    assert 1.2 < bright.max() <= 1.4
    assert len(dark.unique()) == 100


def test_images_are_brought_to_the_pixels_of_the_recipe() -> None:
    large = dataclasses.replace(ANGLE, pixels=8)
    found, _ = recipes._changed(large, images(), torch.ones(64), torch.Generator())
    assert found.shape == (64, 3, 8, 8)
    assert torch.equal(found, recipes.as_taken(large, images()))
    assert dataclasses.replace(ANGLE, data="gtsrb", pixels=75).shape == (3, 75, 75)


def test_a_training_in_another_order_of_memory_gives_a_network_in_the_usual_one() -> None:
    recipe = dataclasses.replace(ANGLE, build=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Flat()), channels_last=True)
    net = train(dataclasses.replace(recipe, epochs=1), images(), torch.zeros(64))
    assert net[0].weight.is_contiguous()


def test_images_set_aside_are_whole_signs_or_one_in_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "tracks", lambda: torch.arange(40).div(4, rounding_mode="floor"))
    signs = dataclasses.replace(ANGLE, data="gtsrb", aside=5)
    found = recipes.set_aside(signs, 40)
    assert found.sum() == 8
    assert found.view(10, 4).any(1).sum() == 2
    assert recipes.set_aside(dataclasses.replace(signs, data="mnist"), 40).sum() == 8
    assert recipes.set_aside(ANGLE, 40).sum() == 0


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


def test_settings_that_came_later_leave_the_digests_of_earlier_recipes() -> None:
    assert RECIPES["lenet-mnist"].digest() == "3e47a3f024845484"  # names weights in users' folders
    later = {"warp": 1.0, "light": 0.1, "pixels": 64, "aside": 5, "half": True, "channels_last": True}
    digests = {dataclasses.replace(ANGLE, **{name: value}).digest() for name, value in later.items()}
    assert len(digests | {ANGLE.digest()}) == 7


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_a_network_that_takes_its_images(name: str) -> None:
    recipe = RECIPES[name]
    with seeded(0):
        net = recipe.build().eval()
    if recipe.task == "tokens":
        assert net(torch.arange(2 * recipe.shape[0]).view(2, -1) % 65)[0].shape == (2, *recipe.shape, 65)
        return
    outputs = 1 if recipe.task != "classification" else 43 if recipe.data == "gtsrb" else 10
    assert net(torch.rand(2, *recipe.shape)).shape == (2, outputs)


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
    manifest = path.with_suffix(".json")
    assert {found.name for found in path.parent.iterdir()} == {path.name, manifest.name}
    told = read_json(manifest, dict[str, Any])
    assert (told["digest"], told["recipe"]["epochs"]) == (RECIPES["tiny"].digest(), 1)
    assert told["data"] == content_digest([images(), torch.ones(64)])
    assert told["weights"] == content_digest(dict(first.module.state_dict()))
    assert [line["right"] for line in told["curve"]] == [None]
    assert told["samples"] == {"trained on": 64, "set aside": 0}


def test_a_training_that_was_stopped_before_its_weights_were_kept_is_not_done_again(
    tiny: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_tensors", stop)
        with pytest.raises(KeyboardInterrupt):
            trained("tiny", folder=tmp_path)
    found = trained("tiny", folder=tmp_path, progress=stop)
    assert torch.equal(found.module.linear.weight, train(RECIPES["tiny"], images(), torch.ones(64)).linear.weight)


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
