"""Runs of memory faults to a precision: few inputs for each fault, against uniform faults that each meet all inputs.

``runs_hoplon`` and ``seconds_hoplon`` are means over whole campaigns, one per seed. A pool of uniform faults, each run
on all inputs, says how much shares of inputs vary between faults; from that the uniform figures are computed: the
faults after which the interval clustered by fault has the half-width, times inputs. ``seconds_uniform`` is
extrapolated: these runs at the pool's rate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import polars as pl
from pools import names

import hoplon as hp
from hoplon import zoo
from hoplon.campaign.rates import FAILURES
from hoplon.stats.intervals import wilson


@dataclass(frozen=True)
class MemoryWork:
    """A precision, held-out inputs and their batch, uniform faults of the pool, campaigns."""

    half_width: float
    inputs: int
    batch: int
    pool_faults: int
    seeds: int


MEMORY = MemoryWork(half_width=0.005, inputs=320, batch=16, pool_faults=2048, seeds=5)
QUICK_MEMORY = MemoryWork(half_width=0.03, inputs=96, batch=16, pool_faults=64, seeds=2)


@dataclass(frozen=True)
class MemoryCase:
    """One precision; lists have an entry for each seed.

    ``runs``: fault x input. ``batches``: how many of ``of`` batches of inputs the faults met. ``runs_uniform``: of
    uniform faults on all inputs; ``runs_uniform_few``: of uniform faults that meet one random batch each, so that
    ``runs_uniform / runs_uniform_few`` is what the inputs alone save, and the rest of ``ratio`` is that of the strata.
    ``truth``: of the pool, with its interval.
    """

    model: str
    half_width: float
    inputs: int
    batch: int
    of: int
    seeds: list[int]
    batches: list[list[int]]
    runs: list[int]
    faults: list[int]
    estimates: list[float]
    half_widths: list[float]
    runs_hoplon: float
    runs_uniform: int
    runs_uniform_few: int
    ratio: float
    seconds_hoplon: float
    seconds_uniform: float
    pool_faults: int
    truth: float
    truth_interval: tuple[float, float]


@dataclass(frozen=True)
class MemoryPool:
    """Shares of failing inputs of uniform faults: variance between faults, and between single batches of faults."""

    faults: int
    mean: float
    interval: tuple[float, float]
    between: float
    of_one_batch: float
    seconds: float

    def uniform(self, half_width: float, *, variance: float, inputs: float) -> int:
        """Faults after which the interval clustered by fault has the half-width (`clustered`)."""
        whole = self.mean * (1 - self.mean)
        low, high = 0, 10**9
        while high - low > 1:
            faults = (low + high) // 2
            trials = min(faults * (faults * whole + 1) / (faults * variance + 1), faults * inputs)
            reached = wilson(round(self.mean * trials), max(round(trials), 1)).half_width <= half_width
            low, high = (low, faults) if reached else (faults, high)
        return high


def memory_campaign(*, inputs: int, batch: int) -> tuple[str, hp.Campaign]:
    """Faults in the convolution weights of a model, on some of its held-out inputs."""
    name, data_name = names()
    model, data = zoo.model(name), zoo.data(data_name)
    met = data.held_out.take(range(min(inputs, len(data.held_out))))
    program = hp.capture(model.module, model.example, name=name)
    return name, hp.Campaign(program, met, sites=hp.Memory(kind="conv", buffers=False), batch=batch)


def pool_of(campaign: hp.Campaign, faults: int, *, seed: int, threads: int) -> MemoryPool:
    """Run uniform faults on all inputs."""
    begun = time.perf_counter()
    results = campaign.run(count=faults, seed=seed, threads=threads)
    seconds = time.perf_counter() - begun
    assert campaign.batch is not None
    numbers = results.runs["input"].unique().sort()
    batch = pl.DataFrame({"input": numbers, "batch": np.arange(len(numbers)) // campaign.batch})
    failed = pl.col(results.criteria[0]).cast(pl.String).is_in(FAILURES)
    runs = results.runs.select("fault", "input", failed=failed).join(batch, on="input")
    shares = runs.group_by("fault").agg(pl.col("failed").mean())["failed"].to_numpy()
    parts = runs.group_by("fault", "batch").agg(pl.col("failed").mean(), inputs=pl.len())
    rate = results.summary()[0].failure
    few = np.average((parts["failed"].to_numpy() - rate.estimate) ** 2, weights=parts["inputs"].to_numpy())
    return MemoryPool(faults, rate.estimate, (rate.low, rate.high), float(shares.var()), float(few), seconds)


def memory_case(work: MemoryWork, *, seed: int, threads: int) -> MemoryCase:
    """Whole campaigns with the two-level split, seeds counted on from ``seed``, and the uniform figures."""
    model, campaign = memory_campaign(inputs=work.inputs, batch=work.batch)
    pool = pool_of(campaign, work.pool_faults, seed=seed, threads=threads)
    chosen = list(range(seed, seed + work.seeds))
    begun = time.perf_counter()
    found = [campaign.run(half_width=work.half_width, seed=one, threads=threads) for one in chosen]
    seconds = (time.perf_counter() - begun) / work.seeds
    rates = [results.summary()[0] for results in found]
    splits = [results.split for results in found if results.split is not None]
    met = int(found[0].manifest["eligible_inputs"])
    uniform = met * pool.uniform(work.half_width, variance=pool.between, inputs=met)
    each = met / splits[0].of
    few = pool.uniform(work.half_width, variance=pool.of_one_batch, inputs=each) * each
    runs = float(np.mean([rate.n_runs for rate in rates]))
    return MemoryCase(
        model=model,
        half_width=work.half_width,
        inputs=met,
        batch=work.batch,
        of=splits[0].of,
        seeds=chosen,
        batches=[list(split.batches) for split in splits],
        runs=[rate.n_runs for rate in rates],
        faults=[rate.n_faults for rate in rates],
        estimates=[rate.failure.estimate for rate in rates],
        half_widths=[rate.failure.half_width for rate in rates],
        runs_hoplon=runs,
        runs_uniform=uniform,
        runs_uniform_few=round(few),
        ratio=uniform / runs,
        seconds_hoplon=seconds,
        seconds_uniform=pool.seconds * uniform / (pool.faults * met),
        pool_faults=pool.faults,
        truth=pool.mean,
        truth_interval=pool.interval,
    )
