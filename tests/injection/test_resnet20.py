"""ResNet-20 on CIFAR-10 against an independent measurement of the same experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from hoplon import Campaign, Program, Ranger, Values, capture, compare, profile_ranges, zoo
from hoplon.campaign.rates import Rate
from hoplon.program.inputs import Inputs

# Failures with single-bit float32 flips in the outputs of the 19 convolutions, element-uniform, over 64 eligible test
# images, found by a script that shares nothing with hoplon: 2.04 % of 127,872 faults.
FAULTS, SHARE = 127_872, 0.0204
COUNT = 16_384


@pytest.fixture(scope="module")
def setting(hoplon_data: Path) -> tuple[Program, Inputs, Inputs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOPLON_DATA", str(hoplon_data))
        model, data = zoo.model("resnet20-cifar10"), zoo.data("cifar10")
    program = capture(model.module, model.example, name=model.name)
    first = data.held_out.take(range(80))  # 64 of them are eligible
    return program, first, data.calibration.take(range(2000))


def _rate(program: Program, data: Inputs, **options: object) -> Rate:
    sites = Values(kind="conv")
    assert len(sites.select(program)) == 19
    return Campaign(program, data, sites=sites, **options).run(count=COUNT, seed=1).summary()[0]  # type: ignore[arg-type]


@pytest.mark.slow
def test_unprotected_failures_agree_with_the_independent_measurement(
    setting: tuple[Program, Inputs, Inputs],
) -> None:
    """Fisher's exact test; false-alarm probability 1e-4, seed fixed."""
    program, data, _ = setting
    rate = _rate(program, data)
    assert rate.n_inputs == 64
    failures, theirs = rate.counts["sdc"] + rate.counts["nonfinite"], round(FAULTS * SHARE)
    table = [[failures, COUNT - failures], [theirs, FAULTS - theirs]]
    assert stats.fisher_exact(table).pvalue > 1e-4


@pytest.mark.slow
def test_ranger_leaves_less_than_one_failure_in_a_thousand(setting: tuple[Program, Inputs, Inputs]) -> None:
    program, data, calibration = setting
    rate = _rate(program, data, protections=[Ranger(profile_ranges(program, calibration))])
    assert rate.failure.high < 0.001


@pytest.mark.slow
def test_ranger_fails_at_least_thirty_times_less_often_on_the_same_faults(
    setting: tuple[Program, Inputs, Inputs],
) -> None:
    """204,800 single-bit flips of float32, seed 4; the lower end of the 95 % interval of the ratio is what counts."""
    program, data, calibration = setting
    faults = Campaign(program, data, sites=Values(kind="conv")).draw(count=204_800, seed=4)
    arms = {"none": [], "ranger": [Ranger(profile_ranges(program, calibration))]}
    found = compare(program, data, arms=arms, faults=faults, latency=False)["ranger", "values"]
    assert found.rate.n_faults == found.rate.n_runs == 204_800
    assert found.rate.n_inputs == 64
    assert found.wrong_fault_free == 0
    assert found.reduction is not None
    assert found.reduction.low >= 30
