"""A gate: whether a build keeps to a failure probability, and to an increase over a recorded build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from hoplon.assurance.baseline import Baseline, Coupling, recorded
from hoplon.campaign.campaign import Campaign
from hoplon.campaign.manifest import versions
from hoplon.campaign.runner import UnitRunner
from hoplon.errors import Count, Fraction, HoplonError, Share, checked
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.table import FaultTable
from hoplon.report.document import with_limits
from hoplon.report.text import percent, signed_points
from hoplon.stats.intervals import Floats, Interval
from hoplon.stats.sequential import Looks, Verdict, decided, faults_to_decide, increase_at_look, probability_at_look

Progress = Callable[[int, int], None]

_MOST = {"values": 100_000, "memory": 4_096}
_FIRST = {"values": 1_024, "memory": 128}
_ORDER: tuple[Verdict, ...] = ("fail", "undecided", "pass")


@final
@dataclass(frozen=True)
class Claim:
    """One requirement at the last look: what was asked, found and decided.

    ``name``: "failure" or "increase"; ``limit``: as a probability; ``found``: with limits that hold over all looks;
    ``more_faults``: about how many more would decide; None where none would.
    """

    name: str
    limit: float
    found: Interval
    verdict: Verdict
    more_faults: int | None

    @property
    def requirement(self) -> str:
        """What is asked, in words."""
        if self.name == "failure":
            return f"at most {percent(self.limit, decimals=3)} of the faults make a run fail or crash"
        return f"at most {100 * self.limit:.3f} points more than in the baseline"

    @property
    def figure(self) -> str:
        """What was found, with its limits."""
        found = self.found
        if self.name == "failure":
            return str(found)
        return f"{signed_points(found.estimate, found.low, found.high)} points"

    def to_dict(self) -> dict[str, Any]:
        """The claim as plain values."""
        found = {key: getattr(self, key) for key in ("name", "requirement", "figure", "limit", "verdict")}
        return found | {"more_faults": self.more_faults} | with_limits("found", self.found)


@final
@dataclass(frozen=True, eq=False)
class Judgement:
    """What a gate found: its claims, on how many faults, and how they were made.

    ``verdict``: the worst of the claims. ``faults``: that count; ``same_faults`` of them are the baseline's own;
    ``left_out``: those on inputs that one of the builds gets wrong without any fault. ``looks``: that were taken.
    """

    claims: tuple[Claim, ...]
    faults: int
    same_faults: int
    left_out: int
    looks: int
    most_looks: int
    confidence: float
    description: str
    fresh_sites: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Fail if one claim fails, pass if all pass."""
        return min((claim.verdict for claim in self.claims), key=_ORDER.index)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON and for a page of evidence."""
        hidden = ("claims", "fresh_sites")
        return {
            "format": 1,
            "verdict": self.verdict,
            "claims": [claim.to_dict() for claim in self.claims],
            **{key: value for key, value in vars(self).items() if key not in hidden},
            "fresh_sites": list(self.fresh_sites),
            "evidence": [self._row(claim) for claim in self.claims],
            "assumptions": list(self.assumptions),
        }

    def _row(self, claim: Claim) -> dict[str, Any]:
        paired = f", {self.same_faults:,} of them those of the baseline" if claim.name == "increase" else ""
        found = {"value": claim.found.estimate, "low": claim.found.low, "high": claim.found.high}
        return {
            "requirement": claim.requirement,
            "test": f"{self.faults:,} faults{paired}; {self.description}",
            "figure": claim.figure,
            **found,
            "unit": "probability",
            "verdict": claim.verdict,
        }

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the verdict rests on, in sentences."""
        return (
            f"The gate looked up to {self.most_looks} times; each wrong decision has a probability of at most "
            f"{100 * (1 - self.confidence):g} % over all looks and claims.",
            "Faults are drawn evenly over the elements of the selected sites; a run without an output (crash) counts "
            "as a failure; inputs that a build gets wrong without a fault are left out.",
        )

    def __str__(self) -> str:
        head = f"{self.verdict}: {self.faults:,} faults, {self.looks} of at most {self.most_looks} looks"
        lines = [f"  {one.verdict}: {one.requirement}; found {one.figure}{more_faults(one)}" for one in self.claims]
        return "\n".join([head, *lines])


def more_faults(claim: Claim) -> str:
    """Say how many more faults an undecided claim takes; nothing of a decided one."""
    if claim.verdict != "undecided":
        return ""
    return (
        "; no number of faults decides" if claim.more_faults is None else f"; about {claim.more_faults:,} more faults"
    )


@final
@checked
@dataclass(frozen=True, kw_only=True)
class Gate:
    """A requirement that a build meets, misses, or cannot be told to meet yet.

    Args:
        max_failure: the most that the failure probability of a fault may be; crashes count.
        max_increase: the most that it may be above the baseline's, as a probability.
        confidence: 1 minus the probability of a wrong decision of either kind, over all looks and claims.
        most: faults to run at most; 100,000 of values and 4,096 of memory by default, or those of the baseline.
    Raises:
        HoplonError: nothing asked.
    """

    max_failure: Fraction | None = None
    max_increase: Fraction | None = None
    confidence: Share = 0.95
    most: Count | None = None

    def __post_init__(self) -> None:
        if self.max_failure is None and self.max_increase is None:
            raise HoplonError("expected max_failure, max_increase or both, got neither")

    def judge(
        self,
        campaign: Campaign,
        *,
        baseline: Baseline | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Judgement:
        """Run faults until every claim is decided, or there are no more.

        Args:
            campaign: the build: program, data, sites, faults, criterion, and the protections that it has.
            baseline: needed by ``max_increase``. Its faults are run again, as far as their sites are there.
            seed: of faults that are not the baseline's.
            progress: told finished and most faults.
        Raises:
            HoplonError: a campaign that cannot be compared with the baseline, another sampling than element-uniform,
                or no baseline where one is needed.
        """
        if baseline is None and self.max_increase is not None:
            raise HoplonError("expected a baseline for max_increase, got none; hoplon gate --record makes one")
        if baseline is not None:
            baseline.require_same(campaign)
        runner = _prepared(campaign, seed)
        coupling = Coupling.of(runner, baseline)
        old = None if baseline is None else baseline.shares()
        most = self.most or _MOST[runner.target]
        most = most if old is None else min(most, len(old))
        claims = sum(limit is not None for limit in (self.max_failure, self.max_increase))
        looks = Looks(min(_FIRST[runner.target], most), most, (1 - self.confidence) / claims)
        found = _Found(self, looks, coupling, old)
        for number in looks.numbers:
            found.extend(number, lambda done: progress(done, most) if progress is not None else None)
            if all(claim.verdict != "undecided" for claim in found.claims()):
                break
        return found.judgement(campaign)


@checked
def record(
    campaign: Campaign, *, faults: Count | None = None, seed: int = 0, progress: Progress | None = None
) -> Baseline:
    """Run the faults of a baseline.

    Args:
        campaign: the build of reference.
        faults: how many; 100,000 of values and 4,096 of memory by default. A later gate cannot pair more.
        seed: decides them.
        progress: told finished and all faults.
    Raises:
        HoplonError: another sampling than element-uniform.
    """
    runner = _prepared(campaign, seed)
    count = faults or _MOST[runner.target]
    coupling = Coupling.of(runner, None)
    shares = []
    for first, table, _ in _tables(coupling, 0, count):
        shares.append(coupling.shares(table, _size(first, count, runner), _criterion(runner)))
        if progress is not None:
            progress(min(first + len(shares[-1]), count), count)
    return recorded(campaign, runner, np.concatenate(shares), versions())


_UNITS_TOGETHER = {"values": 8, "memory": 1}


def _prepared(campaign: Campaign, seed: int) -> UnitRunner:
    if campaign.sampling != ElementUniform():
        raise HoplonError(f"expected faults drawn element-uniform for a gate, got {campaign.sampling!r}; leave it out")
    return campaign.prepare(count=1, seed=seed)[0]


def _criterion(runner: UnitRunner) -> str:
    return runner.injector.reference.criterion.names[0]


def _size(first: int, count: int, runner: UnitRunner) -> int:
    return min(_UNITS_TOGETHER[runner.target] * runner.unit_size, count - first)


def _tables(coupling: Coupling, begun: int, count: int) -> Iterator[tuple[int, FaultTable, np.ndarray]]:
    """Faults from one number on up to another, some units in a table: its first number, the table, which are old."""
    unit_size = coupling.runner.unit_size
    together = _UNITS_TOGETHER[coupling.runner.target] * unit_size
    while begun < count:
        end = min(begun + together, count)
        tables, same = [], []
        for unit in range(begun // unit_size, -(-end // unit_size)):
            table, own = coupling.draw(unit, min(unit_size, end - unit * unit_size))
            tables.append(table)
            same.append(own)
        yield begun, FaultTable.concat(tables), np.concatenate(same)
        begun = end


@dataclass
class _Found:
    """What was found so far: by fault, in order, the share of runs that fail, and whether it is the baseline's."""

    gate: Gate
    looks: Looks
    coupling: Coupling
    old: Floats | None
    shares: Floats = field(default_factory=lambda: np.zeros(0))
    same: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    taken: int = 0

    def extend(self, number: int, report: Callable[[int], None]) -> None:
        """Run faults up to a number, and count a look."""
        runner = self.coupling.runner
        for first, table, same in _tables(self.coupling, len(self.shares), number):
            found = self.coupling.shares(table, _size(first, number, runner), _criterion(runner))
            self.shares, self.same = np.append(self.shares, found), np.append(self.same, same)
            report(len(self.shares))
        self.taken += 1

    def claims(self) -> tuple[Claim, ...]:
        """All claims, on the faults so far whose inputs this build gets right."""
        counts = ~np.isnan(self.shares)
        shares, level = self.shares[counts], self.looks.confidence(self.taken - 1)
        found = []
        if self.gate.max_failure is not None:
            interval = probability_at_look(shares, confidence=level)
            found.append(_claim("failure", self.gate.max_failure, interval, counts))
        if self.gate.max_increase is not None and self.old is not None:
            interval = increase_at_look(shares, self.old[: len(self.shares)][counts], confidence=level)
            found.append(_claim("increase", self.gate.max_increase, interval, counts))
        return tuple(found)

    def judgement(self, campaign: Campaign) -> Judgement:
        """The whole."""
        counts = ~np.isnan(self.shares)
        fresh = () if self.coupling.fresh is None else tuple(site.name for site in self.coupling.fresh.population.sites)
        protections = "+".join(protection.label for protection in campaign.protections) or "no protection"
        return Judgement(
            claims=self.claims(),
            faults=int(counts.sum()),
            same_faults=int((self.same & counts).sum()),
            left_out=int((~counts).sum()),
            looks=self.taken,
            most_looks=len(self.looks.numbers),
            confidence=self.gate.confidence,
            description=f"{campaign.program.name} with {protections}, {campaign.fault_model.name} in "
            f"{campaign.target}, {_criterion(self.coupling.runner)}",
            fresh_sites=fresh,
        )


def _claim(name: str, limit: float, found: Interval, counts: np.ndarray) -> Claim:
    verdict = decided(found.low, found.high, limit)
    return Claim(name, limit, found, verdict, faults_to_decide(found, limit, max(int(counts.sum()), 1)))
