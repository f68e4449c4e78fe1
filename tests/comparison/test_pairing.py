from __future__ import annotations

import polars as pl
import pytest

from hoplon.comparison.pairing import paired, turned
from hoplon.stats.intervals import paired_difference, paired_ratio


def side(failing: set[int], *, runs: int = 100) -> pl.LazyFrame:
    outcomes = [("sdc" if n % 2 else "nonfinite") if n in failing else "benign" for n in range(runs)]
    return pl.LazyFrame({"fault": range(runs), "input": [0] * runs, "top-1": outcomes})


def test_the_same_faults_are_counted_by_where_they_fail() -> None:
    guarded, plain = side({1, 2, 3}), side({2, 3, 4, 5, 6, 7, 8})
    found = paired(guarded, plain, "top-1", target="values", confidence=0.9)
    assert (found.only_first, found.only_second, found.n_runs, found.n_faults) == (1, 5, 100, 100)
    assert found.difference == paired_difference(1, 5, 100, confidence=0.9)
    assert found.reduction == paired_ratio(2, 5, 1, confidence=0.9)
    assert found.reduction.estimate == pytest.approx(7 / 3)


def test_runs_of_one_memory_fault_fail_together_and_give_no_ratio() -> None:
    found = paired(side({1}), side({2}), "top-1", target="memory", confidence=0.95)
    assert found.reduction is None
    assert found.p_value is None


def test_what_fails_on_one_side_alone_is_counted_by_the_site_that_was_struck() -> None:
    outcomes = {"first": ["sdc", "sdc", "nonfinite", "identical"], "second": ["identical", "sdc", "benign", "sdc"]}
    places = pl.LazyFrame({"fault": [0, 1, 2, 3], "input": [5, 5, 6, 7]})
    first, second = (places.with_columns(top=pl.Series(found)) for found in outcomes.values())
    faults = pl.LazyFrame({"fault": [0, 0, 1, 2, 3], "site": ["b", "a", "a", "b", "a"]})
    assert turned(first, second, faults, "top") == {"b": 2}
    assert turned(second, first, faults, "top") == {"a": 1}
