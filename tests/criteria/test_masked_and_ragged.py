"""-inf in golden and faulty outputs alike, and runs whose output has another shape: outcomes like any other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.criteria import Criterion
from hoplon.criteria.outcome import classify, measure
from hoplon.errors import DataError

INF = math.inf
GOLDEN = torch.tensor([3.0, 2.0, -INF])
RUNS = {
    "identical": [3.0, 2.0, -INF],
    "benign": [3.0, 2.5, -INF],
    "sdc": [3.0, 4.5, -INF],
    "nonfinite": [3.0, -INF, -INF],
}


def outcomes(criterion: Criterion, golden: Tensor, faulty: Tensor) -> list[str]:
    found = classify(criterion, reference=[golden], golden=[golden], faulty=[faulty], labels=None)
    return [hp.criteria.OUTCOME_NAMES[outcome] for outcome in found[:, 0].tolist()]


@pytest.mark.parametrize(
    "criterion", [hp.TopK(1), hp.Deviation((1.0,)), hp.Custom(lambda g, f, y: g.argmax(1) != f.argmax(1), "argmax")]
)
def test_a_masked_class_is_a_value_as_others_are(criterion: Criterion) -> None:
    faulty = torch.tensor(list(RUNS.values()))
    golden = GOLDEN.expand_as(faulty)
    criterion.check(golden, None)
    assert outcomes(criterion, golden, faulty) == list(RUNS)
    unmasked, lost = torch.tensor([[3.0, 2.0, 7.0]]), torch.tensor([[math.nan, 2.0, -INF]])
    assert outcomes(criterion, GOLDEN[None], unmasked) == ["sdc"]
    assert outcomes(criterion, GOLDEN[None], lost) == ["nonfinite"]


def test_measures_of_masked_logits_are_numbers() -> None:
    faulty = torch.tensor([RUNS["benign"]])
    assert measure(hp.TopK(1), reference=[GOLDEN[None]], faulty=[faulty]).isfinite().all()


def test_positive_infinity_is_no_mask() -> None:
    with pytest.raises(DataError, match=r"infinity for input 0 \(1 of 2 inputs\); leave them out"):
        hp.TopK(1).check(torch.tensor([[1.0, INF], [1.0, 2.0]]), None)
    with pytest.raises(DataError, match=r"\(1 of 1 inputs\); judge another output"):
        hp.TopK(1).check(torch.tensor([[1.0, INF]]), None)


class Detector(nn.Module):
    """As many boxes as have a score, in the form of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.conv(x)[0].flatten(1).T
        found = found[found[:, 4].sigmoid() > 0.5]
        return {"boxes": found[:, :4], "scores": found[:, 4].sigmoid(), "labels": (found[:, 5] > 0).long()}


@pytest.mark.parametrize("sites", [hp.Values(), hp.Memory()])
def test_a_run_with_another_number_of_boxes_is_an_sdc(sites: hp.Values | hp.Memory) -> None:
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    program = hp.capture(Detector().eval(), x[:1], form="eager")
    assert len({len(program(sample[None])["boxes"]) for sample in x}) > 1
    campaign = hp.Campaign(
        program, hp.Inputs(x), sites=sites, fault_model=hp.BitFlip(bits=(30, 31)), criterion=hp.Detection(score=0.0)
    )
    counts = campaign.run(count=30, seed=0).summary()[0].counts
    assert counts["sdc"] > 0
    assert sum(counts.values()) == (30 if sites == hp.Values() else 90)


class Blind(nn.Module):
    """A detector that finds nothing without a fault, in a list with one entry per image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        nn.init.constant_(self.conv.weight, 1e-3)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        found = [image.flatten(1).T for image in self.conv(x)]
        return [{"boxes": part[part[:, 4] > 0.5][:, :4]} for part in found]


def test_a_detector_that_finds_nothing_is_judged_by_what_a_fault_invents() -> None:
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    program = hp.capture(Blind().eval(), x, form="eager")
    faults = hp.BitFlip(bits=(30,))
    for sites in (hp.Values("conv:*"), hp.Memory("conv.*")):
        campaign = hp.Campaign(program, hp.Inputs(x), sites=sites, fault_model=faults, criterion=hp.Deviation((1.0,)))
        counts = campaign.run(count=40, seed=0).summary()[0].counts
        assert min(counts["sdc"], counts["identical"]) > 0


def test_another_shape_is_an_sdc_unless_it_is_not_finite() -> None:
    golden, longer = torch.zeros(1, 3), torch.zeros(1, 4)
    assert outcomes(hp.Deviation((1.0,)), golden, longer) == ["sdc"]
    assert outcomes(hp.Deviation((1.0,)), golden, longer + math.nan) == ["nonfinite"]
    assert measure(hp.TopK(1), reference=[golden], faulty=[longer]).isnan().all()
