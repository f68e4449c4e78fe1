"""Faults of several words, mixtures and functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from hoplon.errors import HoplonError
from hoplon.faults import (
    AdjacentBits,
    BitFlip,
    BitRate,
    Burst,
    Elements,
    FaultModel,
    Function,
    Mixture,
    Places,
    RandomValue,
    SampledFaults,
    StuckAt,
    Zero,
)
from hoplon.formats import FixedPoint, Quantized, equal_bits, native
from hoplon.program.sites import MemorySite
from tests.support.examples import name_of, others

SITES = (
    MemorySite("a", shape=(2, 3)),
    MemorySite("b", shape=(40,), dtype=torch.bfloat16),
    MemorySite("c", shape=(5, 5)),
)
VALUES = [torch.linspace(-3, 3, site.numel).to(site.dtype) for site in SITES]


def observe(number: torch.Tensor, element: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    assert given is None
    rows = zip(number.tolist(), element.tolist(), strict=True)
    return torch.tensor([int(native(SITES[n].dtype).words(VALUES[n][e])) for n, e in rows], dtype=torch.int64)


def anchors(count: int, seed: int = 0) -> Places:
    generator = seeded(seed)
    number = torch.randint(len(SITES), (count,), generator=generator)
    sizes = torch.tensor([site.numel for site in SITES])[number]
    element = torch.randint(2**40, (count,), generator=generator) % sizes
    return Places(SITES, number, element, observe=observe)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# One row per fault model; the shared properties below run over all of them.
ROWS: list[FaultModel] = [
    BitFlip(),
    Elements(2),
    Elements(6, StuckAt(1)),
    Burst(words=1),
    Burst(AdjacentBits(2), words=4),
    Burst(Zero(), bytes=16),
    Burst(words=3, lane=True),
    Burst(RandomValue(), bytes=8, lane=True),
    BitRate(0.001),
    BitRate(0.001, at_least_one=False),
    BitRate(0.7),
    Function(lambda values, generator: values * 2, "double"),
    Elements(3, Function(lambda values, generator: -values, "negate")),
    Mixture((BitFlip(), Elements(2), Burst(bytes=8))),
    Mixture((BitFlip(), BitRate(0.01)), (3, 1)),
    Mixture((BitFlip(format=FixedPoint(14, 2)), Mixture((Zero(), BitFlip(2))))),
]
MODELS = [*ROWS, *others("fault", ROWS).values()]

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{name_of('fault', m)}: {m.name}")


@each_model
def test_strikes_are_well_formed(model: FaultModel) -> None:
    """Every fault has rows, in order, no word twice, inside its site; words fit; the seed decides."""
    places = anchors(200)
    struck, again = (model.sample(places, generator=seeded()) for _ in range(2))
    for name in ("fault", "format", "keep", "flip", "probability"):
        assert equal_bits(getattr(struck, name), getattr(again, name)), name
    fault, number, element = struck.fault, struck.places.number, struck.places.element
    assert fault.unique().tolist() == list(range(200))
    assert torch.equal(fault, fault.sort().values)
    rows = list(zip(fault.tolist(), number.tolist(), element.tolist(), strict=True))
    assert len(set(rows)) == len(rows)
    assert all(0 <= e < SITES[n].numel for _, n, e in rows)
    for row, (_, n, _) in enumerate(rows):
        form = struck.formats[int(struck.format[row])]
        assert form.bits in (16, SITES[n].dtype.itemsize * 8)
        assert all(0 <= int(mask[row]) <= form.all_ones for mask in (struck.keep, struck.flip))
    assert struck.probability.shape == (200,)
    assert bool((struck.probability.isnan() | ((struck.probability >= 0) & (struck.probability <= 1))).all())
    if model.anchored:
        first = torch.searchsorted(fault, torch.arange(200))
        assert torch.equal(number[first], places.number)
        assert torch.equal(element[first], places.element)


@each_model
def test_no_anchors_give_no_faults(model: FaultModel) -> None:
    struck = model.sample(anchors(0), generator=seeded())
    assert [len(part) for part in (struck.fault, struck.keep, struck.probability)] == [0, 0, 0]


@each_model
def test_value_faults_keep_the_input_of_their_anchor(model: FaultModel) -> None:
    if "Function" in model.name:
        pytest.skip("the observer of this test knows memory only")
    places = anchors(50)
    places = Places(SITES, places.number, places.element, torch.arange(50) % 7)
    struck = model.sample(places, generator=seeded())
    assert torch.equal(struck.places.input, places.input[struck.fault])


def rows_of(struck: SampledFaults, fault: int) -> list[tuple[str, int, int]]:
    mine = (struck.fault == fault).nonzero()[:, 0].tolist()
    return [
        (SITES[int(struck.places.number[row])].name, int(struck.places.element[row]), int(struck.flip[row]))
        for row in mine
    ]


def test_elements_are_different_and_every_set_equally_likely() -> None:
    places = Places(SITES[:1], torch.zeros(30_000).long(), torch.randint(6, (30_000,), generator=seeded(1)))
    struck = Elements(3).sample(places, generator=seeded())
    sets = Counter(tuple(sorted(row)) for row in struck.places.element.view(-1, 3).tolist())
    assert len(sets) == math.comb(6, 3)
    assert stats.chisquare(list(sets.values())).pvalue > 1e-3
    assert struck.probability.unique().tolist() == [32.0**-3]
    # Bits of the words of one fault are independent.
    assert len({tuple(row) for row in struck.flip.view(-1, 3).tolist()}) > 15_000


def test_words_in_a_row_end_with_the_tensor() -> None:
    places = Places(SITES, torch.tensor([0, 0, 2]), torch.tensor([1, 4, 24]))
    struck = Burst(BitFlip(bits=(3,)), words=4).sample(places, generator=seeded())
    assert rows_of(struck, 0) == [("a", 1, 8), ("a", 2, 8), ("a", 3, 8), ("a", 4, 8)]
    assert rows_of(struck, 1) == [("a", 4, 8), ("a", 5, 8)]
    assert rows_of(struck, 2) == [("c", 24, 8)]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # 16 bytes: four float32, eight bfloat16; the anchor first, then round the line.
        (None, [("a", [1, 2, 3, 0]), ("b", [13, 14, 15, 8, 9, 10, 11, 12]), ("c", [24])]),
        (
            Quantized(torch.int8, 0.1),
            [("a", [1, 2, 3, 4, 5, 0]), ("b", [13, 14, 15, *range(13)]), ("c", [24, *range(16, 24)])],
        ),
    ],
)
def test_lines_are_aligned_and_as_wide_as_the_format(
    form: Quantized | None, expected: list[tuple[str, list[int]]]
) -> None:
    places = Places(SITES, torch.tensor([0, 1, 2]), torch.tensor([1, 13, 24]))
    struck = Burst(BitFlip(format=form), bytes=16).sample(places, generator=seeded())
    found = [rows_of(struck, fault) for fault in range(3)]
    assert [(rows[0][0], [element for _, element, _ in rows]) for rows in found] == expected
    assert {name for rows in found for name, _, _ in rows[:1]} == {"a", "b", "c"}


def test_a_lane_is_one_bit_and_other_bursts_are_not() -> None:
    places = Places(SITES, torch.full((300,), 1), torch.arange(300) % 40)
    lane = Burst(words=4, lane=True).sample(places, generator=seeded())
    free = Burst(words=4).sample(places, generator=seeded())
    for struck, most in ((lane, 1), (free, 4)):
        bits = [{flip for _, _, flip in rows_of(struck, fault)} for fault in range(300)]
        assert max(map(len, bits)) == most
    assert lane.probability.unique().tolist() == [1 / 16]
    assert float(free.probability.min()) == 16.0**-4


def test_flips_of_a_rate_are_binomial_given_at_least_one() -> None:
    sites = SITES[:2]
    bits, rate, faults = 6 * 32 + 40 * 16, 0.002, 20_000
    places = Places(sites, torch.zeros(faults).long(), torch.zeros(faults).long())
    for at_least_one in (True, False):
        model = BitRate(rate, at_least_one=at_least_one)
        struck = model.sample(places, generator=seeded())
        flips = torch.zeros(faults).long()
        flips.index_add_(0, struck.fault, torch.tensor([int(flip).bit_count() for flip in struck.flip.tolist()]))
        expected = stats.binom.pmf(range(7), bits, rate)
        if at_least_one:
            expected[0] = 0
            expected /= model.occurrence(bits)
        counts = torch.bincount(flips, minlength=7)[:7].double().numpy()
        assert counts[0] == 0 or not at_least_one
        some = expected * faults > 5
        assert stats.chisquare(counts[some], expected[some] / expected[some].sum() * counts[some].sum()).pvalue > 1e-3
    assert model.occurrence(bits) == pytest.approx(1 - (1 - rate) ** bits)
    # Each bit equally often: of a site as many as it has bits, within float32 words each bit the same.
    per_site = [sum(int(f).bit_count() for f in struck.flip[struck.places.number == n].tolist()) for n in (0, 1)]
    assert stats.binomtest(per_site[0], sum(per_site), 192 / bits).pvalue > 1e-3
    by_bit = [int((struck.flip[struck.places.number == 1] >> bit & 1).sum()) for bit in range(16)]
    assert stats.chisquare(by_bit).pvalue > 1e-3


def test_a_high_rate_flips_its_share_and_reaches_the_last_word() -> None:
    struck = BitRate(0.6).sample(anchors(40), generator=seeded())
    flips = sum(int(flip).bit_count() for flip in struck.flip.tolist())
    assert stats.binomtest(flips, 40 * (6 * 32 + 40 * 16 + 25 * 32), 0.6).pvalue > 1e-3
    assert {(2, 24), (0, 0)} <= set(zip(struck.places.number.tolist(), struck.places.element.tolist(), strict=True))


def test_a_rare_rate_over_many_bits_is_exact() -> None:
    huge = (MemorySite("w", shape=(10**9,)),)
    places = Places(huge, torch.zeros(500).long(), torch.zeros(500).long())
    struck = BitRate(1e-15).sample(places, generator=seeded())
    assert len(struck.fault) == 500  # one flip each: two would come once in 30,000
    assert int(struck.places.element.max()) > 9.8e8
    assert struck.probability[0] == pytest.approx(1 / 32e9, rel=1e-4)


def test_mixtures_follow_their_weights() -> None:
    model = Mixture((BitFlip(bits=(0,)), BitFlip(bits=(1,)), BitFlip(bits=(2,))), (1, 2, 5))
    struck = model.sample(anchors(8000), generator=seeded())
    counts = [int((struck.flip == 1 << bit).sum()) for bit in range(3)]
    assert stats.chisquare(counts, [1000, 2000, 5000]).pvalue > 1e-3
    assert struck.probability[struck.flip == 4].unique().tolist() == [0.625]


def test_functions_write_their_result_for_good() -> None:
    places = anchors(60)
    struck = Function(lambda values, generator: values * 2 + 1, "affine").sample(places, generator=seeded())
    assert not struck.keep.any()
    for row, (number, element) in enumerate(zip(places.number.tolist(), places.element.tolist(), strict=True)):
        value, form = VALUES[number][element], native(SITES[number].dtype)
        assert equal_bits(form.apply(value, 0, struck.flip[row]), value * 2 + 1)


def test_functions_draw_from_the_generator_they_are_given() -> None:
    def noisy(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return values + torch.randn(values.shape, generator=generator).to(values.dtype)

    model = Function(noisy, "noise")
    first, again, other = (model.sample(anchors(40), generator=seeded(seed)).flip for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def strike(model: FaultModel) -> Callable[[], object]:
    return lambda: model.sample(anchors(5), generator=seeded())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Elements(0), "expected count of Elements to be an integer of at least 1, got 0"),
        (strike(Elements(7)), "expected at least 7 elements in every site, got 6 in a"),
        (
            lambda: Elements(2, format=native(torch.float32)),
            "expected the format in the model of the words, got float32",
        ),
        (lambda: Burst(), "expected words or bytes, at least 1, got words=None, bytes=None"),
        (lambda: Burst(words=2, bytes=8), "expected words or bytes, at least 1, got words=2, bytes=8"),
        (lambda: Burst(words=0), "expected words of Burst to be an integer of at least 1 or None, got 0"),
        (strike(Burst(bytes=3)), "expected bytes of at least one word, got 3 for words of 4 in a"),
        (lambda: BitRate(0.0), r"expected rate of BitRate to be a number above 0 and below 1, got 0\.0"),
        (lambda: BitRate(1.0), r"expected rate of BitRate to be a number above 0 and below 1, got 1\.0"),
        (lambda: Mixture(()), "expected at least one fault model, got none"),
        (lambda: Mixture((BitFlip(),), (1, 2)), r"positive weight for each of 1 models, got \(1, 2\)"),
        (lambda: Mixture((BitFlip(),), (0,)), r"positive weight for each of 1 models, got \(0,\)"),
        (lambda: Mixture((BitFlip(),), format=native(torch.float32)), "format in the models of a mixture, got float32"),
        (
            lambda: Function(lambda v, g: v, "f", format=native(torch.float32)),
            r"expected no format for Function\('f'\).*got float32",
        ),
        (strike(Function(lambda v, g: v.double(), "f")), r"Function\('f'\) to give torch.*, got torch.float64"),
        (strike(Function(lambda v, g: 1.0, "f")), r"Function\('f'\) to give torch.*, got float"),
        (
            lambda: Function(lambda v, g: v, "f").sample(
                Places(SITES, torch.zeros(1).long(), torch.zeros(1).long()), generator=seeded()
            ),
            "expected to see the values that the faults meet, got none; draw in a Campaign",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
