"""What a campaign is going to cost, from a short timed pilot; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import peak_memory_bytes, workers_that_fit
from hoplon.campaign.pilot import Pilot
from hoplon.campaign.runner import MOST_FAULTS
from hoplon.campaign.stopping import DesignName
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.errors import Count, Seed, Share, checked
from hoplon.faults.model import Site
from hoplon.injection.memory_budget import Budget
from hoplon.stats.intervals import wilson

_PROBABILITIES = (0.001, 0.01, 0.1, 0.5)


@final
@dataclass(frozen=True)
class Forecast:
    """Expected cost of a campaign.

    ``faults``: for a precision the most it may take, if half of the faults failed. ``faults_at``: for a precision, how
    many it takes at some failure probabilities (None: more than a campaign ever runs). ``runs``: faults x inputs each
    meets; where memory faults meet random batches of the inputs, as many as the timed faults make cheapest
    (``pilot.split``), and the batches of its own pilot. ``seconds``: extrapolated from the pilot, workers taken for
    equally fast. ``memory_bytes``: the most that all processes hold together, from the peak of this one so far and the
    golden values that are still to come; None where the platform does not tell. ``pilot``: what it rests on.
    """

    faults: int
    runs: int
    seconds: float
    memory_bytes: int | None
    faults_at: Mapping[float, int | None]
    workers: int
    pilot: Pilot

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        pilot, split = values.pop("pilot"), self.pilot.split
        values["faults_at"] = {f"{probability:g}": count for probability, count in self.faults_at.items()}
        return {**values, "split": None if split is None else str(split), "pilot": pilot}


@final
@dataclass(frozen=True)
class PlannedCost:
    """Size of a campaign before anything is struck.

    ``sites``: those selected. ``inputs``: those that count. ``faults``, ``runs``: with a half-width the most it may
    take, if half of the faults failed.
    """

    sites: Sequence[Site]
    inputs: int
    faults: int
    runs: int


def planned_cost(
    campaign: Campaign,
    *,
    count: int | None = None,
    half_width: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> PlannedCost:
    """Check all that ``campaign.run(...)`` checks, with one pass without faults, and count faults and runs.

    Raises:
        HoplonError, DataError, SiteError: what ``run`` refuses is refused here.
    """
    runner, rule = campaign.prepare(count=count, half_width=half_width, confidence=confidence, seed=seed)
    faults = rule.count
    if faults is None:
        assert half_width is not None, "without a count there is a half-width"
        faults = _faults_for(half_width, 0.5, confidence=confidence, unit=runner.unit_size) or MOST_FAULTS
    inputs = len(runner.injector.reference.eligible)
    return PlannedCost(runner.sites, inputs, faults, faults if campaign.target == "values" else faults * inputs)


@checked
def forecast(
    campaign: Campaign,
    *,
    count: Count | None = None,
    half_width: Share | None = None,
    confidence: Share = 0.95,
    design: DesignName | None = None,
    seed: Seed = 0,
    workers: Count = 1,
    threads: Count | None = None,
    seconds: float = 2.0,
) -> Forecast:
    """Time the beginning of ``campaign.run(...)`` and extrapolate; the arguments are those of ``run``.

    Args:
        seconds: of the pilot, after the fault-free runs.
    Raises:
        HoplonError, DataError, SiteError: what ``run`` refuses is refused here.
    """
    workers = workers_that_fit(workers, threads=threads or torch.get_num_threads())
    pilot = campaign.pilot(
        count=count, half_width=half_width, design=design, seed=seed, threads=threads, seconds=seconds
    )
    unit = pilot.unit_faults
    at = {}
    if half_width is not None:
        at = {p: _faults_for(half_width, p, confidence=confidence, unit=unit) for p in _PROBABILITIES}
    faults = pilot.total if pilot.total is not None else at[0.5] or MOST_FAULTS
    busy = min(workers, -(-faults // unit))
    work = faults * pilot.seconds_each
    return Forecast(
        faults=faults,
        runs=_runs(pilot, faults, half_width),
        seconds=pilot.set_up_seconds + work / busy,
        memory_bytes=_memory(campaign, pilot, workers),
        faults_at=at,
        workers=workers,
        pilot=pilot,
    )


def _runs(pilot: Pilot, faults: int, half_width: float | None) -> int:
    """Faults x inputs; the faults of a campaign's own pilot meet other batches than the later ones."""
    if pilot.split is None or half_width is None:
        return faults * pilot.inputs
    first = min(faults, SequentialSchedule(half_width).pilot_runs)
    met = pilot.inputs * pilot.split.pilot / pilot.split.of
    return math.ceil(first * met + (faults - first) * pilot.inputs_each)


def _faults_for(half_width: float, probability: float, *, confidence: float, unit: int) -> int | None:
    """Uniform faults that it takes, in whole units, if this share of them fails."""
    level = 1 - sum(SequentialSchedule(half_width, confidence).tails(0))

    def reached(units: int) -> bool:
        n = units * unit
        return wilson(round(probability * n), n, confidence=level).half_width <= half_width

    low, high = 0, MOST_FAULTS // unit
    if not reached(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    # the pilot may make it seem more than it is
    return min(math.ceil(1.25 * high), MOST_FAULTS // unit) * unit


def _memory(campaign: Campaign, pilot: Pilot, workers: int) -> int | None:
    peak = peak_memory_bytes()
    if peak is None:
        return None
    golden = 0
    if campaign.target == "values":  # those of all input batches are held, within a budget
        sites = campaign.program.value_sites
        per_batch = pilot.batch * sum(site.numel * site.dtype.itemsize for site in sites)
        golden = min(Budget(campaign.memory_budget).golden, (pilot.input_batches - 1) * per_batch)
    return (peak + golden) * (1 if workers == 1 else workers + 1)
