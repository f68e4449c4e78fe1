"""Whole campaigns on a population whose truth is known: numbers of runs by hoplon's own plans, outcomes by chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from pools import Pool

from hoplon.campaign.design import Design
from hoplon.campaign.stopping import Uniform
from hoplon.campaign.stratified.candidates import BLOCK
from hoplon.campaign.stratified.first_phase import FirstPhase
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.stats.intervals import weighted, wilson
from hoplon.stats.strata_estimates import limits

CHUNK = 25  # repeats of one generator, so that no number of processes changes a figure
UNIT = 1024


@dataclass(frozen=True)
class Found:
    """One campaign: its estimate as reported, what all its runs together would give, its limits, runs, looks,
    candidates; and limits of domains.
    """

    estimate: float
    pooled: float
    low: float
    high: float
    runs: float
    looks: float
    candidates: float
    domains: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Population:
    """Strata with their truth; ``cells``: by domain, the shares of a stratum's faults that fail, pass in it."""

    course: SequentialSchedule
    shares: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    band: np.ndarray
    cells: Mapping[str, np.ndarray]

    @property
    def target(self) -> float:
        """The probability to be estimated."""
        return float(self.shares @ self.truth)

    def domain(self, name: str) -> float:
        """The probability within a domain."""
        failed, passed = (self.shares @ column for column in self.cells[name].T)
        return float(failed / (failed + passed))


def population_of(pool: Pool, half_width: float, *, planted: float, domains: tuple[tuple[str, Any], ...]) -> Population:
    """A pool; ``planted``: failure probability, over all faults, that is added to the heaviest stratum.

    Domains are given as a column of the pool and its value; failures are planted in all domains alike.
    """
    heaviest = int(np.where(pool.known, 0.0, pool.shares).argmax())
    truth = pool.truth.copy()
    truth[heaviest] = min(1.0, truth[heaviest] + planted / pool.shares[heaviest])
    cells = {}
    sizes = pool.frame.group_by("stratum").agg(pl.col("faults").sum()).sort("stratum")["faults"].to_numpy()
    for column, value in domains:
        mine = pool.frame.filter(pl.col(column) == value).group_by("stratum").agg(pl.col("faults", "failed").sum())
        counts = np.zeros((len(sizes), 2))
        counts[_slots(pool, mine)] = mine.select("failed", pl.col("faults") - pl.col("failed")).to_numpy()
        moved = counts[heaviest, 1] * planted / pool.shares[heaviest]
        counts[heaviest] += (moved, -moved)
        cells[f"{column} {value}"] = counts / sizes[:, None]
    return Population(
        SequentialSchedule(half_width, again=pool.again), pool.shares, truth, pool.known, pool.band, cells
    )


def _slots(pool: Pool, mine: pl.DataFrame) -> np.ndarray:
    strata = pool.frame["stratum"].unique().sort().to_numpy()
    return np.searchsorted(strata, mine["stratum"].to_numpy())


def two_phases(over: Population, generator: np.random.Generator) -> Found:
    """One campaign with half-width: candidates, pilot, main stage, looks."""
    course, truth = over.course, over.truth
    first = _candidates(over, None, course.candidates(range(int(over.band.max()) + 1)), generator)
    runs = course.pilot(first)
    failures = generator.binomial(runs, truth[:, None])

    def grow(wanted: np.ndarray, drawn: np.ndarray) -> None:
        nonlocal first, runs, failures
        first = _candidates(over, first, drawn, generator)
        halves = np.stack([first.counts - first.counts // 2, first.counts // 2], 1)
        wanted = np.minimum(course.with_new_strata(first, wanted), halves)
        wanted = np.where(over.known[:, None], 0, np.maximum(wanted, runs))
        failures, runs = failures + generator.binomial(wanted - runs, truth[:, None]), wanted

    grow(*course.main_stage(first, failures, runs))
    planned = failures, runs
    for look in itertools.count():
        pooled, *_ = course.look(first, failures, runs, look=look)
        estimate, low, high = course.look(first, failures, runs, look=look, planned=planned)
        if (high - low) / 2 <= course.half_width:
            level = 1 - sum(course.tails(look))
            domains = tuple(_domain(over, name, first.shares, *planned, level, generator) for name in over.cells)
            return Found(estimate, pooled, low, high, float(runs.sum()), look + 1.0, float(first.drawn.sum()), domains)
        grow(*course.next_allocation(first, failures, runs, look=look + 1))
    raise AssertionError("there is always another look")


def _candidates(
    over: Population, before: FirstPhase | None, wanted: np.ndarray, generator: np.random.Generator
) -> FirstPhase:
    """Candidates drawn on to so many of each band, whole blocks as in a campaign."""
    weights = np.bincount(over.band, over.shares)
    drawn, counts = np.zeros(len(weights), dtype=np.int64), np.zeros(len(over.shares), dtype=np.int64)
    if before is not None:
        drawn, counts = before.drawn, before.counts
    wanted = np.maximum(-(-wanted // BLOCK) * BLOCK, drawn)
    for band, count in enumerate((wanted - drawn).tolist()):
        counts = counts + generator.multinomial(count, np.where(over.band == band, over.shares, 0) / weights[band])
    return FirstPhase(counts, np.where(over.known, over.truth, np.nan), over.band, weights, wanted)


def _domain(
    over: Population,
    name: str,
    shares: np.ndarray,
    failures: np.ndarray,
    runs: np.ndarray,
    level: float,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """Limits of one domain, as `Results.by` finds them: its runs, given how many of each stratum there were."""
    cell = over.cells[name]
    inside = np.clip(
        [cell[:, 0] / np.maximum(over.truth, 1e-300), cell[:, 1] / np.maximum(1 - over.truth, 1e-300)], 0, 1
    )
    proven = over.known & (shares > 0)
    spent = runs.sum() * shares[proven].sum() / max(1 - shares[proven].sum(), 1e-9)
    passed = np.where(proven[:, None], np.round(spent * shares[:, None] / 2).astype(int) + 1, runs - failures)
    total = passed + failures
    weight = np.divide(shares[:, None] / 2, total, out=np.zeros(total.shape), where=total > 0)
    met = [generator.binomial(part, inside[side][:, None]) for side, part in enumerate((failures, passed))]
    weights = np.concatenate([np.repeat(weight.ravel(), part.ravel()) for part in met])
    outcomes = np.repeat([1.0, 0.0], [part.sum() for part in met])
    heaviest = float(weight[~proven].max())
    found = weighted(outcomes, weights, confidence=level, heaviest=heaviest)
    return found.low, found.high


def uniform(over: Population, generator: np.random.Generator) -> Found:
    """One campaign of uniform faults: hoplon's own course of it, with units whose failures are drawn."""
    failed: list[int] = []
    looked: list[Any] = []

    def run(planned: Mapping[int, int]) -> None:
        failed.extend(generator.binomial(UNIT, over.target, size=len(planned) - len(failed)).tolist())

    def results(units: int, design: Design) -> Any:
        rate = wilson(sum(failed[:units]), units * UNIT, confidence=design.level)
        looked.append(rate)
        return SimpleNamespace(summary=lambda: [SimpleNamespace(failure=rate, n_runs=units * UNIT)])

    keep: Any = SimpleNamespace(run=run, results=results)
    runner: Any = SimpleNamespace(unit_size=UNIT)
    Uniform(over.course.confidence, None, over.course.half_width).run(runner, keep)
    rate = looked[-1]
    return Found(rate.estimate, rate.estimate, rate.low, rate.high, float(len(failed) * UNIT), float(len(looked)), 0.0)


def repeated(over: Population, design: str, repeats: int, *, seed: int, workers: int, domains_in: int) -> list[Found]:
    """So many campaigns; domains are looked at in the first ``domains_in``."""
    jobs = [(over, design, min(CHUNK, repeats - at), seed, at, at < domains_in) for at in range(0, repeats, CHUNK)]
    if workers == 1:
        return [found for job in jobs for found in _chunk(job)]
    with ProcessPoolExecutor(workers) as pool:
        return [found for part in pool.map(_chunk, jobs) for found in part]


def _chunk(job: tuple[Population, str, int, int, int, bool]) -> list[Found]:
    over, design, count, seed, at, domains = job
    generator = np.random.default_rng([seed, at])
    one = uniform if design == "uniform" else two_phases
    chosen = over if domains else replace(over, cells={})
    return [one(chosen, generator) for _ in range(count)]


def uniform_runs(probability: float, half_width: float) -> int:
    """After how many runs plain sampling is expected to have the half-width, by Clopper and Pearson's limits."""
    low, high = 1, 10**9
    while high - low > 1:
        middle = (low + high) // 2
        share, failed, runs = (np.array([value]) for value in (1.0, probability * middle, float(middle)))
        _, below, above = limits(share, failed, runs, candidates=None, low_tail=0.025, high_tail=0.025)
        low, high = (low, middle) if (above - below) / 2 <= half_width else (middle, high)
    return high
