"""Faults of one word, over all formats."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from hoplon.errors import HoplonError
from hoplon.faults import AdjacentBits, BitFlip, Places, RandomValue, StuckAt, WordModel, Zero
from hoplon.faults.single_word import single_bits
from hoplon.formats import FixedPoint, Native, NumberFormat, Quantized, native, same_bits
from hoplon.program.sites import MemorySite
from tests.support.examples import name_of, others

# One row per fault model; the shared properties below run over all of them and all formats.
ROWS: list[WordModel] = [
    BitFlip(),
    BitFlip(count=2),
    BitFlip(count=16),
    BitFlip(bits=(15,)),
    BitFlip(count=3, bits=(0, 4, 9, 15)),
    StuckAt(0),
    StuckAt(1, count=2, bits=(0, 4, 9, 15)),
    AdjacentBits(3),
    Zero(),
    RandomValue(),
    RandomValue(0.25, 100.0),
]
FORMATS: list[NumberFormat] = [
    *(native(d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int16)),
    FixedPoint(21, 10),
    FixedPoint(14, 2),
    Quantized(torch.int16, 0.25, 3),
]
ADDED = [model for model in others("fault", ROWS).values() if isinstance(model, WordModel)]
MODELS = ROWS + ADDED
LISTED = [model for model in MODELS if type(model).patterns is not WordModel.patterns and model != BitFlip(count=16)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fits(model: WordModel, number_format: NumberFormat) -> bool:
    """Whether a model takes a format; those of the table take all of them."""
    try:
        model.draw(1, format=number_format, generator=seeded())
    except HoplonError:
        return model in ROWS
    return True


def in_formats(models: list[WordModel]) -> pytest.MarkDecorator:
    cases = [(model, form) for model in models for form in FORMATS if fits(model, form)]
    ids = [f"{name_of('fault', model)}: {model.name}-{form}" for model, form in cases]
    return pytest.mark.parametrize(("model", "number_format"), cases, ids=ids)


def positions(word: int) -> frozenset[int]:
    return frozenset(bit for bit in range(64) if word % 2**64 >> bit & 1)


@in_formats(MODELS)
def test_draws_fit_the_format_and_follow_the_seed(model: WordModel, number_format: NumberFormat) -> None:
    keep, flip, probability = model.draw(50, format=number_format, generator=seeded())
    again = model.draw(50, format=number_format, generator=seeded())
    other = model.draw(50, format=number_format, generator=seeded(1))
    assert all(same_bits(a, b).all() for a, b in zip((keep, flip, probability), again, strict=True))
    assert torch.equal(flip, other[1]) == torch.equal(flip, flip[:1].expand(50)) or model.name.startswith("StuckAt")
    assert [t.dtype for t in (keep, flip, probability)] == [torch.int64, torch.int64, torch.float64]
    assert [t.shape for t in (keep, flip, probability)] == [(50,)] * 3
    dtype = getattr(number_format, "dtype", torch.float64)
    values = torch.linspace(-3, 3, 50).to(dtype if isinstance(number_format, Native) else torch.float64)
    struck = number_format.apply(values, keep, flip)
    assert torch.equal(number_format.words(struck), number_format.words(values) & keep ^ flip)


@in_formats(MODELS)
def test_no_faults_and_longer_draws(model: WordModel, number_format: NumberFormat) -> None:
    nothing = model.draw(0, format=number_format, generator=seeded())
    short = model.draw(7, format=number_format, generator=seeded())
    long = model.draw(70, format=number_format, generator=seeded())
    assert all(len(part) == 0 for part in nothing)
    assert all(same_bits(a, b[:7]).all() for a, b in zip(short, long, strict=True))


def test_draws_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    BitFlip(count=2).draw(10, format=native(torch.float32), generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "population"),
    [
        (BitFlip(), range(16)),
        (BitFlip(count=2), range(16)),
        (BitFlip(count=3, bits=(2, 5, 7, 11, 15)), (2, 5, 7, 11, 15)),
        (BitFlip(count=4, bits=(2, 5, 7, 11, 15)), (2, 5, 7, 11, 15)),
    ],
)
def test_every_set_of_positions_is_equally_likely(model: BitFlip, population: tuple[int, ...]) -> None:
    keep, flip, probability = model.draw(12_000, format=native(torch.float16), generator=seeded(3))
    sets = [frozenset(chosen) for chosen in itertools.combinations(population, model.count)]
    counts = Counter(positions(word) for word in flip.tolist())
    assert set(counts) == set(sets)
    # Fixed seed; for a uniform draw a p-value this low comes once in 1,000 seeds.
    assert stats.chisquare([counts[chosen] for chosen in sets]).pvalue > 1e-3
    assert (probability == 1 / len(sets)).all()
    assert (keep == 0xFFFF).all()


def test_the_top_bit_of_a_double_is_reached() -> None:
    keep, flip, _ = BitFlip(count=64).draw(1, format=native(torch.float64), generator=seeded())
    assert (keep.tolist(), flip.tolist()) == ([-1], [-1])
    keep, flip, _ = BitFlip(bits=(63,)).draw(1, format=native(torch.float64), generator=seeded())
    value = torch.tensor([2.0], dtype=torch.float64)
    assert native(torch.float64).apply(value, keep, flip).tolist() == [-2.0]


def test_a_model_strikes_the_bits_of_the_value_unless_told_otherwise() -> None:
    half, single = MemorySite("a", dtype=torch.float16), MemorySite("b")
    assert BitFlip().format_for(half) == native(torch.float16)
    assert BitFlip(format=native(torch.bfloat16)).format_for(single) == native(torch.bfloat16)
    by_name = BitFlip(format={"a": FixedPoint(14, 2)})
    assert by_name.format_for(half) == FixedPoint(14, 2)
    with pytest.raises(HoplonError, match="expected a format for every site, got none for b"):
        by_name.format_for(single)


def test_names_show_what_was_chosen() -> None:
    assert BitFlip().name == "BitFlip()"
    assert BitFlip(count=2, bits=(30, 31), format=native(torch.float32)).name == (
        "BitFlip(format=float32, count=2, bits=(30, 31))"
    )
    assert BitFlip(field="sign").name == "BitFlip(field=sign)"
    assert StuckAt(0, format={"a": FixedPoint(14, 2)}).name == "StuckAt(format={a: fixed(14,2)}, value=0)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BitFlip(count=0), "expected count of BitFlip to be an integer of at least 1, got 0"),
        (lambda: BitFlip(bits=(3, 3)), r"expected different positions in bits, got \(3, 3\)"),
        (lambda: BitFlip(count=2, bits=(3,)), r"expected at least count=2 positions in bits, got \(3,\)"),
        (lambda: BitFlip(bits=()), r"expected at least count=1 positions in bits, got \(\)"),
        (lambda: draw_half(BitFlip(bits=(16,))), r"expected bits in \[0, 16\) for float16, got 16"),
        (
            lambda: draw_half(BitFlip(bits=(-1,))),
            r"expected bits of BitFlip to be a sequence \(each an integer of at least 0\) or None, got \(-1,\)",
        ),
        (lambda: draw_half(BitFlip(count=17)), "expected count of at most 16 for float16, got 17"),
        (lambda: draw_half(BitFlip(count=2, field="sign")), "expected count of at most 1 for float16, got 2"),
        (lambda: BitFlip(bits=(1,), field="sign"), r"expected bits or a field, got both: \(1,\) and 'sign'"),
        (
            lambda: BitFlip(field="sign").draw(1, format=FixedPoint(14, 2), generator=seeded()),
            r"floating-point format.*'sign', got fixed\(14,2\)",
        ),
        (lambda: StuckAt(2), "expected value of StuckAt to be 0 or 1, got 2"),
        (lambda: AdjacentBits(0), "expected count of AdjacentBits to be an integer of at least 1, got 0"),
        (lambda: draw_half(AdjacentBits(17)), "expected count of at most 16 for float16, got 17"),
        (lambda: RandomValue(1.0), "expected low and high, or neither, got 1.0 and None"),
        (lambda: RandomValue(2.0, 2.0), "expected finite low < high, got 2.0 and 2.0"),
        (lambda: RandomValue(0.0, math.inf), "expected finite low < high, got 0.0 and inf"),
        (
            lambda: RandomValue(-1.0, 1.0).draw(9, format=FixedPoint(14, 2), generator=seeded()),
            r"expected numbers of at least 0 for fixed\(14,2\), got -0",
        ),
        (lambda: RandomValue().patterns(native(torch.float16)), r"can be listed, such as BitFlip, got RandomValue\(\)"),
        (lambda: BitFlip(8).patterns(native(torch.float32)), "at most 65536 sets of positions to list, got 10518300"),
    ],
)
def test_models_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()


def draw_half(model: WordModel) -> object:
    return model.draw(1, format=native(torch.float16), generator=seeded())


@in_formats(LISTED)
def test_listed_changes_are_those_that_are_drawn(model: WordModel, number_format: NumberFormat) -> None:
    keep, flip, probability = model.patterns(number_format)
    listed = list(zip(keep.tolist(), flip.tolist(), strict=True))
    assert len(set(listed)) == len(listed)
    assert float(probability.sum()) == pytest.approx(1)
    drawn = model.draw(4000, format=number_format, generator=seeded())
    assert set(zip(drawn[0].tolist(), drawn[1].tolist(), strict=True)) <= set(listed)
    assert torch.allclose(drawn[2], probability[0])
    if len(listed) <= 16:
        assert set(zip(drawn[0].tolist(), drawn[1].tolist(), strict=True)) == set(listed)


def test_stuck_bits_are_set_whatever_they_were() -> None:
    half = native(torch.float16)
    values = torch.tensor([1.0, -1.0, 2.0, float("nan")], dtype=torch.float16).repeat(200)
    for value in (0, 1):
        keep, flip, _ = StuckAt(value, count=2).draw(len(values), format=half, generator=seeded())
        before, after = half.words(values), half.words(half.apply(values, keep, flip))
        stuck = ~keep & 0xFFFF
        assert {bits.bit_count() for bits in stuck.tolist()} == {2}
        assert torch.equal(after & stuck, stuck * value)
        assert torch.equal(after & keep, before & keep)


def test_adjacent_bits_start_anywhere_in_the_word() -> None:
    _, flip, probability = AdjacentBits(3).draw(28_000, format=native(torch.float16), generator=seeded())
    counts = Counter(flip.tolist())
    assert set(counts) == {7 << start for start in range(14)}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert probability.unique().tolist() == [1 / 14]
    assert AdjacentBits(64).patterns(native(torch.float64))[1].tolist() == [-1]
    assert AdjacentBits(63).patterns(native(torch.float64))[1].tolist() == [2**63 - 1, -2]


def test_fields_of_mixed_formats_are_each_ones_own() -> None:
    for dtype, width in ((torch.float32, 8), (torch.bfloat16, 8), (torch.float16, 5), (torch.float8_e5m2, 5)):
        _, flip, probability = BitFlip(field="exponent").patterns(native(dtype))
        assert (len(flip), float(probability[0])) == (width, 1 / width)
        assert int(flip.sum()) == (2**width - 1) << round(-math.log2(torch.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("number_format", "dtype"),
    [
        (native(torch.float32), torch.float32),
        (native(torch.int8), torch.int8),
        (Quantized(torch.uint8, 0.5, 77), torch.float32),
        (FixedPoint(14, 2), torch.float64),
    ],
    ids=str,
)
def test_zero_is_the_number_zero(number_format: NumberFormat, dtype: torch.dtype) -> None:
    keep, flip, _ = Zero().draw(3, format=number_format, generator=seeded())
    assert number_format.apply(torch.tensor([1, 3, 0]).to(dtype), keep, flip).tolist() == [0, 0, 0]


def test_random_numbers_are_uniform_and_random_words_too() -> None:
    single = native(torch.float32)
    keep, flip, probability = RandomValue(-1.0, 3.0).draw(50_000, format=single, generator=seeded())
    numbers = single.apply(torch.ones(50_000), keep, flip)
    assert stats.kstest(numbers.numpy(), stats.uniform(-1, 4).cdf).pvalue > 1e-3
    assert probability.isnan().all()
    for number_format in (native(torch.float64), native(torch.int8)):
        _, flip, probability = RandomValue().draw(20_000, format=number_format, generator=seeded())
        for bit in range(number_format.bits):
            assert stats.binomtest(int((flip >> bit & 1).sum()), 20_000).pvalue > 1e-5
        assert probability.unique().tolist() == [2.0**-number_format.bits]


def test_words_of_channels_are_struck_by_their_own_scale() -> None:
    form = Quantized(torch.int8, (0.5, 2.0), (5, -7), axis=0)
    site = MemorySite("w", shape=(2, 3))
    anchors = Places((site,), torch.zeros(6).long(), torch.arange(6))
    struck = Zero(format=form).sample(anchors, generator=seeded())
    assert struck.flip.tolist() == [5, 5, 5, 249, 249, 249]
    values = torch.full((6,), 4.0)
    assert form.at(struck.places.element, site.shape).apply(values, struck.keep, struck.flip).tolist() == [0.0] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_bits_of_changes(dtype: torch.dtype) -> None:
    form = native(dtype)
    for model, expected in (
        (BitFlip(), list(range(form.bits))),
        (StuckAt(1), list(range(form.bits))),
        (StuckAt(0), list(range(form.bits))),
        (AdjacentBits(2), [None] * (form.bits - 1)),
        (Zero(), [None]),
    ):
        keep, flip, _ = model.patterns(form)
        assert single_bits(keep.tolist(), flip.tolist(), form.all_ones) == expected
