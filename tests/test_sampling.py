"""Element-uniform sampling: every element equally likely, the last one included; one state, one table."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from hoplon import BitFlip, ElementUniform, HoplonError, ValueSite
from hoplon.sampling import draw_faults, unit_generator

SITES = (ValueSite("a", "conv", shape=(2, 3)), ValueSite("b", "conv", shape=(1,)), ValueSite("c", "relu", shape=(13,)))


def test_elements_are_uniform_over_all_sites() -> None:
    """Chi-square over a million draws; false-alarm probability 1e-4, generator fixed."""
    number, element, probability = ElementUniform().draw(SITES, 1_000_000, generator=unit_generator(0, 0))
    first = torch.tensor([0, 6, 7])
    counts = torch.bincount(first[number] + element, minlength=20)
    assert len(counts) == 20
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert probability.unique().tolist() == [1 / 20]


def test_a_drawn_fault_carries_the_probability_of_all_its_parts() -> None:
    table = draw_faults(
        SITES, BitFlip(2), 500, sampling=ElementUniform(), generator=unit_generator(1, 0), inputs=[3, 5, 8]
    )
    assert table.target == "values"
    assert table.frame["probability"].unique().to_list() == pytest.approx([1 / (20 * 3 * 496)])
    assert set(table.frame["input"].to_list()) == {3, 5, 8}
    assert table.frame["flip"].bitwise_count_ones().unique().to_list() == [2]
    assert table.frame["before"].null_count() == 500


def test_bits_and_inputs_are_uniform_and_independent_of_the_site() -> None:
    table = draw_faults(
        SITES, BitFlip(), 200_000, sampling=ElementUniform(), generator=unit_generator(2, 0), inputs=list(range(4))
    )
    frame = table.frame.with_columns(table.bits)
    assert stats.chisquare(frame["bit"].value_counts()["count"].to_numpy()).pvalue > 1e-4
    crossed = frame.group_by("site", "input").len().pivot("input", index="site", values="len")
    assert stats.chi2_contingency(crossed.drop("site").to_numpy()).pvalue > 1e-4


def test_mixed_dtypes_flip_bits_of_their_own_words() -> None:
    sites = (ValueSite("a", "conv", shape=(9,)), ValueSite("h", "conv", shape=(9,), dtype=torch.bfloat16))
    table = draw_faults(sites, BitFlip(), 4000, sampling=ElementUniform(), generator=unit_generator(3, 0), inputs=[0])
    widest = table.frame.group_by("format").agg(pl.col("flip").max()).sort("flip")
    assert widest["format"].cast(pl.String).to_list() == ["bfloat16", "float32"]
    assert widest["flip"].to_list() == [1 << 15, 1 << 31]


def test_one_seed_and_unit_give_one_table() -> None:
    def draw(seed: int, unit: int) -> str:
        generator = unit_generator(seed, unit)
        return draw_faults(SITES, BitFlip(), 50, sampling=ElementUniform(), generator=generator, inputs=[0]).digest()

    assert draw(0, 0) == draw(0, 0)
    assert len({draw(0, 0), draw(0, 1), draw(1, 0)}) == 3


def test_drawing_leaves_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw_faults(SITES, BitFlip(), 50, sampling=ElementUniform(), generator=unit_generator(0, 0), inputs=[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_no_eligible_input_is_refused() -> None:
    with pytest.raises(HoplonError, match="expected at least one eligible input, got 0"):
        draw_faults(SITES, BitFlip(), 5, sampling=ElementUniform(), generator=unit_generator(0, 0), inputs=[])
