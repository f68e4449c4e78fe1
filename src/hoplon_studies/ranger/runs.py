"""Campaigns of the study: number format, sites, protections, and rows of their failure rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.rates import Rate
from hoplon.campaign.results import Results
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.single_word import BitFlip
from hoplon.formats.fixed import FixedPoint
from hoplon.program.sites import Values
from hoplon.protections.base import Protection
from hoplon.stats.intervals import Interval, wilson
from hoplon_studies.framework.findings import Source
from hoplon_studies.framework.rows import Row, Value
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Absent, Network, outputs

Protections = Sequence[Protection]


@final
@dataclass(frozen=True)
class FaultModel:
    """A fault model and how its faults are drawn: ``key`` of folders, format; None: float32."""

    key: str
    format: FixedPoint | None = None

    @property
    def words(self) -> str:
        """In words, on the page."""
        if self.format is None:
            return "one bit of float32, every element equally likely"
        bits = f"{self.format.integer}.{self.format.fraction}"
        return f"one bit of {bits} fixed point, operator first, last fully connected layer left out"


FIXED32, FIXED16 = FaultModel("fixed32", FixedPoint(21, 10)), FaultModel("fixed16", FixedPoint(14, 2))
FLOAT32 = FaultModel("float32")


@final
class Campaigns:
    """Campaigns of one part under one fault model; arms of the same name meet the same faults.

    Attributes:
        context, model: of the part, and how faults are drawn.
        names: of the run directories inside the part's folder, in the order in which they were run.
    """

    def __init__(self, context: Context, model: FaultModel = FIXED32) -> None:
        self.names: list[str] = []
        self.model, self.context = model, context

    def run(
        self,
        network: Network,
        arm: str,
        protections: Protections = (),
        *,
        sampling: Sampling | None = None,
        sites: Values | None = None,
        name: str = "",
    ) -> Results:
        """Run one campaign, or read it where it has been run.

        Args:
            arm: of the run directory.
            sampling: in the place of the fault model's.
            sites: all by default, as far as the sampling takes them.
            name: of the network's run directory; its key by default.
        """
        counts, model = self.context.profile.ranger, self.model
        campaign = Campaign(
            network.program,
            network.met,
            sites=sites or Values(),
            fault_model=BitFlip(format=model.format),
            sampling=sampling or (network.sampling if model.format else ElementUniform()),
            criterion=network.criterion,
            protections=tuple(protections),
        )
        self.names.append(f"{name or network.listing.key}/{model.key}/{arm}")
        count = counts.faults if model.format else counts.float_faults
        return self.context.campaign(self.names[-1], campaign, count=count)

    def rows(
        self,
        where: str,
        network: Network,
        results: Results,
        what: str,
        *,
        paper: Mapping[str, Value] | None = None,
    ) -> Iterator[Row]:
        """One row for each column of the criterion.

        Args:
            what: is followed by the column's name.
            paper: published values by column.
        """
        for rate in results.summary():
            row = row_of(where, network, f"{what}: {rate.criterion}", paper=(paper or {}).get(rate.criterion))
            yield row.found(rate.failure, n=rate.n_runs, seed=self.context.seed)

    def sources(self, what: str, *, fault_model: str = "") -> Iterator[Source]:
        """Sources of the figures; none where nothing was run."""
        if self.names:
            words = fault_model or self.model.words
            yield self.context.source(what, fault_model=words, runs=self.names, seed=self.context.seed)


def row_of(
    where: str, network: Network | Absent, what: str, unit: str = "%", *, paper: Value = None, why: str = ""
) -> Row:
    """A row about a network without a figure of ours yet; of an absent one the row says why it is."""
    listing = network.listing
    given = network.why if isinstance(network, Absent) else "; ".join(part for part in (why, listing.why) if part)
    return Row(where, listing.label, listing.data_label, what, unit, paper=paper, why=given)


def right_of(
    context: Context, where: str, network: Network, module: nn.Module, what: str, *, best: int = 1, paper: Value = None
) -> Row:
    """Row of a classifier's accuracy on held-out data, fault-free: labels among the ``best`` classes of ``module``."""
    y = network.held_out.y
    assert y is not None, network.listing.key
    right = int((outputs(module, network.held_out).topk(best).indices == y[:, None]).any(1).sum())
    return row_of(where, network, what, paper=paper).found(wilson(right, len(y)), n=len(y), seed=context.seed)


def papers_own(where: str, network: Network | Absent, what: str, *, paper: Value = None) -> Iterator[Row]:
    """The row of the paper's network that another one stands in for; none where nothing stands in."""
    if network.listing.stands_in:
        why = "neither data nor weights here; a stand-in is in the next row"
        yield Row(where, *network.listing.paper, what, "%", paper=paper, why=why)


def mean_of(rates: Sequence[Rate], *, independent: bool) -> Interval:
    """The mean of rates.

    Args:
        independent: of different runs. Otherwise, of the same runs under several thresholds: the mean of the limits,
            which is as wide as the mean can be.
    Source:
        Limits by recovery of variance (MOVER): G. Y. Zou and A. Donner, "Construction of confidence limits about effect
        measures: A general approach", Statistics in Medicine 27, 2008.
    """
    found, count = [rate.failure for rate in rates], len(rates)
    estimate = sum(one.estimate for one in found) / count
    downs, ups = [one.estimate - one.low for one in found], [one.high - one.estimate for one in found]
    down, up = (math.hypot(*ends) if independent else sum(ends) for ends in (downs, ups))
    low, high = max(0.0, estimate - down / count), min(1.0, estimate + up / count)
    return Interval(estimate, low, high, found[0].confidence, "MOVER" if independent else "mean of limits")


def relative_reduction(before: Interval, after: Interval) -> Interval:
    """By which share the second rate is lower than the first; below 0 where it is higher.

    The limits join the opposite limits of both rates: they are wider than they need be.
    """
    if before.estimate == 0 or before.low == 0:
        return Interval(math.nan, math.nan, math.nan, before.confidence, "opposite limits")
    low, high = 1 - after.high / before.low, 1 - after.low / before.high
    return Interval(1 - after.estimate / before.estimate, low, high, before.confidence, "opposite limits")
