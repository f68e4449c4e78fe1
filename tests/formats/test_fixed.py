"""Fixed point against exact fractions, and its quirks against a reader of decimal strings."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from hoplon.errors import HoplonError
from hoplon.formats import FixedPoint, equal_bits, format_named
from tests.reference import fixed

# Bits of the significand, exponent of the smallest subnormal, largest number.
PRECISION = {
    torch.float64: (53, -1074, 1.7976931348623157e308),
    torch.float32: (24, -149, 3.4028234663852886e38),
    torch.float16: (11, -24, 65504.0),
    torch.bfloat16: (8, -133, 3.3895313892515355e38),
    torch.float8_e5m2: (3, -16, 57344.0),
}
FORMATS = [FixedPoint(21, 10), FixedPoint(14, 2), FixedPoint(1, 0), FixedPoint(0, 8), FixedPoint(3, 50)]
PAPER = [FixedPoint(21, 10, quirks=True), FixedPoint(14, 2, quirks=True)]

each_format = pytest.mark.parametrize("form", FORMATS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def numbers(form: FixedPoint) -> st.SearchStrategy[float]:
    """Any float, and many close to the steps and the ends of the format."""
    steps = st.integers(-(2 ** (form.bits + 1)), 2 ** (form.bits + 1)).map(lambda n: n * 2.0**-form.fraction)
    nudged = st.tuples(steps, st.sampled_from([0.0, 1e-30, -1e-30, 2.0**-30, 0.3])).map(sum)
    return st.floats(width=64) | st.floats(-(2.0**22), 2.0**22) | steps | nudged


@each_format
@each_dtype
@given(data=st.data())
def test_words_and_strikes_are_those_of_exact_arithmetic(
    form: FixedPoint, dtype: torch.dtype, data: st.DataObject
) -> None:
    value = torch.tensor([data.draw(numbers(form))], dtype=torch.float64).to(dtype)
    number = float(value.double())
    word = fixed.fixed_word(number, form.integer, form.fraction)
    assert form.words(value).tolist() == [word]
    keep, flip = (data.draw(st.integers(0, form.all_ones)) for _ in range(2))
    struck = form.apply(value, keep, flip)
    assert struck.dtype == dtype
    if (word & keep) ^ flip == word:
        assert equal_bits(struck, value)
        return
    precision, lowest, largest = PRECISION[dtype]
    exact = fixed.nearest(fixed.fixed_struck(number, form.integer, form.fraction, keep, flip), precision, lowest)
    assert bool(torch.signbit(struck.double())) == bool(torch.signbit(value.double()))
    found = abs(float(struck.double()))
    assert (math.isinf(found) and exact > largest) or Fraction(found) == exact


@each_format
def test_flipping_twice_gives_back_what_the_dtype_can_hold(form: FixedPoint) -> None:
    """Within the word the sum is exact in float64 where it needs no more than 53 bits."""
    steps = torch.randint(form.all_ones + 1, (500,), generator=torch.Generator().manual_seed(0)).double()
    values = steps * 2.0**-form.fraction
    for bit in range(form.bits):
        once = form.apply(values, form.all_ones, 1 << bit)
        assert torch.equal(form.words(once), form.words(values) ^ (1 << bit))
        assert equal_bits(form.apply(once, form.all_ones, 1 << bit), values)


@pytest.mark.parametrize(
    ("dtype", "residue", "flip", "expected"),
    [
        (torch.float32, 2.0**-60, (1 << 24) | 1, (1 << 24) + 2),
        (torch.bfloat16, 2.0**-40, (1 << 8) | 1, (1 << 8) + 2),
        (torch.float16, 2.0**-14, (1 << 15) | (1 << 4), (1 << 15) + (1 << 5)),
    ],
)
def test_the_sum_is_rounded_once(dtype: torch.dtype, residue: float, flip: int, expected: int) -> None:
    """Half-way between two numbers of the dtype but for a residue that an intermediate rounding would lose."""
    struck = FixedPoint(21, 10).apply(torch.tensor([residue, -residue], dtype=dtype), 2**31 - 1, flip)
    assert struck.tolist() == [expected * 2.0**-10, -expected * 2.0**-10]


def test_the_papers_formats() -> None:
    assert [form.bits for form in FORMATS[:2]] == [31, 16]
    assert [form.bytes for form in FORMATS[:2]] == [4, 2]
    # "32-bit: 21 integer and 10 fraction bits": the largest deviation of one bit is 2**20, the smallest 2**-10.
    half = torch.tensor([0.5, -0.5])
    assert FORMATS[0].apply(half, 2**31 - 1, 1 << 30).tolist() == [1048576.5, -1048576.5]
    assert FORMATS[0].apply(half, 2**31 - 1, 1).tolist() == [0.5009765625, -0.5009765625]
    assert FORMATS[1].apply(half, 2**16 - 1, 1 << 15).tolist() == [8192.5, -8192.5]
    # Saturation at 2**14 - 0.25, and the bit it then clears.
    assert FORMATS[1].apply(torch.tensor([27154.0]), 2**16 - 1, 1 << 15).tolist() == [8191.75]


def test_special_values_become_numbers_or_stay() -> None:
    form = FORMATS[1]
    values = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    assert form.words(values).tolist() == [0, 65535, 65535, 0]
    assert form.apply(values, 65535, 1 << 15).tolist() == [8192.0, 8191.75, -8191.75, -8192.0]
    assert equal_bits(form.apply(values, 65535, 0), values)


@pytest.mark.parametrize("form", [*FORMATS, *PAPER], ids=str)
def test_the_name_finds_the_format_again(form: FixedPoint) -> None:
    assert format_named(form.name) == form


@pytest.mark.parametrize("form", PAPER, ids=str)
def test_quirks_are_those_of_the_decimal_string(form: FixedPoint) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = 10 ** (torch.rand(6000, generator=generator, dtype=torch.float64) * 14 - 10)
    near = torch.arange(1, 300) * 2.0**-form.fraction - 3e-11  # where ten decimals round up to the next step
    values = torch.cat(
        [torch.randn(6000, generator=generator) * scale, near.double(), torch.tensor([0.0, 1 - 3e-11]).double()]
    )
    values = values[values.abs() < (2.0**14 if form.integer == 14 else 1e7)]
    positions = torch.randint(form.bits, values.shape, generator=generator)
    struck = form.apply(values, form.all_ones, 1 << positions)
    pairs = list(zip(values.tolist(), positions.tolist(), strict=True))
    read = [fixed.read_digits(value, form.integer, form.fraction)[-form.bits :] for value, _ in pairs]
    expected = [fixed.read_and_flipped(v, form.integer, form.fraction, p) for v, p in pairs]
    assert form.words(values).tolist() == [int(text.replace("2", "0"), 2) for text in read]
    assert struck.tolist() == expected


def test_quirks_read_small_numbers_wrongly_and_the_default_does_not() -> None:
    small = torch.tensor([3.2e-5])
    assert FORMATS[0].words(small).tolist() == [0]
    assert PAPER[0].words(small).tolist() == [3 << 10]
    # "Clearing" the bit that is not there subtracts 1.
    assert PAPER[0].apply(small, 2**31 - 1, 1 << 10).tolist() == pytest.approx([-0.999968])
    assert FORMATS[0].apply(small, 2**31 - 1, 1 << 10).tolist() == pytest.approx([1.000032])


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (PAPER[0], math.nan),
        (PAPER[0], math.inf),
        (PAPER[0], 1e-5),
        (PAPER[0], 1e16),
        (PAPER[1], 16384.0),
    ],
)
def test_quirks_refuse_what_the_injector_cannot_read(form: FixedPoint, value: float) -> None:
    with pytest.raises(HoplonError, match=r"expected values that the injector of fixed\(.*,quirks\) can read, got"):
        form.words(torch.tensor([1.0, value], dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPoint(0, 0), "together 1 to 53, got 0 and 0"),
        (lambda: FixedPoint(30, 30), "together 1 to 53, got 30 and 30"),
        (lambda: FixedPoint(-1, 9), "at least 0, together 1 to 53, got -1 and 9"),
        (lambda: FixedPoint(8, 8, quirks=True), r"expected \(21, 10\) or \(14, 2\) with quirks, got \(8, 8\)"),
        (lambda: FixedPoint(21, 10).words(torch.ones(1).int()), "expected floating-point values.*got torch.int32"),
        (lambda: FixedPoint(21, 10).encode(-torch.ones(1)), r"numbers of at least 0 for fixed\(21,10\), got -1"),
        (lambda: FixedPoint(2, 2).apply(torch.ones(1), 15, 16), r"words in \[0, 2\*\*4\) for fixed\(2,2\), got 16"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        make()
