"""Ranger with bounds from training data alone leaves the accuracy on held-out data where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hoplon import Ranger, capture, harden, profile_ranges, zoo
from hoplon.program.inputs import Inputs
from hoplon_studies.networks.efficientnet import LITE0
from hoplon_studies.training.recipes import RECIPES

DATA = {"lenet-digits": "digits", "resnet20-cifar10": "cifar10", "resnet56-cifar10": "cifar10"}


def right(model: Callable[..., Tensor], data: Inputs) -> int:
    """Samples of which the model gives the label."""
    assert data.y is not None
    labels = data.y.split(250)
    with torch.inference_mode():
        batches = zip(data.batches(250), labels, strict=True)
        return sum(int((model(*part.tensors).argmax(1) == y).sum()) for part, y in batches)


def test_no_model_that_comes_trained_is_left_out() -> None:
    untrained = {name for name in zoo.model_names() if name.startswith("paper:")}
    assert set(DATA) == set(zoo.model_names()) - untrained - set(RECIPES) - {LITE0}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_accuracy_stays_within_a_twentieth_of_a_point(
    name: str, hoplon_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all held-out samples: 797 digits, 10,000 images of CIFAR-10."""
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    model, data = zoo.model(name), zoo.data(DATA[name])
    program = capture(model.module, model.example, name=name)
    ranges = profile_ranges(program, data.calibration.take(range(min(2000, len(data.calibration)))))
    before, after = right(model.module, data.held_out), right(harden(program, [Ranger(ranges)]), data.held_out)
    assert before > 0.7 * len(data.held_out)
    assert 100 * abs(after - before) / len(data.held_out) <= 0.05
