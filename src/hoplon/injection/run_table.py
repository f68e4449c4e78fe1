"""The table of runs, and what may end a run on a faulty value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.criteria.base import Criterion
from hoplon.criteria.outcome import CAUSES, OUTCOME_NAMES
from hoplon.errors import HoplonError, said
from hoplon.injection.time_limit import HangError

# Whatever a model makes of a wrong value: an index out of range, a failed check of its own, the end of the program.
RUN_ERRORS = (Exception, SystemExit, HangError)


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
    causes: NDArray[np.uint8] | None = None,
    near_ties: NDArray[np.bool_] | None = None,
) -> pl.DataFrame:
    """Return the table of runs in its one column order, sorted by fault and input.

    Args:
        flags: detected, corrected and reached.
        causes: of crashes, as `cause_number` has them; 0 for all other runs.
        near_ties: of decoding loops alone: runs that chose a token with another one next to it, and so ran alone.
    """
    outcome_names = pl.Series(OUTCOME_NAMES, dtype=pl.Enum(OUTCOME_NAMES))
    columns = {name: outcome_names.gather(outcomes[:, index]) for index, name in enumerate(criterion.names)}
    columns |= {name: pl.Series(measures[:, index]) for index, name in enumerate(criterion.measure_names)}
    columns |= zip(("detected", "corrected", "reached"), map(pl.Series, flags), strict=True)
    named = pl.Series((None, *CAUSES), dtype=pl.Enum(CAUSES))
    columns["cause"] = named.gather(np.zeros(len(fault), dtype=np.uint8) if causes is None else causes)
    if near_ties is not None:
        columns["near_tie"] = pl.Series(near_ties)
    return pl.DataFrame({"fault": fault, "input": inputs, **columns}).sort("fault", "input")


def cause_of(error: BaseException) -> str:
    """What a run ended in, out of `CAUSES`."""
    return "hang" if isinstance(error, HangError) else "death" if isinstance(error, SystemExit) else "exception"


def cause_number(cause: str) -> int:
    """Number of a cause; 0 stands for none."""
    return 1 + CAUSES.index(cause)


def own_fault(site: str, error: BaseException) -> HoplonError:
    """The error for a run that ends although no word of it is changed, which is no outcome."""
    return HoplonError(
        f"expected the path of faults through {site} to give outputs while no word is changed, got "
        f"{type(error).__name__}: {said(error)}; this is an error of hoplon, so leave the site out or use "
        'capture(..., form="eager")'
    )
