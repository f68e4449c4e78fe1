from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hoplon.errors import HoplonError
from hoplon.formats import Native, equal_bits, format_named, integer_view, native, one_per_word, same_bits
from tests.reference import bits

# One row per format; every property below runs over all of them.
FLOATS = [
    native(d)
    for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
]
INTEGERS = [native(d) for d in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)]
FORMATS = FLOATS + INTEGERS

each_format = pytest.mark.parametrize("number_format", FORMATS, ids=str)


def exact_values(number_format: Native) -> list[float]:
    """Held exactly by the format; for floats with both signs, both zeros, the infinities and a NaN."""
    if number_format.dtype == torch.bool:
        return [0, 1]
    if number_format in INTEGERS:
        limits = torch.iinfo(number_format.dtype)
        return [0, 1, 2, 96, limits.max, limits.min, limits.min + 1]
    infinities = [] if number_format.dtype == torch.float8_e4m3fn else [math.inf, -math.inf]
    return [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1.5, 96.0, *infinities, math.nan]


def patterns(number_format: Native, words: np.ndarray) -> torch.Tensor:
    """Values with these words, made without this library."""
    width = max(8, number_format.bits)
    return torch.from_numpy(words.astype(f"<u{width // 8}").view(f"<i{width // 8}").copy()).view(number_format.dtype)


def unsigned(words: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in words.flatten().tolist()]


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


@each_format
def test_words_are_those_of_the_reference(number_format: Native) -> None:
    exact = exact_values(number_format)
    values = torch.tensor(exact, dtype=number_format.dtype)
    expected = [int(bits.text_of(value, number_format.dtype), 2) for value in exact]
    words = number_format.words(values)
    assert words.dtype == torch.int64
    assert unsigned(words) == expected


@each_format
def test_every_position_of_every_value_flips_as_in_the_reference(number_format: Native) -> None:
    exact = exact_values(number_format)
    values = torch.tensor(exact, dtype=number_format.dtype)
    for position in range(number_format.bits):
        after = number_format.apply(values, number_format.all_ones, signed(1 << position))
        expected = [int(bits.flipped(bits.text_of(value, number_format.dtype), position), 2) for value in exact]
        assert after.dtype == number_format.dtype
        assert unsigned(number_format.words(after)) == expected, position


@each_format
@given(data=st.data())
def test_any_keep_and_flip_strike_as_in_the_reference(number_format: Native, data: st.DataObject) -> None:
    width = number_format.bits
    word = st.integers(0, 2**width - 1)
    before, keep, flip = data.draw(word), data.draw(word), data.draw(word)
    raw = patterns(number_format, np.array([before], dtype=np.uint64))  # any word, signalling NaNs included
    after = number_format.apply(raw, torch.tensor([signed(keep)]), torch.tensor([signed(flip)]))
    expected = bits.struck(f"{before:0{width}b}", f"{keep:0{width}b}", f"{flip:0{width}b}")
    assert unsigned(number_format.words(after)) == [int(expected, 2)]
    assert unsigned(number_format.words(raw)) == [before]


@each_format
def test_strike_undoes_itself_and_leaves_its_argument(number_format: Native) -> None:
    values = torch.tensor(exact_values(number_format), dtype=number_format.dtype)
    before = number_format.words(values)
    flip = torch.full((len(values),), signed((1 << number_format.bits - 1) | 1))
    once = number_format.apply(values, number_format.all_ones, flip)
    assert not same_bits(once, values).any()
    assert torch.equal(number_format.words(values), before)
    assert same_bits(number_format.apply(once, number_format.all_ones, flip), values).all()


@each_format
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3)])
def test_shape_is_kept_also_where_degenerate(number_format: Native, shape: tuple[int, ...]) -> None:
    values = torch.ones(shape).to(number_format.dtype)
    assert number_format.words(values).shape == shape
    struck = number_format.apply(values, 0, 0)
    assert (struck.shape, struck.dtype) == (shape, number_format.dtype)
    assert not struck.double().any()


def test_strides_may_be_any() -> None:
    values = torch.arange(12, dtype=torch.float32).view(3, 4).t()[::2]
    assert torch.equal(native(torch.float32).apply(values, 0xFFFFFFFF, 1 << 31), -values)


def test_one_value_meets_many_masks() -> None:
    after = native(torch.float32).apply(torch.tensor([1.0]), 0xFFFFFFFF, torch.tensor([0, 1 << 31, 1 << 23]))
    assert after.tolist() == [1.0, -1.0, 0.5]


def test_zero_and_stuck_bits() -> None:
    single, value = native(torch.float32), torch.tensor([1.0])
    assert single.apply(value, 0, 0).tolist() == [0.0]
    assert single.apply(value, 0xFFFFFFFF ^ (1 << 31), 1 << 31).tolist() == [-1.0]
    assert single.apply(-value, 0xFFFFFFFF ^ (1 << 31), 1 << 31).tolist() == [-1.0]


def test_struck_value_is_outside_autograd() -> None:
    value = torch.tensor([1.0], requires_grad=True)
    assert not native(torch.float32).apply(value, 0xFFFFFFFF, 1).requires_grad


@each_format
def test_the_name_finds_the_format_again(number_format: Native) -> None:
    assert format_named(number_format.name) is number_format
    assert str(number_format) == str(number_format.dtype).split(".")[1]


@pytest.mark.parametrize(
    ("dtype", "width", "ones"),
    [
        (torch.float64, 64, -1),
        (torch.float32, 32, 2**32 - 1),
        (torch.float16, 16, 65535),
        (torch.bfloat16, 16, 65535),
        (torch.float8_e4m3fn, 8, 255),
        (torch.int64, 64, -1),
        (torch.int32, 32, 2**32 - 1),
        (torch.int8, 8, 255),
        (torch.bool, 1, 1),
    ],
)
def test_width_and_all_ones(dtype: torch.dtype, width: int, ones: int) -> None:
    assert (native(dtype).bits, native(dtype).all_ones) == (width, ones)


@pytest.mark.parametrize("number_format", [form for form in FORMATS if form.bits < 64], ids=str)
@pytest.mark.parametrize("word", ["past", "negative"])
def test_a_word_too_wide_is_refused(number_format: Native, word: str) -> None:
    value = torch.ones(1).to(number_format.dtype)
    wide = 1 << number_format.bits if word == "past" else -1
    message = rf"expected words in \[0, 2\*\*{number_format.bits}\) for {number_format.name}, got {wide}"
    with pytest.raises(HoplonError, match=message):
        number_format.apply(value, number_format.all_ones, wide)
    with pytest.raises(HoplonError, match=message):
        number_format.apply(value, torch.tensor([wide]), 0)


def test_a_float_mask_is_refused() -> None:
    with pytest.raises(HoplonError, match=r"expected words as int64, got torch\.float32"):
        native(torch.float32).apply(torch.ones(1), torch.ones(1), 0)


def test_values_of_another_dtype_are_refused() -> None:
    message = r"expected values of torch.float32, got torch.float16; use native\(torch.float16\)"
    for call in (lambda v: native(torch.float32).words(v), lambda v: native(torch.float32).apply(v, 0, 0)):
        with pytest.raises(HoplonError, match=message):
            call(torch.ones(1, dtype=torch.float16))


def test_an_unsupported_dtype_or_name_is_refused() -> None:
    with pytest.raises(HoplonError, match=r"torch.float32.*, got torch.complex64"):
        native(torch.complex64)
    with pytest.raises(HoplonError, match=r"number format \(float64, float32, .*fixed\(21,10\).*got 'float31'"):
        format_named("float31")


def test_same_bits_is_not_equality() -> None:
    nan, other = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    left, right = torch.stack([nan, nan, torch.tensor(0.0)]), torch.stack([nan, other, torch.tensor(-0.0)])
    assert same_bits(left, right).tolist() == [True, False, False]


def test_same_bits_needs_one_dtype() -> None:
    with pytest.raises(HoplonError, match=r"one dtype, got torch\.float32 and torch\.float64"):
        same_bits(torch.ones(1), torch.ones(1, dtype=torch.float64))


def test_integer_view_shares_memory_and_refuses_wide_elements() -> None:
    values = torch.ones(3)
    integer_view(values)[1] = 0
    assert values.tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(HoplonError, match=r"at most 8 bytes, got torch\.complex128"):
        integer_view(torch.ones(1, dtype=torch.complex128))


def test_equal_bits_is_one_answer_for_whole_tensors() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert equal_bits(nan, nan.clone())
    assert not equal_bits(torch.zeros(1), -torch.zeros(1))
    assert not equal_bits(nan, nan.double())
    assert not equal_bits(nan, nan[:1])


@functools.cache
def every_flip(width: int) -> np.ndarray:
    """By the reference: row p holds what each word of `width` bits becomes when its bit p flips."""
    texts = [f"{word:0{width}b}" for word in range(2**width)]
    return np.array([[int(bits.flipped(text, position), 2) for text in texts] for position in range(width)])


@pytest.mark.parametrize("number_format", [form for form in FORMATS if form.bits in (8, 16)], ids=str)
def test_every_pattern_and_every_bit(number_format: Native) -> None:
    words = np.arange(2**number_format.bits, dtype=np.uint64)
    values = patterns(number_format, words)
    assert torch.equal(number_format.words(values), torch.from_numpy(words.astype(np.int64)))
    for position, expected in enumerate(every_flip(number_format.bits)):
        once = number_format.apply(values, number_format.all_ones, 1 << position)
        assert torch.equal(number_format.words(once), torch.from_numpy(expected)), position
        assert equal_bits(number_format.apply(once, number_format.all_ones, 1 << position), values), position


def test_a_million_float32_patterns() -> None:
    """Random words, among them many NaN payloads, each at one bit; all 32 bits in turn."""
    words = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint64)
    words[:64] = 0x7F800000 + np.arange(64)  # signalling NaNs, whose payload arithmetic would change
    position = np.arange(len(words)) % 32
    texts = (f"{word:032b}" for word in words.tolist())
    expected = np.array([int(bits.flipped(t, p), 2) for t, p in zip(texts, position.tolist(), strict=True)])
    single, values = native(torch.float32), patterns(native(torch.float32), words)
    flip = torch.from_numpy(1 << position)
    once = single.apply(values, single.all_ones, flip)
    assert torch.equal(single.words(once), torch.from_numpy(expected))
    assert equal_bits(single.apply(once, single.all_ones, flip), values)


@pytest.mark.parametrize("number_format", FLOATS, ids=str)
def test_fields_are_those_that_change_sign_size_and_fraction(number_format: Native) -> None:
    sign, exponent, mantissa = (number_format.field(name) for name in ("sign", "exponent", "mantissa"))
    assert [*mantissa, *exponent, *sign] == list(range(number_format.bits))
    one = torch.ones(1).to(number_format.dtype)

    def flip(position: int) -> float:
        return float(number_format.apply(one, number_format.all_ones, signed(1 << position)).double())

    assert flip(sign[0]) == -1
    # A mantissa bit of 1.0 adds a fraction; an exponent bit (all set but the top one) divides by a power of four or so.
    assert [flip(bit) for bit in mantissa] == [1 + 2.0 ** (bit - len(mantissa)) for bit in mantissa]
    assert [flip(bit) for bit in exponent[:-1]] == [2.0 ** -(2**k) for k in range(len(exponent) - 1)]


@pytest.mark.parametrize("number_format", INTEGERS, ids=str)
def test_formats_without_fields_say_so(number_format: Native) -> None:
    with pytest.raises(HoplonError, match=f"floating-point format.*'exponent', got {number_format.name}; use bits"):
        number_format.field("exponent")


@pytest.mark.parametrize(
    ("dtype", "numbers", "words"),
    [
        (torch.float32, [1.0, -0.1], [0x3F800000, 0xBDCCCCCD]),
        (torch.int8, [1.4, -1.5, 1000.0, -1000.0], [1, 0xFE, 127, 128]),
        (torch.uint8, [-3.0, 254.6], [0, 255]),
        (torch.bool, [0.0, 2.0], [0, 1]),
    ],
)
def test_numbers_are_rounded_to_words(dtype: torch.dtype, numbers: list[float], words: list[int]) -> None:
    assert native(dtype).encode(torch.tensor(numbers, dtype=torch.float64)).tolist() == words


def test_words_of_several_formats_are_struck_in_one_call() -> None:
    names = ["float32", "fixed(14,2)", "float32", "quantized(int8,0.5,0)"]
    form, values = one_per_word(names), torch.tensor([1.0, 1.0, -1.0, 1.0])
    assert form.words(values).tolist() == [0x3F800000, 4, 0xBF800000, 2]
    keep = torch.tensor([format_named(name).all_ones for name in names])
    struck = form.at(torch.arange(4), (4,)).apply(values, keep, torch.tensor([1 << 31, 4, 1 << 31, 1]))
    assert struck.tolist() == [-1.0, 0.0, 1.0, 1.5]
    assert one_per_word(["float32"] * 2) is native(torch.float32)
