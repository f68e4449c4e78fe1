from __future__ import annotations

import pytest
import torch

from hoplon.zoo import LeNet, ZooModel, lenet_digits, model
from hoplon.zoo.datasets._digits import digits
from hoplon_studies.training.classifier import train_lenet_digits


@pytest.fixture(scope="module")
def trained() -> ZooModel:
    return lenet_digits()


def test_every_operator_has_a_name_and_the_shape_that_the_comments_give():
    shapes = {}
    net = LeNet()
    for name, module in net.named_children():
        module.register_forward_hook(lambda _m, _x, y, name=name: shapes.update({name: tuple(y.shape)}))
    net(torch.zeros(3, 1, 8, 8))
    assert shapes == {
        "conv1": (3, 6, 8, 8),
        "relu1": (3, 6, 8, 8),
        "pool1": (3, 6, 4, 4),
        "conv2": (3, 16, 4, 4),
        "relu2": (3, 16, 4, 4),
        "pool2": (3, 16, 2, 2),
        "flatten": (3, 64),
        "fc1": (3, 120),
        "relu3": (3, 120),
        "fc2": (3, 84),
        "relu4": (3, 84),
        "fc3": (3, 10),
    }


def test_trained_lenet_reads_held_out_digits(trained):
    held_out = digits().held_out
    with torch.no_grad():
        accuracy = (trained.module(held_out.x).argmax(1) == held_out.y).double().mean()
    assert accuracy >= 0.95


def test_entry_is_ready_to_capture(trained):
    assert (trained.name, trained.task) == ("lenet-digits", "classification")
    assert not any(module.training for module in trained.module.modules())
    assert trained.example.shape == (4, 1, 8, 8)


def test_loading_touches_no_global_random_state():
    before = torch.random.get_rng_state()
    lenet_digits()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_the_weights_are_those_of_a_training_with_seed_0(trained):
    """Bit for bit on x86-64, where the file was made; to rounding on other processors."""
    again, shipped = train_lenet_digits(seed=0), trained
    for name, value in shipped.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], value, rtol=1e-2, atol=1e-3)
    assert torch.equal(again.example, shipped.example)


def test_another_seed_is_trained(trained):
    other = model("lenet-digits", seed=5).module
    held_out = digits().held_out
    assert not torch.equal(other.fc3.weight, trained.module.fc3.weight)
    with torch.no_grad():
        assert (other(held_out.x).argmax(1) == held_out.y).double().mean() >= 0.95
