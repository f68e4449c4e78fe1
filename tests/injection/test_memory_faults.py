"""Outcomes of memory faults against whole forwards with the same memory."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from hoplon import BitFlip, Campaign, Inputs, Memory, capture
from hoplon.criteria import TopK
from hoplon.formats import equal_bits
from hoplon.injection.golden_run import GoldenRun
from tests.support.networks import Wide


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    """Weights of a wide network on 11 inputs, batches of four and one of three; two inputs are zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Wide().eval(), torch.randn(11, 4, 9, 9)
        with torch.no_grad():
            model.first.bias.zero_()
        x[2] = x[9] = 0
    program = capture(model, x[:4])
    return Campaign(
        program,
        Inputs(x),
        sites=Memory(("first.weight", "second.weight")),
        fault_model=BitFlip(bits=(30, 24, 0)),
        criterion=TopK(1),
        batch=4,
    )


def test_outcomes_are_those_of_whole_forwards(campaign: Campaign) -> None:
    results = campaign.run(count=40, seed=2)
    program, data = campaign.program, campaign.data
    reference = GoldenRun.run(program, data, campaign.criterion, batch=4)
    runs = results.runs
    for word in results.faults.frame.iter_rows(named=True):
        site = program.memory_site(str(word["site"]))
        mine = runs.filter(pl.col("fault") == word["fault"])
        for number in range(reference.input_batches):
            leaves, real = reference.leaves(number)
            memory = program.memory()
            broken = memory[site.name].detach().clone()
            broken.view(torch.int32).view(-1)[word["element"]] ^= int(np.uint32(word["flip"]).astype(np.int32))
            with torch.inference_mode():
                found = program.run(leaves, {**memory, site.name: broken})[0][:real]
                golden = program.run(leaves, memory)[0][:real]
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
