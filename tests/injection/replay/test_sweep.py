"""Numbers of windows that are run together: they hold all, at the least price."""

from __future__ import annotations

import itertools

from hypothesis import given, strategies as st

from hoplon.injection.replay.sweep import cheapest

COUNTS = (8, 4, 2)


def _least(total: int, prices: dict[int, float]) -> float:
    """Every mixture of numbers, up to as many of each as would do alone."""
    ranges = [range(-(-total // count) + 1) for count in COUNTS]
    mixtures = itertools.product(*ranges)
    fitting = (m for m in mixtures if sum(n * c for n, c in zip(m, COUNTS, strict=True)) >= total)
    return min(sum(n * prices[c] for n, c in zip(m, COUNTS, strict=True)) for m in fitting)


@given(st.integers(0, 40), st.integers(0, 50), st.integers(1, 9))
def test_the_cheapest_numbers_hold_all_windows_at_the_least_price(total: int, call: int, each: int) -> None:
    prices = {count: float(call + each * count) for count in COUNTS}
    chosen = cheapest(total, COUNTS, prices.__getitem__)
    assert sum(chosen) >= total
    assert chosen == sorted(chosen, reverse=True)
    assert sum(prices[count] for count in chosen) == _least(total, prices)


def test_a_shape_that_was_never_looked_at_is_left_alone_where_others_do() -> None:
    assert cheapest(12, COUNTS, {8: 100.0, 4: 10.0, 2: 6.0}.__getitem__) == [4, 4, 4]
    assert cheapest(3, COUNTS, {8: 9.0, 4: 10.0, 2: 6.0}.__getitem__) == [8]
