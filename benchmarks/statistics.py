"""Runs to a precision: two phases against uniform sampling, and how often the intervals cover.

A pool of faults is run once, all of them, in each arm: of every fault its stratum and whether it failed. The pool is
then taken for the whole population, and the sequential procedure is repeated on it, candidates and runs drawn with
replacement, so its truth is known and coverage can be counted. Nothing is extrapolated in ``runs_hoplon``,
``coverage`` and ``half_width_mean``. ``runs_uniform`` is computed: the runs after which plain sampling has the
half-width, by the same limits with one stratum (Clopper and Pearson), at the pool's probability. The ratio of times is
made of measured rates.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file is called like a module of the standard library, which others import.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

import hoplon as hp
from hoplon import zoo
from hoplon.campaign import Campaign, _Work
from hoplon.candidates import Candidates
from hoplon.course import Course
from hoplon.errors import HoplonWarning
from hoplon.estimation import limits
from hoplon.local_reach import LocalReach
from hoplon.observation import Slopes
from hoplon.two_phase import default_strata, wrong_without_fault

HALF_WIDTHS = {"none": (0.0025, 0.0005), "ranger": (0.0005, 0.0001)}
# Failures that are planted in the heaviest stratum, as multiples of the half-width.
PLANTED = (0.0, 0.25, 1.0)
POOL_FAULTS, QUICK_FAULTS = 262_144, 4_096
QUICK_SECONDS = 12.0


@dataclass(frozen=True)
class Pool:
    """A population: the share and the failure probability of each stratum; ``known``: proven, never run."""

    arm: str
    faults: int
    shares: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    faults_per_s: float
    candidates_per_s: float


@dataclass(frozen=True)
class Case:
    """One arm at one precision; ``planted``: failure probability added to the heaviest stratum's share, in all."""

    model: str
    arm: str
    half_width: float
    planted: float
    repeats: int
    coverage: float
    missed_below: float
    missed_above: float
    half_width_mean: float
    bias_in_standard_errors: float
    truth: float
    runs_uniform: int
    runs_hoplon: float
    ratio: float
    looks_mean: float
    candidates: float
    pool_faults: int
    time_to_answer_ratio_pytorchfi: float | None


def campaign_of(arm: str) -> tuple[str, Campaign]:
    """ResNet-20 on CIFAR-10 where its files are, else LeNet on the embedded digits; faults in convolution outputs."""
    name, data_name = ("resnet20-cifar10", "cifar10") if os.environ.get("HOPLON_DATA") else ("lenet-digits", "digits")
    model, data = zoo.model(name), zoo.data(data_name)
    program = hp.capture(model.module, model.example, name=name)
    protections = []
    if arm == "ranger":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HoplonWarning)
            calibration = data.calibration.take(range(min(2000, len(data.calibration))))
            protections = [hp.Ranger(hp.profile_ranges(program, calibration))]
    inputs = data.held_out.take(range(min(320, len(data.held_out))))
    return name, Campaign(program, inputs, sites=hp.Values(kind="conv"), protections=protections)


def recorded(arm: str, faults: int, folder: Path | None) -> tuple[str, Pool]:
    """Run a pool, or read the one in the folder."""
    if folder is not None and (folder / f"{arm}.json").exists():
        meta = json.loads((folder / f"{arm}.json").read_text())
        frame = pl.read_parquet(folder / f"{arm}.parquet")
        return meta["model"], _pool(arm, frame, meta["faults_per_s"], meta["candidates_per_s"])
    name, campaign = campaign_of(arm)
    work = _Work(campaign, 0)
    drawn = Candidates(
        work.population,
        campaign.sampling,
        default_strata(work.evaluator, work.population),
        seed=0,
        arrive=LocalReach(work.evaluator, work.sites),
        slope=Slopes(work.evaluator, work.sites),
        wrong=wrong_without_fault(work.evaluator),
    )
    begun = time.perf_counter()
    drawn.extend(faults)
    seen = time.perf_counter()
    size, failed = 16_384, []
    for start in range(0, faults, size):
        table = drawn.table(np.arange(start, min(start + size, faults)))
        runs, _ = work.evaluator.runs(table)
        failed.append(runs[runs.columns[2]].cast(pl.String).is_in(["sdc", "nonfinite"]))
    rates = {"faults_per_s": faults / (time.perf_counter() - seen), "candidates_per_s": len(drawn) / (seen - begun)}
    known = ~np.isnan(drawn.known)
    stratum = drawn.stratum[:faults]
    frame = pl.DataFrame({"stratum": stratum, "known": known[stratum], "failed": pl.concat(failed)})
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(folder / f"{arm}.parquet")
        (folder / f"{arm}.json").write_text(json.dumps({"model": name, **rates}))
    return name, _pool(arm, frame, **rates)


def _pool(arm: str, frame: pl.DataFrame, faults_per_s: float, candidates_per_s: float) -> Pool:
    strata = frame.group_by("stratum").agg(pl.len(), pl.col("known").first(), pl.col("failed").mean()).sort("stratum")
    shares = strata["len"].to_numpy() / frame.height
    known, truth = strata["known"].to_numpy(), strata["failed"].to_numpy().copy()
    assert not truth[known].any(), "a fault that was proven to be masked failed"
    return Pool(arm, frame.height, shares, truth, known, faults_per_s, candidates_per_s)


def campaign_on(
    course: Course, shares: np.ndarray, truth: np.ndarray, known: np.ndarray, generator: np.random.Generator
) -> tuple[float, ...]:
    """One whole campaign on a population: estimate at the first look, limits, runs, looks, candidates."""
    sure = np.where(known, truth, np.nan)
    drawn = course.candidates
    counts = generator.multinomial(drawn, shares)
    runs = course.pilot(counts / drawn, known)
    failures = generator.binomial(runs, truth[:, None])

    def grow(wanted: np.ndarray, candidates: int) -> None:
        nonlocal counts, drawn, runs, failures
        counts, drawn = counts + generator.multinomial(candidates - drawn, shares), candidates
        wanted = np.maximum(np.where(known[:, None], 0, wanted), runs)
        failures, runs = failures + generator.binomial(wanted - runs, truth[:, None]), wanted

    grow(*course.main(counts / drawn, sure, failures, runs, candidates=drawn))
    look, first = 0, None
    while True:
        mean, low, high = course.look(counts / drawn, sure, failures, runs, candidates=drawn, look=look)
        first = mean if first is None else first
        if (high - low) / 2 <= course.half_width:
            return first, low, high, float(runs.sum()), look + 1.0, float(drawn)
        look += 1
        grow(*course.more(counts / drawn, sure, failures, runs, candidates=drawn, look=look))


def uniform_runs(probability: float, half_width: float) -> int:
    """After how many runs plain sampling is expected to have the half-width."""
    low, high = 1, 10**9
    while high - low > 1:
        middle = (low + high) // 2
        share, failed, runs = (np.array([value]) for value in (1.0, probability * middle, float(middle)))
        _, below, above = limits(share, failed, runs, candidates=None, low_tail=0.025, high_tail=0.025)
        low, high = (low, middle) if (above - below) / 2 <= half_width else (middle, high)
    return high


def cases_of(
    model: str, pool: Pool, repeats: int, planted: Sequence[float], widths: Sequence[float], options: argparse.Namespace
) -> Iterator[Case]:
    for half_width in widths:
        for multiple in planted:
            truth = pool.truth.copy()
            heaviest = int(np.where(pool.known, 0.0, pool.shares).argmax())
            truth[heaviest] = min(1.0, truth[heaviest] + multiple * half_width / pool.shares[heaviest])
            target, generator = float(pool.shares @ truth), np.random.default_rng(options.seed)
            course, found = Course(half_width), []
            end = time.perf_counter() + (QUICK_SECONDS / 4 if options.quick else float("inf"))
            while len(found) < repeats and (time.perf_counter() < end or len(found) < 3):
                found.append(campaign_on(course, pool.shares, truth, pool.known, generator))
            first, low, high, runs, looks, candidates = np.array(found).T
            plain = uniform_runs(target, half_width)
            speed = None
            if options.pytorchfi_faults_per_s:
                hoplon_s = runs.mean() / (options.hoplon_faults_per_s or pool.faults_per_s)
                hoplon_s += candidates.mean() / pool.candidates_per_s
                speed = plain / options.pytorchfi_faults_per_s / hoplon_s
            error = first.std() / len(first) ** 0.5
            yield Case(
                model=model,
                arm=pool.arm,
                half_width=half_width,
                planted=multiple * half_width,
                repeats=len(found),
                coverage=float(((low <= target) & (target <= high)).mean()),
                missed_below=float((high < target).mean()),
                missed_above=float((low > target).mean()),
                half_width_mean=float((high - low).mean() / 2),
                bias_in_standard_errors=float((first.mean() - target) / error) if error else 0.0,
                truth=target,
                runs_uniform=plain,
                runs_hoplon=float(runs.mean()),
                ratio=float(plain / runs.mean()),
                looks_mean=float(looks.mean()),
                candidates=float(candidates.mean()),
                pool_faults=pool.faults,
                time_to_answer_ratio_pytorchfi=speed,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(1)
    faults = options.faults or (QUICK_FAULTS if options.quick else POOL_FAULTS)
    cases: list[Case] = []
    for arm in options.arms:
        model, pool = recorded(arm, faults, options.pool)
        widths = options.half_widths or (HALF_WIDTHS[arm][:1] if options.quick else HALF_WIDTHS[arm])
        planted = PLANTED[:2] if options.quick else PLANTED
        for case in cases_of(model, pool, options.repeats, planted, widths, options):
            cases.append(case)
            if options.json is not None:
                options.json.write_text(json.dumps(_document(cases), indent=2) + "\n", encoding="utf-8")
    _show(cases)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the cases here")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds: a small pool, few repeats")
    parser.add_argument("--pool", type=Path, help="keep the pools in this folder, and read them from there")
    parser.add_argument("--faults", type=int, help="of a pool")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--arms", nargs="+", choices=tuple(HALF_WIDTHS), default=tuple(HALF_WIDTHS))
    parser.add_argument("--half-widths", nargs="+", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pytorchfi-faults-per-s", type=float, help="as benchmarks/replay.py measures it")
    parser.add_argument("--hoplon-faults-per-s", type=float, help="likewise; the pool's own rate by default")
    return parser.parse_args(arguments)


def _document(cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "cases": [asdict(case) for case in cases],
        "extrapolated": "runs_uniform is computed; the ratio of times combines rates measured apart",
        "conditions": {"threads": 1, "machine": platform.machine(), "torch": torch.__version__},
    }


def _show(cases: Sequence[Case]) -> None:
    names = ("arm", "half-width", "planted", "repeats", "coverage", "mean half-width", "uniform", "hoplon", "ratio")
    table = Table(*names)
    for case in cases:
        table.add_row(
            case.arm,
            f"{100 * case.half_width:g} pt",
            f"{100 * case.planted:g} pt",
            str(case.repeats),
            f"{100 * case.coverage:.1f} %",
            f"{100 * case.half_width_mean:.4f} pt",
            f"{case.runs_uniform:,}",
            f"{case.runs_hoplon:,.0f}",
            f"{case.ratio:.1f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
