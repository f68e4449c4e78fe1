"""What every registered schedule promises: where it bounds the latency, all memory is checked within it."""

from __future__ import annotations

import pytest

from hoplon.registry import components
from tests.support.examples import example


@pytest.mark.parametrize("name", components("schedule"))
def test_all_memory_is_checked_within_the_latency(name: str) -> None:
    when = example(components("schedule")[name])
    assert when.text
    for start in range(20):
        due = [when.due(forward) for forward in range(start, start + (when.latency or 100))]
        checks = [check for check in due if check is not None]
        assert all(0 <= turn < turns for turn, turns in checks)
        whole = any({turn for turn, of in checks if of == turns} == set(range(turns)) for _, turns in checks)
        assert whole == (when.latency is not None)
