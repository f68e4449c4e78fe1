"""What remains of an attack when the top fraction of a score is protected, from one unprotected campaign."""

from __future__ import annotations

import numpy as np
import polars as pl

from hoplon.campaign.results import Results
from hoplon.errors import HoplonError
from hoplon.importance.scores import Scores
from hoplon.stats.intervals import Interval, clustered


def remaining(results: Results, scores: Scores, fraction: float) -> Interval:
    """Failure of memory faults when the top fraction of the scored weights is protected.

    A fault in a protected weight is repaired, whatever its bits, so it fails no input; the others fail as they did.

    Args:
        results: of faults in single weights, without protection.
        fraction: in [0, 1]; 0 protects nothing.
    Returns:
        The share of inputs that fail, mean over faults, clustered by fault.
    Raises:
        HoplonError: value faults, a fault of several words, or a fraction out of range.
    """
    per_fault = results.per_fault()
    if (per_fault["words"] > 1).any():
        raise HoplonError("expected faults in one weight each, got some in several words; protection may cover a part")
    kept = np.array(exposed(scores, fraction, per_fault.select(pl.col("site").cast(pl.String), "element")))
    shares, sizes = per_fault["failure"].to_numpy(), per_fault["n_inputs"].to_numpy()
    return clustered(shares * kept, sizes, confidence=results.confidence)


def exposed(scores: Scores, fraction: float, places: pl.DataFrame) -> list[bool]:
    """Of each place (``site``, ``element``), whether it lies outside of the protected top fraction.

    Example:
        >>> import torch
        >>> places = pl.DataFrame({"site": ["a", "a"], "element": [0, 1]})
        >>> exposed(Scores({"a": torch.tensor([1.0, 2.0])}), 0.5, places)
        [True, False]
    """
    if not fraction:
        return [True] * places.height
    top = {name: set(indices.tolist()) for name, indices in scores.top(fraction).items()}
    return [element not in top.get(site, ()) for site, element in places.iter_rows()]
