from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from hoplon.errors import DataError
from hoplon.protections.ranges import Histogram
from hoplon.protections.ranges.histogram import RELATIVE_ERROR

SHARES = (0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)


def draws(name: str, count: int = 5000) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(count, generator=generator)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "heavy": torch.exp(4 * normal) * normal.sign(),
        "tiny": normal * 1e-30,
        "equal": torch.full((count,), -2.5),
    }[name]


def nearest_rank(values: Tensor, share: float) -> float:
    """Slow reference: the smallest value that at least this share does not exceed."""
    ordered = sorted(values.tolist())
    return float(ordered[max(math.ceil(round(share * len(ordered), 9)), 1) - 1])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["normal", "relu", "heavy", "tiny", "equal"])
def test_a_quantile_is_never_inside_the_exact_one_and_at_most_the_stated_error_outside(name: str, share: float) -> None:
    values = draws(name)
    upper, exact = Histogram.of(values).at_least(share), nearest_rank(values, share)
    assert exact <= upper <= exact + abs(exact) * RELATIVE_ERROR + 1e-38
    lower, exact = Histogram.of(values).at_most(share), -nearest_rank(-values, share)
    assert exact - abs(exact) * RELATIVE_ERROR - 1e-38 <= lower <= exact


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    values = draws("heavy")
    parts = [Histogram.of(part) for part in values.split(617)]
    whole = Histogram.of(values)
    assert sum(parts, Histogram.empty()) == whole == sum(reversed(parts), Histogram.empty())
    assert whole.total == len(values)
    assert len(whole.bins) < len(values) / 2
    assert (np.diff(whole.bins) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_formats(dtype: torch.dtype) -> None:
    values = draws("normal").to(dtype)
    exact = nearest_rank(values, 0.9)
    assert exact <= Histogram.of(values).at_least(0.9) <= exact * (1 + RELATIVE_ERROR)
    assert Histogram.of(torch.tensor([1e300, -1e300], dtype=torch.float64)).at_least(1.0) > 3e38


def test_it_goes_through_plain_lists_and_refuses_what_is_no_histogram() -> None:
    found = Histogram.of(draws("normal"))
    assert TypeAdapter(Histogram).validate_python(found.to_plain()) == found
    with pytest.raises(ValueError, match="bins do not increase"):
        TypeAdapter(Histogram).validate_python({"bins": [2, 1], "counts": [1, 1]})


def test_no_values_and_shares_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="expected values to take a quantile of, got none"):
        Histogram.empty().at_least(0.5)
    with pytest.raises(DataError, match=r"expected a quantile in \(0, 1\], got 0"):
        Histogram.of(torch.ones(3)).at_most(0)
