"""Campaigns with every kind of format, fault model and sampling: the words they met are the words they drew."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from hoplon import (
    BitFlip,
    Campaign,
    FaultTable,
    HoplonError,
    Inputs,
    Memory,
    RandomValue,
    Ranger,
    StuckAt,
    Values,
    Zero,
    capture,
)
from hoplon.faults import AdjacentBits, BitRate, Burst, Elements, FaultModel, Function, Mixture, series_to_words
from hoplon.faults.sampling import Exhaustive, Explicit, TopScore
from hoplon.formats import FixedPoint, Quantized, equal_bits, native
from hoplon.program.program import Program
from hoplon.protections.ranges import profile_ranges
from tests.support.networks import NETWORKS, captured

MODELS: list[FaultModel] = [
    BitFlip(),
    BitFlip(field="exponent"),
    StuckAt(1),
    AdjacentBits(3),
    Zero(),
    RandomValue(-2.0, 2.0),
    RandomValue(),
    Burst(words=2, lane=True),
    Burst(Zero(), bytes=16),
    Elements(2),
    BitRate(1e-3),
    BitFlip(format=Quantized(torch.int8, 0.05, 3)),
    Mixture((BitFlip(), BitFlip(format=Quantized(torch.uint8, 0.1, 120)), Burst(Zero(), words=2), BitRate(1e-4))),
    Function(lambda values, generator: 1 - 2 * values, "affine"),
    Elements(2, Function(lambda values, generator: values.sign() * 7, "sevens")),
]


def setting(name: str = "residual") -> tuple[Program, Inputs]:
    net = NETWORKS[name]
    return captured(name, 3), Inputs(net.batch(5))


def met(table: FaultTable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keep, flip, before, after = (series_to_words(table.frame[name]) for name in ("keep", "flip", "before", "after"))
    return before, (before & keep) ^ flip, after


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
@pytest.mark.parametrize("sites", [Values(), Memory()])
def test_words_after_are_those_that_were_drawn(model: FaultModel, sites: Values | Memory) -> None:
    program, data = setting()
    if isinstance(model, Elements):
        sites = type(sites)("*conv*")
    before = {name: tensor.clone() for name, tensor in program.memory().items()}
    results = Campaign(program, data, sites=sites, fault_model=model, batch=3).run(count=60, seed=2)
    _, expected, after = met(results.faults)
    assert len(results.faults) == 60
    assert results.runs.height == 60 * (1 if isinstance(sites, Values) else 5)
    assert torch.equal(after, expected)
    assert results.runs["reached"].any()
    assert all(equal_bits(tensor, before[name]) for name, tensor in program.memory().items())


def test_fixed_point_words_are_struck_where_float32_can_hold_them() -> None:
    program, data = setting()
    model = BitFlip(bits=(8, 12, 20, 30), format=FixedPoint(21, 10))
    table = Campaign(program, data, sites=Values(), fault_model=model).run(count=80, seed=0).faults
    before, expected, after = met(table)
    small = expected < 2**24
    assert 20 < int(small.sum()) < 80
    # The residue below the last bit may round the sum up to the next step.
    assert ((after - expected)[small] >= 0).all()
    assert ((after - expected)[small] <= 1).all()
    assert (after == expected)[small].double().mean() > 0.9
    assert (before < 2**31).all()


def test_channels_of_weights_have_their_own_scale() -> None:
    program, data = setting()
    names = ("conv1.weight", "conv2.weight")
    model = BitFlip(format={name: Quantized.fitted(program.memory()[name], axis=0) for name in names})
    results = Campaign(program, data, sites=Memory(names), fault_model=model).run(count=100, seed=1)
    _, expected, after = met(results.faults)
    assert torch.equal(after, expected)
    for row in results.faults.frame.iter_rows(named=True):
        words = model.format[row["site"]].words(program.memory()[row["site"]])
        assert int(words.flatten()[row["element"]]) == row["before"]
    assert results.faults.frame["format"].n_unique() == 2


def test_channels_of_values_leave_the_batch_axis_out() -> None:
    program, data = setting()
    site = program.value_site("conv1:conv")
    form = Quantized(torch.int8, tuple(0.01 * (c + 1) for c in range(site.shape[0])), axis=0)
    model = BitFlip(format=form)
    table = Campaign(program, data, sites=Values(site.name), fault_model=model).run(count=100, seed=1).faults
    _, expected, after = met(table)
    assert torch.equal(after, expected)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_functions_see_what_their_faults_meet(placement: str) -> None:
    program, data = setting()
    ranges = profile_ranges(program, Inputs(NETWORKS["residual"].batch(1, seed=5)))
    model = Function(lambda values, generator: values * 4, "fourfold")
    campaign = Campaign(
        program, data, sites=Values(), fault_model=model, protections=(Ranger(ranges),), placement=placement, batch=2
    )
    before, _, after = met(campaign.run(count=200, seed=0).faults)
    single = native(torch.float32)
    values = single.apply(torch.zeros(200), 0, before)
    assert torch.equal(after, single.words(values * 4))


def test_a_table_of_a_function_needs_it_no_more(tmp_path: Path) -> None:
    program, data = setting()
    campaign = Campaign(program, data, sites=Memory(), fault_model=Function(lambda v, g: -v, "negate"))
    results = campaign.run(count=10, seed=0)
    results.faults.save(tmp_path / "faults.parquet")
    table = FaultTable.load(tmp_path / "faults.parquet")
    signs = native(torch.float32).all_ones ^ (1 << 31)
    before, _, after = met(table)
    assert torch.equal(before & signs, after & signs)
    assert ((before ^ after) == 1 << 31).all()


def test_a_listed_campaign_runs_all_its_faults() -> None:
    program, data = setting("mlp")
    campaign = Campaign(program, data, sites=Values("fc3:linear"), sampling=Exhaustive(), batch=5)
    results = campaign.run()
    assert len(results.faults) == 4 * 32 * 5
    assert campaign.draw() == results.faults.plan()
    assert results.runs.group_by("input").len()["len"].to_list() == [128] * 5
    memory = Campaign(program, data, sites=Memory("fc3.bias"), sampling=Exhaustive()).run()
    assert memory.faults.bits.to_list() == [*range(32)] * 4  # two units
    short = campaign.run(count=100)
    assert short.faults.frame.equals(results.faults.frame.head(100))
    with pytest.raises(HoplonError, match="expected a count of at most 640, all the faults there are, got 641"):
        campaign.run(count=641)
    with pytest.raises(HoplonError, match=r"expected no half-width for 640 listed faults, got 0.1"):
        campaign.run(half_width=0.1)


def test_listed_and_scored_places_are_struck() -> None:
    program, data = setting("mlp")
    sampling = Explicit([("fc1.weight", 5, (30,)), ("fc2.bias", 0)])
    table = Campaign(program, data, sites=Memory(), sampling=sampling).run().faults
    assert table.frame.select(pl.col("site").cast(pl.String), "element").rows() == [("fc1.weight", 5), ("fc2.bias", 0)]
    scores = {"fc1.weight": torch.arange(48.0).view(8, 6)}
    top = Campaign(program, data, sites=Memory("*.weight"), sampling=TopScore(scores, count=3)).run(count=64, seed=0)
    assert set(top.faults.frame["element"].to_list()) == {45, 46, 47}
    assert top.manifest["sampling"].startswith("TopScore(count=3, ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes_are_struck_in_their_own_bits(dtype: torch.dtype) -> None:
    net = NETWORKS["mlp"]
    model, x = net.model().to(dtype), net.batch(4).to(dtype)
    program = capture(model, x[:2])
    for sites in (Values(), Memory()):
        results = Campaign(program, Inputs(x), sites=sites, fault_model=BitFlip()).run(count=64, seed=0)
        _, expected, after = met(results.faults)
        assert torch.equal(after, expected)
        assert results.faults.frame["format"].cast(pl.String).unique().to_list() == [str(dtype).removeprefix("torch.")]
