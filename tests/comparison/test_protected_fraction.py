from __future__ import annotations

import numpy as np
import pytest
import torch

import hoplon as hp
from hoplon.campaign.results import Results
from hoplon.comparison.protected_fraction import remaining
from hoplon.errors import HoplonError
from tests.support.networks import small_data, small_net

SITES = hp.Memory("0.weight")


@pytest.fixture(scope="module")
def program() -> hp.Program:
    return hp.capture(small_net(), torch.zeros(4, 1, 6, 6))


@pytest.fixture(scope="module")
def results(program: hp.Program) -> Results:
    return hp.Campaign(program, small_data()[0], sites=SITES, fault_model=hp.BitFlip(bits=(30,))).run(count=40, seed=1)


def test_nothing_protected_leaves_the_campaigns_own_rate(results: Results, program: hp.Program) -> None:
    scores = hp.importance.magnitude(program, sites=SITES)
    own = results.summary()[0].failure
    found = remaining(results, scores, 0.0)
    assert (found.estimate, found.low, found.high) == pytest.approx((own.estimate, own.low, own.high))
    assert own.estimate > 0
    assert remaining(results, scores, 1.0).estimate == 0


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_what_remains_is_what_the_guard_leaves(results: Results, program: hp.Program, fraction: float) -> None:
    scores = hp.importance.magnitude(program, sites=SITES)
    arms = {"none": [], "aspis": [hp.Aspis(scores, fraction)]}
    guarded = hp.compare(program, small_data()[0], arms=arms, faults=results.faults, latency=False)["aspis", "memory"]
    found = remaining(results, scores, fraction)
    assert found.estimate == pytest.approx(guarded.rate.failure.estimate)
    assert (found.low, found.high) == pytest.approx((guarded.rate.failure.low, guarded.rate.failure.high))


def test_faults_in_several_words_are_refused(program: hp.Program) -> None:
    burst = hp.Campaign(program, small_data()[0], sites=SITES, fault_model=hp.faults.Elements(2)).run(count=4)
    with pytest.raises(HoplonError, match="expected faults in one weight each"):
        remaining(burst, hp.importance.magnitude(program, sites=SITES), 0.5)


def test_values_have_no_place_in_memory(program: hp.Program) -> None:
    values = hp.Campaign(program, small_data()[0], sites=hp.Values("0:*")).run(count=4)
    with pytest.raises(HoplonError, match="expected memory faults"):
        remaining(values, hp.importance.magnitude(program, sites=SITES), 0.5)
    assert np.isfinite(values.summary()[0].failure.estimate)
