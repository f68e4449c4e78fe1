"""The table of a comparison shows what was measured."""

from __future__ import annotations

import torch
from torch import nn

import hoplon as hp


def test_columns_that_nobody_measured_are_left_out() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    program = hp.capture(nn.Linear(4, 3).eval(), x)
    faults = hp.Campaign(program, x, sites=hp.Values(), criterion=hp.Deviation((0.1,))).run(count=5, seed=0).faults
    arms = {"none": [], "tmr": [hp.TMR()]}
    labelled = hp.Inputs(x, program(x).argmax(1))
    for data, criterion, accuracy in ((x, hp.Deviation((0.1,)), False), (labelled, hp.TopK(1), True)):
        found = hp.compare(program, data, arms=arms, faults=faults, criterion=criterion, latency=False)
        (table,) = found.tables()
        assert ("accuracy" in table.columns) is accuracy
        assert "latency" not in table.columns
        assert all(len(row) == len(table.columns) for row in table.rows)
