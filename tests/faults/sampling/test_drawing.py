"""Tables of drawn faults: probabilities, formats, determinism."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from hoplon import BitFlip, FaultTable, HoplonError
from hoplon.faults import BitRate, Burst, Elements, FaultModel, Mixture, RandomValue
from hoplon.faults.sampling import ElementUniform, OpUniform, Population, draw_faults, unit_generator
from hoplon.formats import FixedPoint
from hoplon.program import ValueSite

SITES = (ValueSite("a", "conv", shape=(2, 3)), ValueSite("b", "conv", shape=(1,)), ValueSite("c", "relu", shape=(13,)))


def drawn(
    sites: tuple[ValueSite, ...], model: FaultModel, count: int, *, inputs: list[int], seed: int = 0, unit: int = 0
) -> FaultTable:
    population = Population(sites, model, torch.tensor(inputs, dtype=torch.int64))
    return draw_faults(population, count, sampling=ElementUniform(), generator=unit_generator(seed, unit))


def test_a_drawn_fault_carries_the_probability_of_all_its_parts() -> None:
    table = drawn(SITES, BitFlip(2), 500, seed=1, inputs=[3, 5, 8])
    assert table.target == "values"
    assert table.frame["probability"].unique().to_list() == pytest.approx([1 / (20 * 3 * 496)])
    assert set(table.frame["input"].to_list()) == {3, 5, 8}
    assert table.frame["flip"].bitwise_count_ones().unique().to_list() == [2]
    assert table.frame["before"].null_count() == 500


def test_bits_and_inputs_are_uniform_and_independent_of_the_site() -> None:
    table = drawn(SITES, BitFlip(), 200_000, seed=2, inputs=list(range(4)))
    frame = table.frame.with_columns(table.bits)
    assert stats.chisquare(frame["bit"].value_counts()["count"].to_numpy()).pvalue > 1e-4
    crossed = frame.group_by("site", "input").len().pivot("input", index="site", values="len")
    assert stats.chi2_contingency(crossed.drop("site").to_numpy()).pvalue > 1e-4


def test_mixed_dtypes_flip_bits_of_their_own_words() -> None:
    sites = (ValueSite("a", "conv", shape=(9,)), ValueSite("h", "conv", shape=(9,), dtype=torch.bfloat16))
    table = drawn(sites, BitFlip(), 4000, seed=3, inputs=[0])
    widest = table.frame.group_by("format").agg(pl.col("flip").max()).sort("flip")
    assert widest["format"].cast(pl.String).to_list() == ["bfloat16", "float32"]
    assert widest["flip"].to_list() == [1 << 15, 1 << 31]


def test_one_seed_and_unit_give_one_table() -> None:
    def draw(seed: int, unit: int) -> str:
        return drawn(SITES, BitFlip(), 50, seed=seed, unit=unit, inputs=[0]).digest()

    assert draw(0, 0) == draw(0, 0)
    assert len({draw(0, 0), draw(0, 1), draw(1, 0)}) == 3


def test_drawing_leaves_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drawn(SITES, Mixture((BitFlip(), RandomValue(), Elements(1), BitRate(0.01))), 50, inputs=[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_no_eligible_input_is_refused() -> None:
    with pytest.raises(HoplonError, match="expected at least one eligible input, got 0"):
        drawn(SITES, BitFlip(), 5, inputs=[])


def test_a_fault_of_several_words_carries_one_probability() -> None:
    table = drawn(SITES[2:], Elements(3), 20, inputs=[1, 2])
    assert table.frame.height == 60
    assert len(table) == 20
    assert table.frame["probability"].unique().to_list() == pytest.approx([1 / 13 / 2 / 32**3])


def test_formats_are_stored_by_name() -> None:
    model = Mixture((BitFlip(format=FixedPoint(21, 10)), BitFlip()))
    table = drawn(SITES, model, 200, inputs=[0])
    assert set(table.frame["format"].cast(pl.String)) == {"float32", "fixed(21,10)"}
    assert table.frame.filter(pl.col("format") == "fixed(21,10)")["keep"].unique().to_list() == [2**31 - 1]


def test_a_rate_spans_all_sites_and_wants_no_other_sampling() -> None:
    table = drawn(SITES, BitRate(0.05), 30, inputs=[0, 1])
    assert len(table) == 30
    assert table.frame["site"].n_unique() == 3
    assert table.frame["input"].n_unique() == 2
    population = Population(SITES, BitRate(0.05), torch.tensor([0]))
    message = r"spans all sites.*expected sampling ElementUniform\(\), got OpUniform"
    with pytest.raises(HoplonError, match=message):
        draw_faults(population, 5, sampling=OpUniform(), generator=unit_generator(0, 0))


def test_lines_of_memory_are_drawn_through_their_anchors() -> None:
    table = drawn(SITES[2:], Burst(bytes=16), 400, inputs=[0])
    sizes = table.frame.group_by("fault").len()["len"].unique().sort().to_list()
    assert sizes == [1, 4]
