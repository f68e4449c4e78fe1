"""Lists of faults, every fault there is, and strata."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import polars as pl
import pytest
import torch
from scipy import stats

from hoplon.errors import HoplonError
from hoplon.faults import BitFlip, BitRate, Elements, FaultModel, FaultTable, RandomValue, StuckAt, Zero
from hoplon.faults.sampling import Exhaustive, Explicit, Population, Sampling, Stratified, draw_faults, unit_generator
from hoplon.formats import FixedPoint
from hoplon.program.sites import MemorySite, ValueSite

VALUES = (
    ValueSite("a", "conv", shape=(2, 2)),
    ValueSite("empty", "conv", shape=(0,)),
    ValueSite("a", "relu", shape=(3,), dtype=torch.float16),
    ValueSite("b", "relu", shape=(1,)),
)
MEMORY = (MemorySite("w", shape=(5,)), MemorySite("v.u", shape=(2,), dtype=torch.bfloat16))


def population(model: FaultModel, sites: tuple[ValueSite, ...] | tuple[MemorySite, ...] = VALUES) -> Population:
    return Population(sites, model, torch.tensor([2, 7, 9]) if sites is VALUES else None)


def drawn(
    sampling: Sampling,
    model: FaultModel,
    count: int | None = None,
    *,
    sites: tuple[ValueSite, ...] | tuple[MemorySite, ...] = VALUES,
    first: int = 0,
) -> FaultTable:
    whole = population(model, sites)
    size = sampling.size(whole) if count is None else count
    assert size is not None
    return draw_faults(whole, size, sampling=sampling, generator=unit_generator(0, 0), first=first)


def test_exhaustive_is_every_fault_once_in_order() -> None:
    table = drawn(Exhaustive(), BitFlip())
    bits = {"a:conv": 32, "a:relu": 16, "b:relu": 32}
    elements = {"a:conv": 4, "a:relu": 3, "b:relu": 1}
    expected = [
        (given, site, element, bit)
        for given in (2, 7, 9)
        for site in bits
        for element, bit in itertools.product(range(elements[site]), range(bits[site]))
    ]
    frame = table.frame.with_columns(table.bits)
    found = frame.select("input", pl.col("site").cast(pl.String), "element", "bit").rows()
    assert found == expected
    assert len(table) == Exhaustive().size(population(BitFlip())) == 3 * (5 * 32 + 3 * 16)
    # The probabilities are those of element-uniform drawing.
    assert frame["probability"].sum() == pytest.approx(1)
    assert set(frame["probability"].round(12)) == {round(1 / 8 / 32 / 3, 12), round(1 / 8 / 16 / 3, 12)}


def test_exhaustive_comes_in_pieces() -> None:
    whole = drawn(Exhaustive(), BitFlip(2, bits=(0, 3, 15)), sites=MEMORY)
    assert whole.frame.height == 7 * 3
    pieces = [drawn(Exhaustive(), BitFlip(2, bits=(0, 3, 15)), 7, sites=MEMORY, first=first) for first in (0, 7, 14)]
    assert FaultTable.concat(pieces) == whole
    with pytest.raises(HoplonError, match="expected a count of at most 21, all the faults there are, got 22"):
        drawn(Exhaustive(), BitFlip(2, bits=(0, 3, 15)), 8, sites=MEMORY, first=14)


def test_exhaustive_takes_any_model_whose_changes_can_be_listed() -> None:
    assert len(drawn(Exhaustive(), Zero(), sites=MEMORY)) == 7
    assert len(drawn(Exhaustive(), StuckAt(1, field="exponent"), sites=MEMORY)) == 7 * 8
    assert len(drawn(Exhaustive(), BitFlip(format=FixedPoint(14, 2)), sites=MEMORY)) == 7 * 16


def test_explicit_faults_meet_every_input() -> None:
    table = drawn(Explicit([("a:conv", 3, (30, 31)), ("b:relu", 0), ("a:conv", 0, [4])]), BitFlip(bits=(7,)))
    assert len(table) == 9
    rows = table.frame.select("fault", pl.col("site").cast(pl.String), "element", "input", "flip").rows()
    assert rows[:4] == [
        (0, "a:conv", 3, 2, 3 << 30),
        (1, "b:relu", 0, 2, 1 << 7),
        (2, "a:conv", 0, 2, 16),
        (3, "a:conv", 3, 7, 3 << 30),
    ]
    assert table.frame["input"].to_list() == [2, 2, 2, 7, 7, 7, 9, 9, 9]
    assert table.frame["probability"].is_nan().all()
    again = drawn(
        Explicit([("a:conv", 3, (30, 31)), ("b:relu", 0), ("a:conv", 0, [4])]), BitFlip(bits=(7,)), 2, first=3
    )
    assert again.frame["flip"].to_list() == [3 << 30, 1 << 7]


def test_explicit_places_take_any_fault_model() -> None:
    table = drawn(Explicit([("w", 1), ("v.u", 0)]), Elements(2), sites=MEMORY)
    assert (len(table), table.frame.height) == (2, 4)
    assert table.frame.unique("fault", keep="first", maintain_order=True)["element"].to_list() == [1, 0]


STRATIFIED: dict[str, tuple[Stratified, dict[object, float]]] = {
    "site": (Stratified("site"), {"a:conv": 4 / 8, "a:relu": 3 / 8, "b:relu": 1 / 8}),
    "layer": (
        Stratified("layer", {"a": 1, "b": 3}),
        {"a:conv": 1 / 4 * 4 / 7, "a:relu": 1 / 4 * 3 / 7, "b:relu": 3 / 4},
    ),
    "bit": (
        Stratified("bit"),
        {**dict.fromkeys(range(16), 5 / 8 / 32 + 3 / 8 / 16), **dict.fromkeys(range(16, 32), 5 / 8 / 32)},
    ),
}


@pytest.mark.parametrize("name", ["site", "layer", "bit"])
def test_a_million_stratified_draws_follow_their_shares(name: str) -> None:
    """Chi-square of what is random within the strata; false-alarm probability 1e-4 each, generator fixed."""
    sampling, shares = STRATIFIED[name]
    table = drawn(sampling, BitFlip(), 1_000_000)
    key = "bit" if name == "bit" else "site"
    frame = table.frame.with_columns(table.bits, pl.col("site").cast(pl.String))
    counts = dict(frame.group_by(key).len().rows())
    assert set(counts) == set(shares)
    for stratum, share in shares.items():
        if name != "layer":  # systematic: at most one fault off; within a layer, sites are random
            assert abs(counts[stratum] - 1_000_000 * share) < 1, stratum
    # Every fault's probability is right: all cells, each weighed by how often it came.
    cells = frame.group_by("site", "element", "bit", "input").agg(pl.len(), pl.col("probability").first())
    assert cells.height == 3 * (5 * 32 + 3 * 16)
    assert cells["probability"].sum() == pytest.approx(1)
    expected = (cells["probability"] * 1_000_000).to_numpy()
    statistic = float(((cells["len"].to_numpy() - expected) ** 2 / expected).sum())
    assert 1e-4 < stats.chi2.sf(statistic, cells.height - len(shares)) < 1 - 1e-4


def test_an_allocation_decides_the_counts_of_a_unit() -> None:
    model = BitFlip(bits=(3, 30, 31))
    table = drawn(Stratified("bit", {3: 1, 30: 2, 31: 1}), model, 1024, sites=MEMORY[:1])
    assert Counter(table.bits.to_list()) == {3: 256, 30: 512, 31: 256}
    by_bit = table.frame.with_columns(table.bits).group_by("bit").agg(pl.col("probability").first()).sort("bit")
    assert by_bit["probability"].to_list() == pytest.approx([0.25 / 5, 0.5 / 5, 0.25 / 5])


def test_shares_that_are_no_whole_counts_come_out_right_on_average() -> None:
    sampling, total = Stratified("site", {"w": 0.3, "v.u": 0.7}), 0
    for unit in range(200):
        table = draw_faults(population(BitFlip(), MEMORY), 5, sampling=sampling, generator=unit_generator(4, unit))
        mine = table.frame.filter(pl.col("site") == "w").height
        assert mine in (1, 2)
        total += mine
    assert 260 < total < 340  # 300 expected, standard deviation at most 7


@pytest.mark.parametrize(
    "sampling", [Stratified("bit", {**dict.fromkeys(range(32), 1), 30: 50}), Stratified("layer", {"a": 1, "b": 9})]
)
def test_density_is_the_probability_of_the_place_given_the_change(sampling: Stratified) -> None:
    whole = population(BitFlip())
    generator = unit_generator(0, 0)
    faults = sampling.draw(whole, 500, first=0, generator=generator)
    density = sampling.density(whole, faults.places, faults.keep, faults.flip)
    widths = torch.tensor([8 * site.dtype.itemsize for site in whole.sites])
    assert torch.allclose(density / widths[faults.places.number] / 3, faults.probability, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Explicit([]), "expected at least one fault, got an empty list"),
        (
            lambda: drawn(Explicit([("b:relu", 0)]), BitRate(0.1)),
            r"BitRate\(rate=0.1\) spans all sites: expected a model",
        ),
        (lambda: drawn(Explicit([("c", 0)]), BitFlip()), "no selected site matches 'c'; .*a:conv"),
        (lambda: drawn(Explicit([("b:relu", 1)]), BitFlip()), r"expected elements in \[0, 1\) of b:relu, got 1"),
        (lambda: drawn(Explicit([("b:relu", 0, (32,))]), BitFlip()), r"expected bits in \[0, 32\) for float32, got 32"),
        (lambda: drawn(Exhaustive(), RandomValue()), r"changes can be listed, such as BitFlip, got RandomValue\(\)"),
        (lambda: drawn(Exhaustive(), Elements(1)), r"fault model of one word.*got Elements\(count=1"),
        (lambda: Stratified("bits"), "expected by of Stratified to be 'site' or 'layer' or 'bit', got 'bits'"),
        (lambda: Stratified("site", {"w": 0.0}), "expected a share above 0 for site w, got 0.0"),
        (
            lambda: drawn(Stratified("site", {"w": 1}), BitFlip(), 3, sites=MEMORY),
            "a share for every site: w, v.u; got w",
        ),
        (lambda: drawn(Stratified("bit"), BitFlip(2), 3, sites=MEMORY), r"touches one bit, got BitFlip\(count=2\)"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
