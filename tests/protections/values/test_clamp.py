from __future__ import annotations

import math

import pytest
import torch

from hoplon.errors import HoplonError
from hoplon.formats import equal_bits, integer_view
from hoplon.protections.values.clamp import BoundValue
from tests.support.oracles import DTYPES, awkward, outwards

BOUNDS = [(0.0, 6.0), (0.0, 0.0), (0.25, 4.0), (-0.5, 3.0), (-2.0, -1.0), (-1.0, 0.0), (0.0, 1e300), (0.1, 0.7)]


def expected(value: float, low: float, high: float, negative: bool) -> float:
    """Slow reference on one Python float."""
    if math.isnan(value):
        return low if negative or low < 0 else high
    return min(max(value, low), high)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
def test_every_kind_of_word_ends_finite_inside_the_bound(dtype: torch.dtype, bound: tuple[float, float]) -> None:
    values = awkward(dtype)
    assert values.isnan().any()
    assert values.isinf().any()
    bounded = BoundValue(*bound)(values).double()
    assert bounded.isfinite().all()
    low, high = outwards(bound, dtype)
    assert low <= bounded.min() == BoundValue(*bound)(torch.tensor([-math.inf], dtype=dtype)).double()
    assert bounded.max() <= high


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", [(0.0, 6.0), (0.25, 4.0), (-0.5, 3.0), (-2.0, -1.0)], ids=str)
def test_it_equals_a_slow_reference(dtype: torch.dtype, bound: tuple[float, float]) -> None:
    values = awkward(dtype)[::37]
    negative = (integer_view(values) < 0).tolist()
    wanted = [expected(v, *bound, sign) for v, sign in zip(values.tolist(), negative, strict=True)]
    assert BoundValue(*bound)(values).tolist() == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
def test_in_place_equals_out_of_place_bit_for_bit(dtype: torch.dtype, bound: tuple[float, float]) -> None:
    values = awkward(dtype)
    before = values.clone()
    out = BoundValue(*bound)(values)
    assert equal_bits(values, before)
    assert BoundValue(*bound).apply_(values) is values
    assert equal_bits(values, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", [(0.0, 6.0), (0.5, 6.0), (-3.0, 6.0)], ids=str)
def test_values_in_range_are_left_alone(dtype: torch.dtype, bound: tuple[float, float]) -> None:
    values = awkward(dtype)
    inside = values[(values >= bound[0]) & (values <= bound[1]) & ((values != 0) | ~values.signbit())]
    assert len(inside) > 50
    assert equal_bits(BoundValue(*bound)(inside), inside)


def test_minus_zero_becomes_plus_zero_where_the_bound_starts_at_zero() -> None:
    assert not BoundValue(0.0, 1.0)(torch.tensor([-0.0])).signbit().any()
    assert BoundValue(-1.0, 1.0)(torch.tensor([-0.0])).signbit().all()
    assert not torch.tensor(BoundValue(-0.0, 1.0).low).signbit()


@pytest.mark.parametrize("bound", [(0.0, 0.5), (-0.5, 0.5)], ids=str)
def test_channels_last_is_kept(bound: tuple[float, float]) -> None:
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    out = BoundValue(*bound)(value)
    assert out.stride() == value.stride()
    assert equal_bits(out, BoundValue(*bound)(value.contiguous()))
    assert BoundValue(*bound).apply_(value).stride() == out.stride()
    assert equal_bits(value, out)


@pytest.mark.parametrize("bound", [(0.0, 0.5), (-0.5, 0.5)], ids=str)
def test_a_part_of_a_tensor_is_bounded_alone(bound: tuple[float, float]) -> None:
    value = torch.full((4, 4), 9.0)
    BoundValue(*bound).apply_(value[:, ::2])
    assert value[:, ::2].eq(0.5).all()
    assert value[:, 1::2].eq(9.0).all()


def test_ends_that_the_dtype_lacks_are_rounded_outwards() -> None:
    third = 1 / 3
    for dtype in DTYPES:
        for bound in ((third, 2.0), (0.0, third), (-third, third), (-2.0, -third), (0.0, 1e-300), (-1e300, 1.0)):
            ends = BoundValue(*bound)(torch.tensor([-math.inf, math.inf], dtype=dtype))
            assert tuple(ends.tolist()) == outwards(bound, dtype)
            assert ends[0] <= bound[0] or bound[0] < -torch.finfo(dtype).max
            assert ends[1] >= bound[1]


def test_refusals_name_the_bound_or_the_dtype() -> None:
    with pytest.raises(HoplonError, match=r"expected finite bounds with low <= high, got \(2.0, 1.0\)"):
        BoundValue(2.0, 1.0)
    with pytest.raises(HoplonError, match="expected finite bounds"):
        BoundValue(0.0, math.inf)
    with pytest.raises(HoplonError, match=r"to bound, got torch\.int64"):
        BoundValue(0.0, 1.0)(torch.tensor([3]))
    with pytest.raises(HoplonError, match="expected a bound that holds a value of torch.float16"):
        BoundValue(1e5, 2e5)(torch.ones(1, dtype=torch.float16))
