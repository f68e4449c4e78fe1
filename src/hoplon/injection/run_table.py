"""The table of runs, and the errors that an operator may raise on a faulty value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.criteria.base import Criterion
from hoplon.criteria.outcome import OUTCOME_NAMES

# An index out of range, a size that makes no sense.
RUN_ERRORS = (RuntimeError, IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError)


def blank(criterion: Criterion, *runs: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return arrays for outcomes, ``(*runs, names)``, and measures, ``(*runs, measure_names)``, the latter NaN."""
    outcomes = np.zeros((*runs, len(criterion.names)), dtype=np.uint8)
    return outcomes, np.full((*runs, len(criterion.measure_names)), np.nan, dtype=np.float32)


def run_frame(
    fault: NDArray[Any],
    inputs: NDArray[Any],
    criterion: Criterion,
    outcomes: NDArray[np.uint8],
    measures: NDArray[np.float32],
    flags: Iterable[NDArray[np.bool_]],
) -> pl.DataFrame:
    """Return the table of runs in its one column order, sorted by fault and input.

    Args:
        flags: detected, corrected and reached.
    """
    outcome_names = pl.Series(OUTCOME_NAMES, dtype=pl.Enum(OUTCOME_NAMES))
    columns = {name: outcome_names.gather(outcomes[:, index]) for index, name in enumerate(criterion.names)}
    columns |= {name: pl.Series(measures[:, index]) for index, name in enumerate(criterion.measure_names)}
    columns |= zip(("detected", "corrected", "reached"), map(pl.Series, flags), strict=True)
    return pl.DataFrame({"fault": fault, "input": inputs, **columns}).sort("fault", "input")
