from __future__ import annotations

import pytest
import torch
from torch import nn

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.seeding import seeded
from hoplon_studies.training.classifier import train_classifier


def _separable() -> Inputs:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    return Inputs(x, (x[:, 0] > 0).long())


def _trained(*, seed: int = 0, epochs: int = 20, **options) -> nn.Module:
    with seeded(0):
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    train_classifier(net, _separable(), epochs=epochs, seed=seed, batch_size=7, **options)
    return net


def _weights(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_separable_classes_are_learned_and_progress_is_told():
    told = []
    net = _trained(progress=lambda done, total, loss: told.append((done, total, loss)))
    data = _separable()
    accuracy = (net(data.x).argmax(1) == data.y).double().mean()
    assert accuracy >= 0.95
    assert [step[:2] for step in told] == [(epoch, 20) for epoch in range(1, 21)]
    assert told[-1][2] < 0.5 * told[0][2]


def test_leaves_eval_mode_and_no_gradients():
    net = _trained(epochs=1)
    assert not any(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_same_seed_same_weights_other_seed_others():
    assert torch.equal(_weights(_trained(seed=3)), _weights(_trained(seed=3)))
    assert not torch.equal(_weights(_trained(seed=3)), _weights(_trained(seed=4)))


def test_global_random_state_is_not_touched():
    before = torch.random.get_rng_state()
    _trained(epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeded_puts_the_state_back_also_on_error():
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="invalid"), seeded(5):
        torch.rand(3).reshape(2, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_runs_on_one_thread_whatever_the_caller_has():
    threads = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _trained(epochs=1, progress=lambda *_: threads.append(torch.get_num_threads()))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (threads, after) == ([1], 2)


def test_an_interrupted_training_puts_the_threads_back():
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            _trained(progress=stop)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_trains_also_where_the_caller_has_gradients_off():
    with torch.no_grad():
        inside = _weights(_trained(epochs=2))
    assert torch.equal(inside, _weights(_trained(epochs=2)))


def test_unlabelled_inputs_are_refused():
    with pytest.raises(DataError, match="expected labels to train with, got the unlabelled inputs 'frames'"):
        train_classifier(nn.Linear(4, 2), Inputs(torch.zeros(3, 4), name="frames"), epochs=1, seed=0)
