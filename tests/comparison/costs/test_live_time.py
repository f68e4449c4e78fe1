"""How long values live: a chain and a skip connection by hand, views, and programs without a graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.comparison.costs.flops import count_flops, flops_by_step
from hoplon.comparison.costs.live_time import live_shares, measured_step_seconds
from hoplon.errors import HoplonError


class Skip(nn.Module):
    """Three layers; the first one's output is read by the second and, as a view, by an addition at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        kept = first.view(-1, 2, 4)
        inner = torch.relu(self.b(first))
        out: Tensor = self.head(inner + kept.flatten(1))
        return out


@pytest.fixture(scope="module")
def program() -> hp.Program:
    torch.manual_seed(0)
    return hp.capture(Skip().eval(), torch.randn(4, 4))


def test_from_the_start_of_its_operator_to_the_end_of_the_last_reader(program: hp.Program) -> None:
    """Times 1, 2, 3, 4, 10 of a, b, relu, add, head: 20 in all; every other step takes none."""
    wanted = {"a:linear": 1.0, "b:linear": 2.0, ":relu": 3.0, ":add": 4.0, "head:linear": 10.0}
    times = {program.site_steps[name]: seconds for name, seconds in wanted.items()}
    shares = live_shares(program, step_times=times)
    assert shares["a:linear"] == pytest.approx((1 + 2 + 3 + 4) / 20)  # read by the addition through two views
    assert shares["b:linear"] == pytest.approx((2 + 3) / 20)
    assert shares[":relu"] == pytest.approx((3 + 4) / 20)
    assert shares[":add"] == pytest.approx((4 + 10) / 20)
    assert shares["head:linear"] == pytest.approx(10 / 20)
    assert shares[":input"] == pytest.approx(1 / 20)


def test_operations_stand_for_time(program: hp.Program) -> None:
    flops = flops_by_step(program)
    assert sum(flops.values()) == count_flops(program, convention="fused").total
    a, b, rest = 2 * 4 * 8, 2 * 8 * 8, 8 + 8
    assert live_shares(program)["a:linear"] == pytest.approx((a + b + rest) / sum(flops.values()))


def test_measured_times_have_a_time_for_every_operator(program: hp.Program) -> None:
    seconds = measured_step_seconds(program, program.input_leaves((torch.randn(4, 4),)), repeats=2)
    assert seconds.keys() == {step.index for step in program.compute_steps()}
    assert all(0 < share <= 1 for share in live_shares(program, step_times=seconds).values())


def test_times_that_cannot_be_are_refused(program: hp.Program) -> None:
    for times in ({}, {program.site_steps["a:linear"]: -1.0, program.site_steps["b:linear"]: 2.0}):
        with pytest.raises(HoplonError, match="at least 0"):
            live_shares(program, step_times=times)
