"""What a campaign is going to cost, from a short timed pilot; nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from hoplon.campaign import Campaign, Pilot, looks
from hoplon.errors import HoplonError
from hoplon.evaluation import GOLDEN_BUDGET_BYTES
from hoplon.stats import look_confidence, wilson

_PROBABILITIES = (0.001, 0.01, 0.1, 0.5)


@final
@dataclass(frozen=True)
class Forecast:
    """What a campaign is going to cost.

    ``faults``: for a precision the most it may take, if half of the faults failed. ``faults_at``: for a precision, how
    many it takes at some failure probabilities (None: more than a campaign ever runs). ``runs``: faults x inputs each
    meets. ``seconds``: extrapolated from the pilot, workers taken for equally fast. ``memory_bytes``: the most that all
    processes hold together, from the peak of this one so far and the golden values that are still to come; None where
    the platform does not tell. ``pilot``: what it rests on.
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
        return {
            "faults": self.faults,
            "runs": self.runs,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
            "faults_at": {f"{probability:g}": count for probability, count in self.faults_at.items()},
            "workers": self.workers,
            "pilot": asdict(self.pilot),
        }


def forecast(
    campaign: Campaign,
    *,
    count: int | None = None,
    half_width: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    workers: int = 1,
    threads: int | None = None,
    seconds: float = 2.0,
) -> Forecast:
    """Time the beginning of ``campaign.run(...)`` and extrapolate; the arguments are those of ``run``.

    Args:
        seconds: of the pilot, after the fault-free runs.
    Raises:
        HoplonError, DataError, SiteError: what ``run`` refuses is refused here.
    """
    if workers < 1:
        raise HoplonError(f"expected at least 1 worker, got {workers}")
    pilot = campaign.pilot(count=count, half_width=half_width, seed=seed, threads=threads, seconds=seconds)
    unit = pilot.unit_faults
    at = {}
    if half_width is not None:
        at = {p: _faults_for(half_width, p, confidence=confidence, unit=unit) for p in _PROBABILITIES}
    most = list(looks(None, unit))[-1] * unit
    faults = pilot.total if pilot.total is not None else at[0.5] or most
    busy = min(workers, -(-faults // unit))
    work = faults * pilot.seconds / max(pilot.faults, 1)
    return Forecast(
        faults=faults,
        runs=faults * pilot.inputs,
        seconds=pilot.set_up_seconds + work / busy,
        memory_bytes=_memory(campaign, pilot, workers),
        faults_at=at,
        workers=workers,
        pilot=pilot,
    )


def _faults_for(half_width: float, probability: float, *, confidence: float, unit: int) -> int | None:
    """How many faults a campaign stops after, if this share of them fails."""
    for look, units in enumerate(looks(None, unit)):
        n = units * unit
        level = look_confidence(look, confidence=confidence)
        if wilson(round(probability * n), n, confidence=level).half_width <= half_width:
            return n
    return None


def _memory(campaign: Campaign, pilot: Pilot, workers: int) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    golden = 0
    if campaign.target == "values":  # those of all input batches are held, within a budget
        sites = campaign.program.value_sites
        per_batch = pilot.batch * sum(site.numel * site.dtype.itemsize for site in sites)
        golden = min(GOLDEN_BUDGET_BYTES, (pilot.input_batches - 1) * per_batch)
    return (peak + golden) * (1 if workers == 1 else workers + 1)
