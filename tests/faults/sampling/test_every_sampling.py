"""What every registered sampling promises of the faults that it draws."""

from __future__ import annotations

import math

import pytest
import torch

from hoplon.faults import BitFlip, FaultTable
from hoplon.faults.sampling import EachTopScore, Explicit, Population, draw_faults, unit_generator
from hoplon.program.sites import ValueSite
from hoplon.registry import components
from tests.support.examples import example

SITES = (ValueSite("a", "conv", shape=(2, 3)), ValueSite("b", "relu", shape=(1,)), ValueSite("c", "linear", shape=(9,)))
SCORES = {site.name: torch.arange(site.numel) + 1.0 for site in SITES}
INPUTS = torch.tensor([3, 5])


@pytest.mark.parametrize("name", components("sampling"))
def test_faults_lie_in_the_population_with_their_probability_and_follow_the_seed(name: str) -> None:
    given = {"scores": SCORES, "fraction": 0.5, "faults": [("a:conv", number) for number in range(6)]}
    sampling = example(components("sampling")[name], **given)
    population = Population(SITES, BitFlip(), INPUTS)
    size = sampling.size(population)
    count = min(size or 60, 60)

    def drawn(seed: int) -> FaultTable:
        return draw_faults(population, count, sampling=sampling, generator=unit_generator(seed, 0))

    table, numels = drawn(0), {site.name: site.numel for site in SITES}
    assert len(table) == count
    assert table.digest() == drawn(0).digest()
    if size is None:
        assert table.digest() != drawn(1).digest()
    for row in table.frame.iter_rows(named=True):
        assert 0 <= row["element"] < numels[row["site"]]
        assert row["input"] in INPUTS
        chosen = isinstance(sampling, Explicit | EachTopScore)
        assert math.isnan(row["probability"]) if chosen else 0 < row["probability"] <= 1
