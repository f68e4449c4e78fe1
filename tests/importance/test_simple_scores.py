"""Gradient, Fisher, magnitude, random, and scores within a layer, against slow references."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import HoplonError
from hoplon.importance import Scores, fisher, gradient, layerwise, magnitude, random
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from tests.support.networks import NETWORKS, WIRINGS, captured

GRADED = [case for case in WIRINGS if case != "views"]  # eager autograd refuses the in-place writes of "views"


def labelled(case: str, count: int) -> Inputs:
    return Inputs(
        NETWORKS[case].batch(count), torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(2))
    )


def gradients(model: nn.Module, data: Inputs, batch: int) -> list[dict[str, Tensor]]:
    """Slow reference: ordinary autograd on a copy of the user's model, one gradient per batch."""
    model = copy.deepcopy(model)
    found = []
    for part in data.batches(batch):
        model.zero_grad()
        F.cross_entropy(model(part.tensors[0]), part.y).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return found


@pytest.mark.parametrize("case", GRADED)
def test_the_gradient_score_is_the_sum_of_absolute_gradients(case: str) -> None:
    model, data = NETWORKS[case].model(), labelled(case, 7)
    scores = gradient(capture(model, data.tensors[0]), data, loss=F.cross_entropy, batch=3)
    wanted = gradients(model, data, 3)
    assert any(score.max() > 0 for score in scores.values.values())
    for name, score in scores.values.items():
        torch.testing.assert_close(score, torch.stack([g[name].abs() for g in wanted]).sum(0), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("case", GRADED)
def test_the_fisher_score_of_single_samples_is_exact(case: str) -> None:
    model, data = NETWORKS[case].model(), labelled(case, 5)
    scores = fisher(capture(model, data.tensors[0]), data, loss=F.cross_entropy, batch=1)
    wanted = gradients(model, data, 1)
    for name, score in scores.values.items():
        torch.testing.assert_close(score, torch.stack([g[name] ** 2 for g in wanted]).mean(0), rtol=1e-4, atol=1e-9)


def test_the_fisher_score_is_unbiased_over_its_signs() -> None:
    """Two samples have two different patterns of signs, up to the common one; their mean is the exact score."""
    model, data = NETWORKS["in-place-sum"].model(), labelled("in-place-sum", 2)
    program = capture(model, data.tensors[0])
    found = [fisher(program, data, loss=F.cross_entropy, batch=2, seed=seed)["conv1.weight"] for seed in range(8)]
    other = next(score for score in found if not torch.allclose(score, found[0]))
    assert all(torch.allclose(score, found[0]) or torch.allclose(score, other) for score in found)
    exact = torch.stack([g["conv1.weight"] ** 2 for g in gradients(model, data, 1)]).mean(0)
    torch.testing.assert_close((found[0] + other) / 2, exact, rtol=1e-4, atol=1e-9)


def test_magnitude_is_the_absolute_weight_and_needs_no_data() -> None:
    model = NETWORKS["shared"].model()
    scores = magnitude(capture(model, NETWORKS["shared"].batch(5)))
    assert set(scores.values) == {"a.weight", "a.bias", "b.bias"}
    assert all(score.equal(model.get_parameter(name).abs()) for name, score in scores.values.items())


def test_random_scores_depend_on_the_seed_alone() -> None:
    program = captured("in-place-sum", 5)
    one = random(program, seed=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, other = random(program, seed=1), random(program, seed=2)
    assert torch.get_rng_state().equal(state)
    assert all(one[name].equal(again[name]) for name in one.values)
    assert not any(one[name].equal(other[name]) for name in one.values)
    flat = torch.cat([score.reshape(-1) for score in one.values.values()])
    assert len(flat.unique()) == len(flat)
    assert 0 <= flat.min() < 0.1 < 0.9 < flat.max() < 1


def test_ranks_within_a_layer_follow_the_order_and_its_ties() -> None:
    given = {"a": torch.tensor([[3.0, 1.0], [3.0, 0.0]]), "b": torch.tensor([5.0]), "c": torch.zeros(0)}
    found = layerwise(Scores(given, score="taylor", n_samples=7))
    assert found["a"].tolist() == [[1.0, 0.5], [0.75, 0.25]]
    assert found["b"].tolist() == [1.0]
    assert (found.score, found.n_samples) == ("layerwise(taylor, rank)", 7)
    top = found.top(0.4)
    assert {name: indices.tolist() for name, indices in top.items()} == {"a": [0], "b": [0], "c": []}


def test_shares_of_a_layer_sum_to_one_and_maxima_are_one() -> None:
    given = Scores({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([1e-20, 1e-20]), "zero": torch.zeros(2)})
    assert {k: v.tolist() for k, v in layerwise(given, by="sum").values.items()} == {
        "a": [0.25, 0.75],
        "b": [0.5, 0.5],
        "zero": [0.0, 0.0],
    }
    assert layerwise(given, by="max")["b"].tolist() == [1.0, 1.0]


def test_normalisations_that_mean_nothing_are_refused() -> None:
    negative = Scores({"a": torch.tensor([1.0, -3.0])})
    with pytest.raises(HoplonError, match="expected scores of at least 0 for by='sum', got others in a"):
        layerwise(negative, by="sum")
    with pytest.raises(HoplonError, match="expected by of layerwise to be 'rank' or 'sum' or 'max', got 'mean'"):
        layerwise(negative, by="mean")  # type: ignore[arg-type]
