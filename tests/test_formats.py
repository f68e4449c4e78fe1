from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hoplon.errors import HoplonError
from hoplon.formats import Native, equal_bits, format_named, integer_view, native, same_bits
from tests.reference import bits

# One row per format; every property below runs over all of them.
FORMATS = [native(d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
# Exact in every format, with both signs, both zeros, the infinities and a NaN.
VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1.5, 96.0, math.inf, -math.inf, math.nan]

each_format = pytest.mark.parametrize("number_format", FORMATS, ids=str)


def unsigned(words: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in words.flatten().tolist()]


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


@each_format
def test_words_are_those_of_the_reference(number_format: Native) -> None:
    values = torch.tensor(VALUES, dtype=number_format.dtype)
    expected = [int(bits.text_of(value, number_format.dtype), 2) for value in VALUES]
    words = number_format.words(values)
    assert words.dtype == torch.int64
    assert unsigned(words) == expected


@each_format
def test_every_position_of_every_value_flips_as_in_the_reference(number_format: Native) -> None:
    values = torch.tensor(VALUES, dtype=number_format.dtype)
    for position in range(number_format.bits):
        after = number_format.strike(values, number_format.all_ones, signed(1 << position))
        expected = [int(bits.flipped(bits.text_of(value, number_format.dtype), position), 2) for value in VALUES]
        assert after.dtype == number_format.dtype
        assert unsigned(number_format.words(after)) == expected, position


@each_format
@given(data=st.data())
def test_any_keep_and_flip_strike_as_in_the_reference(number_format: Native, data: st.DataObject) -> None:
    width = number_format.bits
    word = st.integers(0, 2**width - 1)
    before, keep, flip = data.draw(word), data.draw(word), data.draw(word)
    # A value with any word, signalling NaNs included, made without this library.
    raw = torch.frombuffer(bytearray(before.to_bytes(width // 8, "little")), dtype=number_format.dtype)
    after = number_format.strike(raw, torch.tensor([signed(keep)]), torch.tensor([signed(flip)]))
    expected = bits.struck(f"{before:0{width}b}", f"{keep:0{width}b}", f"{flip:0{width}b}")
    assert unsigned(number_format.words(after)) == [int(expected, 2)]
    assert unsigned(number_format.words(raw)) == [before]


@each_format
def test_strike_undoes_itself_and_leaves_its_argument(number_format: Native) -> None:
    values = torch.tensor(VALUES, dtype=number_format.dtype)
    before = number_format.words(values)
    flip = torch.full((len(VALUES),), signed((1 << number_format.bits - 1) | 1))
    once = number_format.strike(values, number_format.all_ones, flip)
    assert not same_bits(once, values).any()
    assert torch.equal(number_format.words(values), before)
    assert same_bits(number_format.strike(once, number_format.all_ones, flip), values).all()


@each_format
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3)])
def test_shape_is_kept_also_where_degenerate(number_format: Native, shape: tuple[int, ...]) -> None:
    values = torch.ones(shape, dtype=number_format.dtype)
    sign = signed(1 << number_format.bits - 1)
    assert number_format.words(values).shape == shape
    assert torch.equal(number_format.strike(values, number_format.all_ones, sign), -values)


def test_strides_may_be_any() -> None:
    values = torch.arange(12, dtype=torch.float32).view(3, 4).t()[::2]
    assert torch.equal(native(torch.float32).strike(values, 0xFFFFFFFF, 1 << 31), -values)


def test_one_value_meets_many_masks() -> None:
    after = native(torch.float32).strike(torch.tensor([1.0]), 0xFFFFFFFF, torch.tensor([0, 1 << 31, 1 << 23]))
    assert after.tolist() == [1.0, -1.0, 0.5]


def test_zero_and_stuck_bits() -> None:
    single, value = native(torch.float32), torch.tensor([1.0])
    assert single.strike(value, 0, 0).tolist() == [0.0]
    assert single.strike(value, 0xFFFFFFFF ^ (1 << 31), 1 << 31).tolist() == [-1.0]
    assert single.strike(-value, 0xFFFFFFFF ^ (1 << 31), 1 << 31).tolist() == [-1.0]


def test_struck_value_is_outside_autograd() -> None:
    value = torch.tensor([1.0], requires_grad=True)
    assert not native(torch.float32).strike(value, 0xFFFFFFFF, 1).requires_grad


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
    ],
)
def test_width_and_all_ones(dtype: torch.dtype, width: int, ones: int) -> None:
    assert (native(dtype).bits, native(dtype).all_ones) == (width, ones)


@pytest.mark.parametrize("number_format", FORMATS[1:], ids=str)
@pytest.mark.parametrize("word", ["past", "negative"])
def test_a_word_too_wide_is_refused(number_format: Native, word: str) -> None:
    value = torch.ones(1, dtype=number_format.dtype)
    wide = 1 << number_format.bits if word == "past" else -1
    message = rf"expected words in \[0, 2\*\*{number_format.bits}\) for {number_format.name}, got {wide}"
    with pytest.raises(HoplonError, match=message):
        number_format.strike(value, number_format.all_ones, wide)
    with pytest.raises(HoplonError, match=message):
        number_format.strike(value, torch.tensor([wide]), 0)


def test_a_float_mask_is_refused() -> None:
    with pytest.raises(HoplonError, match=r"expected words as int64, got torch\.float32"):
        native(torch.float32).strike(torch.ones(1), torch.ones(1), 0)


def test_values_of_another_dtype_are_refused() -> None:
    message = r"expected values of torch.float32, got torch.float16; use native\(torch.float16\)"
    for call in (lambda v: native(torch.float32).words(v), lambda v: native(torch.float32).strike(v, 0, 0)):
        with pytest.raises(HoplonError, match=message):
            call(torch.ones(1, dtype=torch.float16))


def test_an_unsupported_dtype_or_name_is_refused() -> None:
    with pytest.raises(HoplonError, match=r"torch.float32.*, got torch.complex64"):
        native(torch.complex64)
    with pytest.raises(HoplonError, match=r"\(float64, float32, float16, bfloat16\), got 'float31'"):
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
