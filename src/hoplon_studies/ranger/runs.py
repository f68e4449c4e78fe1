"""Campaigns of the study: number format, sites, protections, and rows of their failure rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.rates import Rate
from hoplon.campaign.results import Results
from hoplon.comparison.pairing import paired
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.single_word import BitFlip
from hoplon.formats.fixed import FixedPoint
from hoplon.program.sites import Memory, Values
from hoplon.protections.base import Protection
from hoplon.stats.intervals import Interval, wilson
from hoplon_studies.framework.findings import Source
from hoplon_studies.framework.rows import DIFFERENCE, Row, Value
from hoplon_studies.framework.study import Context
from hoplon_studies.networks.architectures import ARCHITECTURES
from hoplon_studies.ranger.networks import Absent, Network, outputs

Protections = Sequence[Protection]
MEAN, FARTHEST = "mean over the thresholds", "deviation>120deg"
_SHOWN = ("top-1", "top-5", MEAN, FARTHEST)


@final
@dataclass(frozen=True)
class FaultModel:
    """A fault model and how its faults are drawn.

    ``key``: of folders; ``format``: None is float32; ``weights``: bit 30 of a weight in place of an operator's output.
    """

    key: str
    format: FixedPoint | None = None
    weights: bool = False

    @property
    def setting(self) -> str:
        """In short, as the tables of the page name it."""
        if self.weights:
            return "bit 30 of a weight, float32"
        if self.format is None:
            return "float32"
        return f"{self.format.integer}.{self.format.fraction} fixed point"

    @property
    def words(self) -> str:
        """In full: format, and how faults are drawn."""
        if self.weights:
            return "bit 30 of a float32 weight of a convolution, every weight equally likely"
        if self.format is None:
            return "one bit of float32, every element equally likely"
        return f"one bit of {self.setting}, operator first, last fully connected layer left out"


FIXED32, FIXED16 = FaultModel("fixed32", FixedPoint(21, 10)), FaultModel("fixed16", FixedPoint(14, 2))
FLOAT32, WEIGHTS = FaultModel("float32"), FaultModel("weights", weights=True)


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
        flips: int = 1,
    ) -> Results:
        """Run one campaign, or read it where it has been run.

        Args:
            arm: of the run directory.
            sampling: in the place of the fault model's.
            sites: all by default, as far as the sampling takes them.
            name: of the network's run directory; its key by default.
            flips: bits that a fault inverts.
        """
        counts, model = self.context.profile.ranger, self.model
        campaign = Campaign(
            network.program,
            network.met,
            sites=Memory("*.weight", kind="conv") if model.weights else sites or Values(),
            fault_model=BitFlip(bits=(30,)) if model.weights else BitFlip(flips, format=model.format),
            sampling=sampling or (network.sampling if model.format else ElementUniform()),
            criterion=network.criterion,
            protections=tuple(protections),
        )
        self.names.append(f"{name or network.listing.key}/{model.key}/{arm}")
        floats = counts.weight_faults if model.weights else counts.float_faults
        return self.context.campaign(self.names[-1], campaign, count=counts.faults if model.format else floats)

    def rows(
        self,
        where: str,
        network: Network,
        results: Results,
        arm: str,
        *,
        paper: Mapping[str, Value] | None = None,
        setting: str = "",
        thresholds: bool = False,
    ) -> Iterator[Row]:
        """A row for each column of the criterion; of a steering network, the mean over its thresholds as well.

        Args:
            paper: published values by column; the mean is "mean".
            setting: the fault model's by default.
            thresholds: show what the paper prints, and not the best class or the mean over thresholds alone, of its
                networks alone.
        """
        rates, seed, aside = results.summary(), self.context.seed, _aside(network, self.model)
        known: dict[str, Any] = {"arm": arm, "setting": setting or self.model.setting, "failure": True}
        for rate in rates:
            detail = rate.criterion not in _SHOWN if thresholds else rate.criterion != "top-1" or aside
            published = (paper or {}).get(rate.criterion)
            row = row_of(where, network, rate.criterion, paper=published, detail=detail, **known)
            yield row.found(rate.failure, n=rate.n_runs, seed=seed)
        if not network.is_classifier:
            detail = not thresholds and aside
            row = row_of(where, network, MEAN, paper=(paper or {}).get("mean"), detail=detail, **known)
            yield row.found(mean_of([rate.failure for rate in rates]), n=rates[0].n_runs, seed=seed)

    def difference(
        self, where: str, network: Network, before: Results, after: Results, *, thresholds: bool = False
    ) -> Iterator[Row]:
        """Rows of the differences between two arms on the same faults, in points, for each column of the criterion."""
        known: dict[str, Any] = {"arm": DIFFERENCE, "setting": self.model.setting, "failure": True}
        found: dict[str, Interval] = {}
        for column in before.criteria:
            pair = paired(before.lazy_runs, after.lazy_runs, column, target="values", confidence=0.95)
            found[column] = pair.difference
        if not network.is_classifier:
            found[MEAN] = mean_of(list(found.values()), least=-1.0)
        for column, interval in found.items():
            aside = column not in ("top-1", MEAN) or _aside(network, self.model)
            detail = column not in _SHOWN if thresholds else aside
            row = row_of(where, network, column, "%", detail=detail, **known)
            yield row.found(interval, n=before.summary()[0].n_runs, seed=self.context.seed)

    def sources(self, what: str, *, fault_model: str = "") -> Iterator[Source]:
        """Sources of the figures; none where nothing was run."""
        if self.names:
            words = fault_model or self.model.words
            yield self.context.source(what, fault_model=words, runs=self.names, seed=self.context.seed)


def _aside(network: Network, model: FaultModel) -> bool:
    """True if secondary tables leave out a network, or a chart shows a format, that the paper does not have."""
    return network.listing.key.removesuffix("-quick") not in ARCHITECTURES or model.format is None


def row_of(where: str, network: Network | Absent, what: str, unit: str = "%", *, why: str = "", **known: Any) -> Row:
    """A row about a network without a figure of ours yet; of an absent one the row says why it is."""
    listing = network.listing
    given = network.why if isinstance(network, Absent) else why
    return Row(where, listing.label, listing.data_label, what, unit, why=given, stands_for=listing.stands_for, **known)


def right_of(
    context: Context, where: str, network: Network, module: nn.Module, what: str, *, best: int = 1, **known: Any
) -> Row:
    """Row of a classifier's accuracy on held-out data, fault-free: labels among the ``best`` classes of ``module``."""
    y = network.held_out.y
    assert isinstance(y, torch.Tensor), network.listing.key
    right = int((outputs(module, network.held_out).topk(best).indices == y[:, None]).any(1).sum())
    return row_of(where, network, what, **known).found(wilson(right, len(y)), n=len(y), seed=context.seed)


def mean_of(rates: Sequence[Interval], *, least: float = 0.0) -> Interval:
    """The mean of rates of the same runs under several thresholds: its limits are the means of their limits.

    That is as wide as the mean can be.
    """
    estimate, low, high = (
        sum(ends) / len(rates) for ends in zip(*((one.estimate, one.low, one.high) for one in rates), strict=True)
    )
    return Interval(estimate, max(least, low), min(1.0, high), rates[0].confidence, "mean of limits")


def mean_of_networks(groups: Sequence[Sequence[Rate]]) -> tuple[Interval, int]:
    """The mean of all rates of several networks, and the number of runs.

    Rates of one network are of the same runs, so their limits add up; those of different networks are independent.

    Source:
        Limits by recovery of variance (MOVER): G. Y. Zou and A. Donner, "Construction of confidence limits about effect
        measures: A general approach", Statistics in Medicine 27, 2008.
    """
    count = sum(map(len, groups))
    found = [[rate.failure for rate in group] for group in groups]
    estimate = sum(one.estimate for group in found for one in group) / count
    down = math.hypot(*(sum(one.estimate - one.low for one in group) for group in found)) / count
    up = math.hypot(*(sum(one.high - one.estimate for one in group) for group in found)) / count
    limits = max(0.0, estimate - down), min(1.0, estimate + up)
    return Interval(estimate, *limits, found[0][0].confidence, "MOVER"), sum(group[0].n_runs for group in groups)


def relative_reduction(before: Interval, after: Interval) -> Interval:
    """By which share the second rate is lower than the first; below 0 where it is higher.

    The limits join the opposite limits of both rates: they are wider than they need be.
    """
    if before.estimate == 0 or before.low == 0:
        return Interval(math.nan, math.nan, math.nan, before.confidence, "opposite limits")
    low, high = 1 - after.high / before.low, 1 - after.low / before.high
    return Interval(1 - after.estimate / before.estimate, low, high, before.confidence, "opposite limits")
