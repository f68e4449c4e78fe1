"""Failure rates against simulated histories of a device, by code that shares nothing with them.

A history is told upset by upset: when it comes, which word it hits, which inferences it meets, what each of them gives
by the kept table of outcomes, when a guard checks and when memory is written again. LeNet on digits, at a raw rate
so high that a history has a thousand upsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

import hoplon as hp
from hoplon.assurance.failures_in_time import Use, failure_rate
from hoplon.assurance.raw_rate import RawRate
from hoplon.assurance.upsets import Upsets, upsets_of
from hoplon.campaign.results import Results
from hoplon.comparison.exposure import at_risk
from hoplon.faults.sampling import ElementUniform
from hoplon.zoo.resolve import resolve_data, resolve_model

UPSETS = 1000
FAULTS, INPUTS = 300, 40
FIT_PER_MBIT = 1e12  # accelerated: 10^-3 upsets per bit and hour
SELECTIONS = {"values": hp.Values(kind="conv"), "memory": hp.Memory("*.weight")}


@dataclass(frozen=True)
class Kept:
    """A table of outcomes, taken for all the faults there are: by fault its failing inputs, and what guards do."""

    results: Results
    risk: dict[str, Any]
    failing: np.ndarray  # bool, (faults, inputs)
    live: np.ndarray
    repaired: np.ndarray


def keep(target: str, **options: Any) -> Kept:
    model = resolve_model("lenet-digits")
    program = hp.capture(model.module, model.example)
    data = resolve_data("digits").held_out.sample(INPUTS, seed=1)
    sites = SELECTIONS[target]
    campaign = hp.Campaign(program, data, sites=sites, **options)
    results = campaign.run(count=FAULTS if target == "memory" else 5 * FAULTS, seed=5)
    risk = at_risk(program, sites.select(program), hp.BitFlip(), ElementUniform())
    failing: list[list[bool]] = [[] for _ in range(results.faults.frame.height)]
    repaired = [False] * len(failing)
    criterion = results.criteria[0]
    for row in results.runs.iter_rows(named=True):
        failing[row["fault"]].append(row[criterion] in ("sdc", "nonfinite", "crash"))
        repaired[row["fault"]] = repaired[row["fault"]] or row["corrected"]
    live = [risk["sites"][site]["live_share"] for site in results.faults.frame["site"]]
    return Kept(results, risk, np.array(failing), np.array(live), np.array(repaired))


@pytest.fixture(scope="module")
def kept_values() -> Kept:
    return keep("values")


@pytest.fixture(scope="module")
def kept_memory() -> Kept:
    return keep("memory")


@pytest.fixture(scope="module")
def kept_guarded() -> Kept:
    """Faults that come after the check; KnownBits repairs some of them at the next one."""
    return keep("memory", protections=(hp.KnownBits(),), arrival="after")


def whole(kept: Kept) -> Upsets:
    """The kept table as all the faults there are."""
    found = upsets_of(kept.results, kept.risk)
    return Upsets(**{**vars(found), "complete": True, "level": 0.0})


def transient(kept: Kept, rng: np.random.Generator, upsets: int, duty: float) -> int:
    """Failures by upsets of values: while nothing runs, or outside of the value's life, an upset meets nothing."""
    fault = rng.integers(len(kept.failing), size=upsets)
    met = (rng.random(upsets) < duty) & (rng.random(upsets) < kept.live[fault])
    return int((met & kept.failing[fault, 0]).sum())


def persistent(kept: Kept, rng: np.random.Generator, upsets: int, reload: int, check: int | None) -> int:
    """Failures by upsets of weights, each at a random inference between two reloads: inference after inference."""
    fault, begun = rng.integers(len(kept.failing), size=upsets), rng.integers(reload, size=upsets)
    lives, failed = np.ones(upsets, dtype=bool), np.zeros(upsets, dtype=bool)
    for inference in range(reload):
        if check is not None and inference % check == 0:  # finds what has come before
            lives &= ~(kept.repaired[fault] & (begun < inference))
        met = rng.integers(kept.failing.shape[1], size=upsets)
        failed |= lives & (begun <= inference) & kept.failing[fault, met]
    return int(failed.sum())


def covered(
    fit: float, bits: int, failures_of: Callable[[np.random.Generator, int], int], histories: int
) -> tuple[int, float]:
    """Histories whose own 95 % interval of failures per 10^9 hours holds the FIT, and the z of their mean."""
    rng = np.random.default_rng(2026)
    hours = UPSETS / (bits * FIT_PER_MBIT * 1e-15)
    expected, inside, seen = fit * hours / 1e9, 0, 0
    for _ in range(histories):
        failures = failures_of(rng, rng.poisson(UPSETS))
        low = stats.chi2.ppf(0.025, 2 * failures) / 2 if failures else 0.0  # Garwood 1936
        high = stats.chi2.ppf(0.975, 2 * failures + 2) / 2
        inside += low <= expected <= high
        seen += failures
    return inside, (seen - histories * expected) / (histories * expected) ** 0.5


# By chance alone fewer of 20 cover with a probability of 0.3 %, fewer of 40 below with 0.1 %.
HISTORIES = [
    pytest.param(20, 16, id="short"),
    pytest.param(1000, 936, id="whole", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]
CASES = ["values", "values, idle", "reload 1", "reload 24", "reload 100", "checks 1", "checks 8", "checks 24"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("histories", "least"), HISTORIES)
def test_histories_cover_the_failure_rate(
    case: str, histories: int, least: int, kept_values: Kept, kept_memory: Kept, kept_guarded: Kept
) -> None:
    """In at least 936 of 1,000 (95 % less two standard errors); and the mean of all is the rate itself."""
    kind, _, number = case.partition(" ")
    if case.startswith("values"):
        kept, duty = kept_values, 0.3 if "idle" in case else 1.0
        use = Use(inferences_per_reload=1, duty=duty)
        failures_of: Callable[..., int] = partial(transient, kept, duty=duty)
    elif kind == "reload":
        kept, reload = kept_memory, int(number)
        use = Use(inferences_per_reload=reload, inputs_are="given")
        failures_of = partial(persistent, kept, reload=reload, check=None)
    else:
        kept, check = kept_guarded, int(number)
        use = Use(inferences_per_reload=48, inferences_per_check=check, inputs_are="given")
        failures_of = partial(persistent, kept, reload=48, check=check)
    found = failure_rate([whole(kept)], RawRate.of(FIT_PER_MBIT, unit="FIT/Mbit"), use=use)
    assert found.fit_low == pytest.approx(found.fit_high, rel=1e-3)  # the table is all there is
    bits = sum(site["bits"] for site in kept.risk["sites"].values())
    inside, z = covered(found.fit, bits, failures_of, histories)
    assert inside >= least
    assert abs(z) < 4


def part_of(kept: Kept, rng: np.random.Generator, faults: int, inputs: int) -> Upsets:
    """A campaign of some faults on some inputs out of the kept table, as if that were all there is."""
    table = whole(kept)
    chosen = rng.integers(0, len(kept.failing), faults)
    failing = kept.failing[chosen]
    met = rng.integers(0, failing.shape[1], (faults, inputs))
    counts = np.take_along_axis(failing, met, axis=1).sum(1)
    frame = table.faults[chosen.tolist()].with_columns(
        fault=pl.Series(range(faults)), failing=pl.Series(counts), inputs=pl.lit(inputs, dtype=pl.Int64)
    )
    return Upsets(**{**vars(table), "faults": frame, "complete": False, "level": 0.0})


@pytest.mark.parametrize(("reload", "inputs"), [(1, 20), (20, 20), (24, 8), (400, 8)])
@pytest.mark.parametrize(
    ("campaigns", "least"),
    [pytest.param(40, 33, id="short"), pytest.param(1000, 936, id="whole", marks=pytest.mark.slow)],
)
def test_limits_of_campaigns_cover_what_all_faults_on_all_inputs_do(
    reload: int, inputs: int, campaigns: int, least: int, kept_memory: Kept
) -> None:
    """Campaigns of 200 faults on 8 or 20 inputs, drawn from the kept table; beyond their inputs by bounds alone."""
    shares = kept_memory.failing.mean(1)
    probability = np.mean([1 - (1 - shares) ** j for j in range(1, reload + 1)])
    bits = sum(site["bits"] for site in kept_memory.risk["sites"].values())
    truth = FIT_PER_MBIT * bits / 1e6 * probability
    rng, rate = np.random.default_rng(7), RawRate.of(FIT_PER_MBIT, unit="FIT/Mbit")
    inside = 0
    for _ in range(campaigns):
        found = failure_rate([part_of(kept_memory, rng, 200, inputs)], rate, use=Use(inferences_per_reload=reload))
        inside += found.fit_low <= truth <= found.fit_high
    assert inside >= least
