from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hoplon.errors import DataError
from hoplon.zoo.cache import load_tensors
from hoplon_studies.training.checkpoints import Diary, share_right
from hoplon_studies.training.recipes import Recipe, train


def net(width: int = 4) -> nn.Module:
    """Batch norm keeps buffers, dropout draws from torch's own generator."""
    features = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


RECIPE = Recipe(
    *("small", net, "-"),
    epochs=4,
    learning_rate=0.05,
    batch_size=16,
    mirror=True,
    shift=1,
    warp=5.0,
    light=0.1,
    pixels=10,
    smoothing=0.1,
    channels_last=True,
)


class _Stopped(BaseException):
    pass


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return x, torch.arange(40) % 3


def stop_after(epochs: int, done: int, total: int, loss: float) -> None:
    if done == epochs:
        raise _Stopped


def stopped(path: Path, epochs: int = 2, digest: str = "d") -> None:
    with pytest.raises(_Stopped):
        train(RECIPE, *data(), progress=partial(stop_after, epochs), diary=Diary(path, digest))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path, epochs: int) -> None:
    x, y = data()
    aside = x.float().div(255), y
    whole = Diary(tmp_path / "whole", "d", aside)
    first = train(RECIPE, x, y, diary=whole)
    stopped(tmp_path / "stopped", epochs)
    told: list[int] = []
    diary = Diary(tmp_path / "stopped", "d", aside)
    again = train(RECIPE, x, y, progress=lambda done, total, loss: told.append(done), diary=diary)
    assert told == list(range(epochs + 1, 5))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [line.loss for line in diary.curve] == [line.loss for line in whole.curve]
    assert [line.right for line in diary.curve[epochs:]] == [line.right for line in whole.curve[epochs:]]
    assert torch.equal(train(RECIPE, x, y)[3].weight, first[3].weight)


def test_the_curve_tells_what_images_set_aside_say_of_the_net_as_it_is(tmp_path: Path) -> None:
    x, y = data()
    diary = Diary(tmp_path / "file", "d", (x.float().div(255), y))
    found = train(dataclasses.replace(RECIPE, pixels=0), x, y, diary=diary)
    right = (found(x.float().div(255)).argmax(1) == y).double().mean()
    assert diary.curve[-1].right == pytest.approx(float(right))
    assert len(diary.curve) == 4
    assert all(line.seconds >= 0 for line in diary.curve)


def test_the_share_right_leaves_the_mode_as_it_is() -> None:
    x = torch.eye(3)
    assert share_right(nn.Identity().train(), x, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    module = nn.Sequential(nn.Dropout(0.9))
    assert share_right(module, x, torch.arange(3)) == 1
    assert module.training


def test_a_file_of_other_data_of_another_network_or_damaged_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file, digest="other")
    with pytest.raises(
        DataError, match="expected a training on the data in HOPLON_DATA in .*file, got another; remove"
    ):
        train(RECIPE, *data(), diary=Diary(file, "d"))
    wide = dataclasses.replace(RECIPE, build=partial(net, 5))
    with pytest.raises(DataError, match="expected a training of the same network in .*file; remove it"):
        train(wide, *data(), diary=Diary(file, "other"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="expected whole trained weights in .*; remove the file"):
        train(RECIPE, *data(), diary=Diary(file, "other"))


def test_the_file_goes_once_the_weights_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    stopped(file)
    tensors, notes = load_tensors(file)
    assert notes["data"] == "d"
    assert "net.3.weight" in tensors
    Diary(file, "d").end()
    Diary(file, "d").end()
    assert not list(tmp_path.iterdir())
