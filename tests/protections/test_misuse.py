"""Protections of another model, of replaced tensors or without what they need are refused, never silent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hoplon import TMR, Aspis, HoplonError, Inputs, Memory, Ranger, capture, compare, harden, profile_ranges
from hoplon.campaign.campaign import Campaign
from hoplon.errors import DataError
from hoplon.importance import taylor
from tests.support.networks import NETWORKS, captured


def _data(name: str, count: int = 6) -> Inputs:
    return Inputs(NETWORKS[name].batch(count), torch.arange(count) % 3)


@pytest.mark.parametrize("kind", ["ranger", "aspis"])
def test_bounds_and_scores_of_other_weights_are_refused(kind: str) -> None:
    net = NETWORKS["mlp"]
    one, other = (capture(net.model(seed=seed), net.batch(2)) for seed in (0, 5))
    protection: Any = (
        Ranger(profile_ranges(one, _data("mlp")))
        if kind == "ranger"
        else Aspis(taylor(one, _data("mlp"), loss=F.cross_entropy), 0.5)
    )
    assert harden(one, [protection])(net.batch(2)).shape == (2, 4)
    with pytest.raises(
        HoplonError, match=f"expected {protection.label} made for Mlp with these weights, got one made for"
    ):
        harden(other, [protection])


def test_a_guard_notices_that_its_tensor_was_replaced() -> None:
    net = NETWORKS["mlp"]
    module = harden(captured("mlp"), [TMR()])
    weight = module.get_parameter("fc1.weight")
    weight.data = weight.data.clone()
    with pytest.raises(HoplonError, match=r"got another tensor as fc1.weight; call monitor.refresh\(\)"):
        module(net.batch(2))
    module.monitor.refresh()
    with torch.no_grad():
        weight.data.view(-1)[0] = 1e30
    assert module.check().corrected == 1
    assert float(weight.detach().view(-1)[0]) != 1e30


def test_scores_need_what_the_loss_needs() -> None:
    net = NETWORKS["mlp"]
    program = captured("mlp")
    with pytest.raises(
        DataError, match="expected a loss.* that takes what the model and the data give, got data without"
    ):
        taylor(program, Inputs(net.batch(4)), loss=F.cross_entropy)
    with pytest.raises(HoplonError, match="expected scores of Aspis to be Scores, got None"):
        Aspis(None, 0.1)  # type: ignore[arg-type]


def test_an_eager_program_is_compared_without_latency() -> None:
    net = NETWORKS["mlp"]
    program = captured("mlp", form="eager")
    data = Inputs(net.batch(6))
    table = Campaign(program, data, sites=Memory()).draw(count=20, seed=0)
    found = compare(program, data, arms={"none": [], "tmr": [TMR()]}, faults=table)
    assert found["tmr", "memory"].cost.latency is None
    assert found["tmr", "memory"].rate.counts["identical"] == 20 * 6
    with pytest.raises(HoplonError, match="expected form 'separate' for Mlp in the eager form, got 'fused'"):
        harden(program, [TMR()], form="fused")
