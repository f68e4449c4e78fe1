"""Campaigns of the study: number format, sites, protections, and rows of their failure rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.rates import Rate
from hoplon.campaign.results import Results
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.single_word import BitFlip
from hoplon.formats.fixed import FixedPoint
from hoplon.program.sites import Values
from hoplon.protections.base import Protection
from hoplon.stats.intervals import Interval
from hoplon_studies.framework.findings import Source
from hoplon_studies.framework.rows import Row, Value
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Absent, Network

Protections = Sequence[Protection]


@final
@dataclass(frozen=True)
class FaultModel:
    """A fault model and how its faults are drawn: ``key`` of folders, ``words`` on the page, format (None: float32)."""

    key: str
    words: str
    format: FixedPoint | None
    by_operator: bool


FIXED32 = FaultModel(
    "fixed32",
    "one bit of 21.10 fixed point, operator first, last fully connected layer left out",
    FixedPoint(21, 10),
    by_operator=True,
)
FIXED16 = FaultModel(
    "fixed16",
    "one bit of 14.2 fixed point, operator first, last fully connected layer left out",
    FixedPoint(14, 2),
    by_operator=True,
)
FLOAT32 = FaultModel("float32", "one bit of float32, every element equally likely", None, by_operator=False)


@final
class Campaigns:
    """Campaigns of one part under one fault model; arms of the same name meet the same faults.

    Attributes:
        model: how faults are drawn.
        names: of the run directories inside the part's folder, in the order in which they were run.
    """

    def __init__(self, context: Context, model: FaultModel = FIXED32) -> None:
        self.names: list[str] = []
        self.model, self._context = model, context

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
        counts, model = self._context.profile.ranger, self.model
        campaign = Campaign(
            network.program,
            network.met,
            sites=sites or Values(),
            fault_model=BitFlip(format=model.format),
            sampling=sampling or (network.sampling if model.by_operator else ElementUniform()),
            criterion=network.criterion,
            protections=tuple(protections),
        )
        self.names.append(f"{name or network.listing.key}/{model.key}/{arm}")
        count = counts.faults if model.by_operator else counts.float_faults
        return self._context.campaign(self.names[-1], campaign, count=count)

    def rows(
        self,
        where: str,
        network: Network,
        results: Results,
        what: str,
        *,
        paper: Mapping[str, Value] | None = None,
    ) -> list[Row]:
        """One row for each column of the criterion.

        Args:
            what: is followed by the column's name.
            paper: published values by column.
        """
        return [
            row_of(where, network, f"{what}: {rate.criterion}", paper=(paper or {}).get(rate.criterion)).found(
                rate.failure, n=rate.n_runs, seed=self._context.seed
            )
            for rate in results.summary()
        ]

    def sources(self, what: str, *, fault_model: str = "") -> tuple[Source, ...]:
        """Sources of the figures; none where nothing was run."""
        words = fault_model or self.model.words
        source = self._context.source(what, fault_model=words, runs=self.names, seed=self._context.seed)
        return (source,) if self.names else ()


def row_of(
    where: str, network: Network | Absent, what: str, unit: str = "%", *, paper: Value = None, why: str = ""
) -> Row:
    """A row about a network without a figure of ours yet."""
    listing = network.listing
    given = "; ".join(part for part in (why, listing.why) if part)
    return Row(where, listing.label, listing.data_label, what, unit, paper=paper, why=given)


def papers_own(where: str, listing_of: Network | Absent, what: str, *, paper: Value = None) -> list[Row]:
    """The row of the paper's network that another one stands in for; none where nothing stands in."""
    listing = listing_of.listing
    if not listing.stands_in:
        return []
    row = Row(where, listing.paper[0], listing.paper[1], what, "%", paper=paper)
    return [row.missing("neither data nor weights here; a stand-in is in the next row")]


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
    estimate, low, high = (
        1 - one / other
        for one, other in (
            (after.estimate, before.estimate),
            (after.high, before.low),
            (after.low, before.high),
        )
    )
    return Interval(estimate, low, high, before.confidence, "opposite limits")
