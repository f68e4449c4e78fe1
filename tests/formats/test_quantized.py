"""Quantised integers against torch's own quantisation."""

from __future__ import annotations

import math

import pytest
import torch

from hoplon.errors import HoplonError
from hoplon.formats import Quantized, equal_bits, format_named

TORCH = {torch.int8: torch.qint8, torch.uint8: torch.quint8}
FORMATS = [
    Quantized(torch.int8, 0.05, 3),
    Quantized(torch.uint8, 0.1, 128),
    Quantized(torch.int16, 1e-4),
    Quantized(torch.int32, 1e-6, -7),
    Quantized(torch.int8, (0.05, 0.3, 2.0), (0, -5, 9), axis=1),
    Quantized(torch.uint8, (0.05,), 100, axis=0),
    Quantized(torch.int8, (0.5, 0.25), axis=0),
]
each_format = pytest.mark.parametrize("form", FORMATS, ids=str)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "form", [form for form in FORMATS if form.dtype in TORCH and form.channels in (None, 3)], ids=str
)
def test_words_and_values_are_those_of_torch(form: Quantized) -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 8
    if form.axis is None:
        held = torch.quantize_per_tensor(values, form.scale, form.zero_point, TORCH[form.dtype])
    else:
        scales, zeros = torch.tensor(form.scale), torch.tensor(form.zero_point)
        held = torch.quantize_per_channel(values, scales, zeros, form.axis, TORCH[form.dtype])
    assert torch.equal(form.words(values), held.int_repr().long() % 2**form.bits)
    grid = held.dequantize()
    assert torch.equal(form.words(grid), form.words(values))
    # A word that changes and changes back passes through the value that torch dequantises to.
    flip = 1 << form.bits - 2
    assert equal_bits(form.apply(form.apply(values, form.all_ones, flip), form.all_ones, flip), grid)


@each_format
def test_a_fault_moves_the_value_by_the_change_of_the_word_times_the_scale(form: Quantized) -> None:
    shape = (2, 3) if form.axis == 1 or form.channels == 2 else (1, 6)
    steps = torch.tensor([[-3.0, 0.0, 2.0], [5.0, 1.0, -1.0]]).reshape(shape)
    scale, zero = form._scale_and_zero(steps)
    wide = torch.float64 if form.dtype == torch.int32 else torch.float32
    values = steps.to(wide) * scale.to(wide)
    for bit in range(form.bits):
        struck = form.apply(values, form.all_ones, 1 << bit)
        words = (form.words(values) ^ (1 << bit)) % 2**form.bits
        assert torch.equal(form.words(struck), words)
        signed = (
            words if form.dtype == torch.uint8 else (words + 2 ** (form.bits - 1)) % 2**form.bits - 2 ** (form.bits - 1)
        )
        assert equal_bits(struck, (signed - zero).to(wide) * scale.to(wide))
        assert equal_bits(form.apply(struck, form.all_ones, 1 << bit), values)


def test_channels_are_found_from_the_element() -> None:
    form = FORMATS[4]
    values = torch.linspace(-2, 2, 12).reshape(2, 3, 2)
    elements = torch.tensor([11, 0, 3, 8])
    some = values.flatten()[elements]
    placed = form.at(elements, (2, 3, 2))
    assert torch.equal(placed.words(some), form.words(values).flatten()[elements])
    struck = placed.apply(some, form.all_ones, 1 << 6)
    assert equal_bits(struck, form.apply(values, form.all_ones, 1 << 6).flatten()[elements])
    assert placed.name == form.name
    assert FORMATS[0].at(elements, (2, 3, 2)) is FORMATS[0]


def test_words_that_stay_leave_the_value_alone() -> None:
    values = torch.tensor([0.123, math.nan, math.inf, -1e9, -0.0])
    form = FORMATS[0]
    assert form.words(values).tolist() == [5, 3, 127, 128, 3]
    assert equal_bits(form.apply(values, form.all_ones, 0), values)
    struck = form.apply(values, form.all_ones, 1)
    assert struck.tolist() == pytest.approx([0.05, -0.05, 6.15, -6.5, -0.05])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_values_is_kept(dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -1.0]).to(dtype)
    struck = Quantized(torch.int8, 0.5).apply(values, 255, 1)
    assert struck.dtype == dtype
    assert struck.tolist() == [0.0, -0.5]


@each_format
def test_the_name_finds_the_format_again(form: Quantized) -> None:
    assert format_named(form.name) == form


def test_a_fitted_format_holds_the_largest_value() -> None:
    values = torch.tensor([[1.0, -2.0], [0.0, 0.0], [math.nan, 5.0]])
    whole, rows = Quantized.fitted(values), Quantized.fitted(values, axis=0)
    assert whole.scale == pytest.approx(5 / 127)
    assert rows.scale == pytest.approx((2 / 127, 1.0, 5 / 127))
    assert rows.words(values)[0].tolist() == [64, 256 - 127]
    assert Quantized.fitted(values, torch.uint8).words(torch.tensor([5.0, 0.0])).tolist() == [255, 128]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantized(torch.float32, 1.0), "expected one of torch.int8.*got torch.float32"),
        (lambda: Quantized(torch.int8, 0.0), "scale that is positive and finite, got 0.0"),
        (
            lambda: Quantized(torch.int8, math.nan),
            r"expected scale of Quantized to be a number or a sequence \(each a number\), got nan",
        ),
        (lambda: Quantized(torch.int8, 1.0, 128), r"zero point in \[-128, 127\], got 128"),
        (lambda: Quantized(torch.int8, (1.0, 2.0)), "as many as channels and their axis, got 2 scales, 1 zero points"),
        (lambda: Quantized(torch.int8, 1.0, axis=0), "got 1 scales, 1 zero points, axis 0"),
        (lambda: Quantized(torch.int8, (1.0, 2.0), (0, 0, 0), axis=0), "got 2 scales, 3 zero points, axis 0"),
        (lambda: FORMATS[4].words(torch.ones(2, 4)), r"expected 3 channels at axis 1, got shape \(2, 4\)"),
        (lambda: FORMATS[4].at(torch.zeros(1).long(), (6,)), r"expected 3 channels at axis 1, got shape \(6,\)"),
        (lambda: FORMATS[0].words(torch.ones(2).int()), "expected floating-point values.*got torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        make()
