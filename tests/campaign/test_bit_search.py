"""The search for the lowest critical bit: against all bits, and where harm does not grow with the bit."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from hoplon import BitFlip, Campaign, HoplonError, Inputs, Memory, Values
from hoplon.campaign import bit_boundary
from hoplon.campaign.bit_search import search
from hoplon.faults.sampling import Explicit
from tests.support.networks import NETWORKS, captured


@pytest.mark.parametrize("lowest", [0, 1, 7, 22, 30, 31])
def test_bisection_finds_every_boundary_with_few_runs(lowest: int) -> None:
    asked: list[int] = []

    def is_critical(bits: object) -> list[bool]:
        asked.extend(bits)  # type: ignore[arg-type]
        return [bit >= lowest for bit in bits]  # type: ignore[attr-defined]

    found = search(is_critical, range(31))
    assert found.lowest == (lowest if lowest < 31 else None)
    assert found.monotone
    assert found.runs == len(asked) == len(set(asked)) <= 5 + 4


def test_a_broken_order_is_said_once_it_is_seen() -> None:
    odd = {3, *range(20, 31)}
    everything = search(lambda bits: [bit in odd for bit in bits], range(31), checks=31)
    assert (everything.lowest, everything.monotone, everything.runs) == (3, False, 31)
    hole = search(lambda bits: [bit >= 10 and bit != 30 for bit in bits], range(31), checks=1)
    assert not hole.monotone


@pytest.mark.parametrize("memory", [False, True])
def test_a_value_of_a_network(memory: bool) -> None:
    net = NETWORKS["mlp"]
    program, data = captured("mlp"), Inputs(net.batch(6))
    sites: Values | Memory = Memory("fc1.weight") if memory else Values("fc1:linear")
    site = sites.select(program)[0].name
    campaign = Campaign(program, data, sites=sites, batch=1)
    found = bit_boundary(campaign, site, 1, input=None if memory else 2, threshold=0.5, checks=31)
    chosen = data if memory else data.take([2])
    faults = Explicit([(site, 1, (bit,)) for bit in range(31)])
    every = Campaign(program, chosen, sites=sites, fault_model=BitFlip(), sampling=faults, batch=1).run()
    failed = pl.col("top-1").cast(pl.String).is_in(["sdc", "nonfinite"]).mean()
    shares = every.runs.group_by("fault").agg(failed=failed).sort("fault")["failed"].to_list()
    assert found.critical == {bit: share > 0.5 for bit, share in enumerate(shares)}
    assert found.lowest == next((bit for bit, share in enumerate(shares) if share > 0.5), None)


def test_bad_input_is_named() -> None:
    net = NETWORKS["mlp"]
    campaign = Campaign(captured("mlp"), Inputs(net.batch(4)), sites=Values("fc1:linear"))
    with pytest.raises(HoplonError, match="expected a selected site, got 'fc9:linear'"):
        bit_boundary(campaign, "fc9:linear", 0)
    with pytest.raises(HoplonError, match="expected bits, each once"):
        search(lambda bits: [True for _ in bits], [1, 1])
    assert torch.is_grad_enabled()
