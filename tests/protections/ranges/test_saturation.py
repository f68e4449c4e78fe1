"""What enters activations that saturate: found in every form of a model, profiled, and bounded where asked for."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import HoplonError
from hoplon.formats import equal_bits
from hoplon.program.capturing import capture
from hoplon.program.program import Program
from hoplon.protections.ranges import Bound, Ranges, inherent_ranges, profile_ranges, saturating_inputs
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.policy import ToZero
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import seeded

X = 3 * torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


class Saturated(nn.Module):
    """Functions with two ends behind layers, a view, a product and another activation, written out, and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.hard, self.gate, self.fc, self.last = HardSigmoid(), nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.conv(x)))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))).view(-1, 4, 1, 1))
        y = torch.relu(F.hardtanh(y, 0.0, 2.0)) + F.hardswish(self.point(y))
        y = self.hard(self.fc(y.mean((2, 3))))
        return self.last(torch.tanh(F.relu(y))).sigmoid()


ENTERING = ["norm:batch_norm", "gate:linear", ":mul", "fc:linear", "last:linear"]


@pytest.fixture(scope="module", params=["export", "eager"])
def program(request: pytest.FixtureRequest) -> Program:
    return capture(seeded(Saturated()), X[:4], form=request.param)


def test_what_enters_is_found_through_views_and_written_out_forms(program: Program) -> None:
    found = saturating_inputs(program)
    assert list(found) == ENTERING
    kinds = {name: program.value_site(activation).kind for name, activation in found.items()}
    assert kinds == dict(zip(ENTERING, ["hardtanh", "sigmoid", "hardtanh", "div", "sigmoid"], strict=True))


def test_a_huge_input_is_bounded_before_its_activation_hides_it(program: Program) -> None:
    x = X[: program.signature.fixed_batch]
    ranges = profile_ranges(program, X, saturating="input")
    ranger = Ranger(ranges, saturating="input")
    effects, usual = ranger.values(program), Ranger(profile_ranges(program, X)).values(program)
    assert {name: effect for name, effect in effects.items() if name in usual} == usual
    assert [name for name in effects if name not in usual] == ENTERING[:-1]  # the last linear layer gives the output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what watching costs
        assert equal_bits(harden(program, [ranger])(x), program(x))
    huge = torch.full((2,), 1e30)
    assert usual[":hardtanh"](F.relu6(huge)).tolist() == [6.0, 6.0]  # what the faultless network gives too
    zeroed = Ranger(ranges, saturating="input", policy=ToZero()).values(program)
    with torch.inference_mode():
        bounded = effects["norm:batch_norm"](huge)
        assert bounded.tolist() == pytest.approx([ranges["norm:batch_norm"].high] * 2, rel=2**-14)
        assert F.relu6(zeroed["norm:batch_norm"](huge)).tolist() == [0.0, 0.0]
    assert ranger.label == "ranger-input"
    why = {entry.site: entry.why for entry in ranger.coverage(program)}
    assert why["norm:batch_norm"] == "profiled, enters :hardtanh"


def test_ranges_without_what_enters_are_refused(program: Program) -> None:
    for ranges in (profile_ranges(program, X), inherent_ranges(program)):
        with pytest.raises(HoplonError, match=r"norm:batch_norm, .* \(4 in all\); profile with saturating='input'"):
            Ranger(ranges, saturating="input").values(program)
    left = Ranger(profile_ranges(program, X), saturating="input", unprofiled="leave").values(program)
    assert not left.keys() & set(ENTERING)
    with pytest.raises(HoplonError, match="expected saturating of Ranger to be 'output' or 'input', got 'both'"):
        Ranger(Ranges({"a": Bound(0, 1)}), saturating="both")  # type: ignore[arg-type]
