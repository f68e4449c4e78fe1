"""From the faults of one sampling to the failure probability under another."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from hoplon.campaign.results import Results
from hoplon.errors import HoplonError
from hoplon.faults.model import Places
from hoplon.faults.sampling.base import Measure, Population, Sampling
from hoplon.faults.table import FaultTable, series_to_words
from hoplon.stats.intervals import Interval, weighted


def importance_weights(
    table: FaultTable, population: Population, *, drawn: Sampling, to: Sampling
) -> NDArray[np.float64]:
    """Weight of each fault under another sampling: the ratio of the two probabilities of its anchor.

    Args:
        table: faults of `population`, drawn by `drawn`; the first row of a fault is its anchor.
        population: sites and fault model, the same for both.
    Returns:
        float64, shape ``(faults,)``, in the order of the table.
    Raises:
        HoplonError: a sampling that is a list, or `to` reaches elements that `drawn` never draws.
    """
    if not population.fault_model.anchored:
        raise HoplonError(f"expected faults of a place that was drawn, got {population.fault_model.name}")
    _check_support(population, drawn, to)
    rows = table.frame.unique("fault", keep="first", maintain_order=True)
    known = {site.name: index for index, site in enumerate(population.sites)}
    number = torch.from_numpy(
        rows["site"].cast(pl.String).replace_strict(known, return_dtype=pl.Int64).to_numpy().copy()
    )
    anchors = Places(population.sites, number, torch.from_numpy(rows["element"].to_numpy().copy()))
    keep, flip = series_to_words(rows["keep"]), series_to_words(rows["flip"])
    wanted, had = (sampling.density(population, anchors, keep, flip) for sampling in (to, drawn))
    if not bool((had > 0).all()):
        site = rows["site"][int((had <= 0).nonzero()[0])]
        raise HoplonError(f"expected faults that {drawn} can draw, got one at {site}")
    return (wanted / had).numpy()


def reweighted(
    results: Results, population: Population, *, drawn: Sampling, to: Sampling, criterion: str | None = None
) -> Interval:
    """The failure probability under sampling `to`, from faults that were drawn by `drawn`.

    Args:
        results: of faults of `population`.
        criterion: a name out of ``results.criteria``; the first by default.
    Returns:
        The self-normalised estimate and its interval, see `hoplon.stats.intervals.weighted`.
    Raises:
        HoplonError: as `importance_weights`; or an unknown criterion.
    """
    shares = results.failing_shares(criterion)
    weights = importance_weights(results.faults, population, drawn=drawn, to=to)
    return weighted(shares, weights, confidence=results.level)


def _check_support(population: Population, drawn: Sampling, to: Sampling) -> None:
    """Refuse a target with elements that were never drawn: their failures would be missing from the estimate."""
    if not isinstance(drawn, Measure):
        return  # every other sampling that has a density reaches all elements
    for number, site in enumerate(population.sites):
        element = torch.arange(site.numel)
        where = torch.full_like(element, number)
        never = drawn.probability(population.sites, where, element) <= 0
        if isinstance(to, Measure):
            never &= to.probability(population.sites, where, element) > 0
        if never.any():
            raise HoplonError(
                f"expected a sampling that {drawn} covers, got {to}, which also reaches element "
                f"{int(never.nonzero()[0])} of {site.name}"
            )
