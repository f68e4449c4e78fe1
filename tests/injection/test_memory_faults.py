"""Outcomes of memory faults against whole forwards with the same memory."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from hoplon import BitFlip, Campaign, Inputs, Memory, capture
from hoplon.criteria import TopK
from hoplon.formats import equal_bits
from tests.support.networks import Wide
from tests.support.oracles import with_flipped_bit


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor]:
    """A wide network and 11 inputs, two of which are zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Wide().eval(), torch.randn(11, 4, 9, 9)
        with torch.no_grad():
            model.first.bias.zero_()
        x[2] = x[9] = 0
    return model, x


@pytest.fixture(scope="module")
def campaign(network: tuple[nn.Module, Tensor]) -> Campaign:
    """Weights, in batches of four and one of three."""
    model, x = network
    program = capture(model, x[:4])
    return Campaign(
        program,
        Inputs(x),
        sites=Memory(("first.weight", "second.weight")),
        fault_model=BitFlip(bits=(30, 24, 0)),
        criterion=TopK(1),
        batch=4,
    )


def test_outcomes_are_those_of_whole_forwards(campaign: Campaign, network: tuple[nn.Module, Tensor]) -> None:
    results = campaign.run(count=40, seed=2)
    model, x = network
    runs = results.runs
    for word in results.faults.frame.iter_rows(named=True):
        mine = runs.filter(pl.col("fault") == word["fault"])
        assert word["flip"].bit_count() == 1
        broken = with_flipped_bit(model, word["site"], word["element"], word["flip"].bit_length() - 1)
        for number, start in enumerate(range(0, len(x), 4)):
            batch = x[start : start + 4]
            real = len(batch)
            batch = torch.cat([batch, batch[-1:].expand(4 - real, -1, -1, -1)])  # a pass holds four samples
            with torch.inference_mode():
                found, golden = (net(batch)[:real] for net in (broken, model))
            here = mine[number * 4 : number * 4 + real]["top-1"].cast(pl.String).to_list()
            for row, outcome in enumerate(here):
                if not found[row].isfinite().all():
                    expected = "nonfinite"
                elif found[row].argmax() != golden[row].argmax():
                    expected = "sdc"
                else:
                    expected = "identical" if equal_bits(found[row], golden[row]) else "benign"
                assert outcome == expected, (word, number, row)
    assert {"identical", "benign", "sdc"} <= set(runs["top-1"].cast(pl.String))
