"""Runs to a precision: two phases against uniform sampling, how often the intervals cover, and time to an answer.

A pool of faults is run once, all of them, in each arm (``--pool`` keeps it). It is then taken for the whole population,
and the sequential procedure is repeated on it, candidates and runs drawn with replacement, so its truth is known and
coverage is counted. Nothing is extrapolated in ``runs_hoplon``, ``coverage`` and ``half_width_mean``. ``runs_uniform``
is computed: the runs after which plain sampling has the half-width, by the same limits with one stratum (Clopper and
Pearson), at the pool's probability. ``time_to_answer``: whole campaigns of hoplon against uniform faults run by others,
whose time is extrapolated; see ``answers.py``. ``memory``: faults in
weights, each on as many inputs as pay, in whole campaigns; see ``two_levels.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This file is called like a module of the standard library, which others import: its folder comes last.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [*(place for place in sys.path if str(Path(place or ".").resolve()) != _HERE), _HERE]

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from answers import answers
from pools import Pool, recorded
from rich.console import Console
from rich.table import Table
from scipy import stats
from simulated import Found, Population, population_of, repeated, uniform_runs
from two_levels import MEMORY, QUICK_MEMORY, memory_case

from hoplon.comparison.costs.latency import conditions

TARGETS = {"none": 0.0005, "ranger": 0.0001}
TIMED, LITE_TIMED, ROUNDS = (0.0005, 0.0002), (0.001,), 3
# Failures that are planted in the heaviest stratum, as multiples of the half-width.
PLANTED = (0.0, 0.25, 1.0)
POOL_FAULTS, QUICK_FAULTS, QUICK_REPEATS = 262_144, 4_096, 25
DOMAINS: tuple[tuple[str, Any], ...] = (("bit", 30), ("bit", 26), ("bit", 31))
REFUSED = 0.001  # one-sided binomial test of coverage


@dataclass(frozen=True)
class Case:
    """One arm at one precision; ``planted``: failure probability added to the heaviest stratum's share, in all.

    ``covers``: 95 % is not refused by a one-sided binomial test at 0.001. ``bias_in_standard_errors``: of the estimate
    as a campaign reports it.
    """

    model: str
    arm: str
    half_width: float
    planted: float
    repeats: int
    coverage: float
    covers: bool
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


def case_of(
    model: str, pool: Pool, over: Population, planted: float, found: Sequence[Found], ratio: float | None
) -> Case:
    estimate, low, high, runs, looks, candidates = np.array(
        [(f.estimate, f.low, f.high, f.runs, f.looks, f.candidates) for f in found]
    ).T
    target, half_width = over.target, over.course.half_width
    plain, error = uniform_runs(target, half_width), estimate.std() / len(found) ** 0.5
    covered = int(((low <= target) & (target <= high)).sum())
    return Case(
        model=model,
        arm=pool.arm,
        half_width=half_width,
        planted=planted,
        repeats=len(found),
        coverage=covered / len(found),
        covers=_covers(covered, len(found)),
        missed_below=float((high < target).mean()),
        missed_above=float((low > target).mean()),
        half_width_mean=float((high - low).mean() / 2),
        bias_in_standard_errors=float((estimate.mean() - target) / error) if error else 0.0,
        truth=target,
        runs_uniform=plain,
        runs_hoplon=float(runs.mean()),
        ratio=float(plain / runs.mean()),
        looks_mean=float(looks.mean()),
        candidates=float(candidates.mean()),
        pool_faults=pool.faults,
        time_to_answer_ratio_pytorchfi=ratio,
    )


def _covers(covered: int, repeats: int) -> bool:
    return bool(stats.binomtest(covered, repeats, 0.95, alternative="less").pvalue > REFUSED)


def domains_of(arm: str, over: Population, found: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """How often the intervals of single bits cover, from the same runs."""
    limits = np.array([f.domains for f in found if f.domains])
    for number, name in enumerate(over.cells if len(limits) else ()):
        truth = over.domain(name)
        low, high = limits[:, number].T
        covered = int(((low <= truth + 1e-12) & (truth <= high + 1e-12)).sum())
        yield {
            "arm": arm,
            "domain": name,
            "truth": truth,
            "repeats": len(limits),
            "coverage": covered / len(limits),
            "covers": _covers(covered, len(limits)),
            "half_width_mean": float((high - low).mean() / 2),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="torch")
    content: dict[str, Any] = {"cases": [], "uniform": [], "domains": [], "time_to_answer": [], "memory": []}
    content["extrapolated"] = (
        "runs_uniform is computed; the peer's seconds are runs_uniform times its seconds per fault; "
    )
    content["extrapolated"] += "of memory, runs_uniform is computed and seconds_uniform is that over the pool's rate"
    content["conditions"] = {**conditions(torch.device("cpu")), "seed": options.seed}
    if not options.no_memory:
        work = QUICK_MEMORY if options.quick else MEMORY
        content["memory"].append(asdict(memory_case(work, seed=options.seed, threads=options.threads)))
        _write(options, content)
    if not options.no_time:
        half_widths, lite = ([0.01], []) if options.quick else (TIMED, LITE_TIMED)
        rounds = 1 if options.quick else ROUNDS
        content["time_to_answer"] = answers(half_widths, lite, rounds=rounds, seed=options.seed)
        _write(options, content)
    planted = PLANTED[:2] if options.quick else PLANTED
    for arm in () if options.only_memory else options.arms:
        model, pool = recorded(arm, options.faults, options.pool, seed=options.seed)
        for half_width in options.half_widths or [TARGETS[arm] * (20 if options.quick else 1)]:
            for multiple in planted:
                over = population_of(pool, half_width, planted=multiple * half_width, domains=DOMAINS)
                ways = {"seed": options.seed, "workers": options.workers}
                found = repeated(over, "stratified", options.repeats, domains_in=200, **ways)
                timed = (one for one in content["time_to_answer"] if _is_of(one, model, arm, multiple, half_width))
                ratio = next((one["ratio"] for one in timed), None)
                content["cases"].append(asdict(case_of(model, pool, over, multiple * half_width, found, ratio)))
                if not multiple:
                    content["domains"].extend(domains_of(arm, over, found))
                    plain = repeated(over, "uniform", options.repeats, domains_in=0, **ways)
                    content["uniform"].append(asdict(case_of(model, pool, over, 0.0, plain, None)))
                _write(options, content)
    _show(content)


def _write(options: argparse.Namespace, content: dict[str, Any]) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _is_of(answer: dict[str, Any], model: str, arm: str, planted: float, half_width: float) -> bool:
    here = (answer["model"], "none", 0.0, answer["half_width"]) == (model, arm, planted, half_width)
    return here and answer["peer"].startswith("PyTorchFI")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the cases here")
    parser.add_argument(
        "--quick", action="store_true", help="under 50 seconds: a small pool, wide intervals, few repeats"
    )
    parser.add_argument("--pool", type=Path, help="keep the pools in this folder, and read them from there")
    parser.add_argument("--faults", type=int, help="of a pool")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--arms", nargs="+", choices=tuple(TARGETS), default=tuple(TARGETS))
    parser.add_argument("--half-widths", nargs="+", type=float)
    parser.add_argument("--no-time", action="store_true", help="leave out the time to an answer")
    parser.add_argument("--no-memory", action="store_true", help="leave out faults in weights")
    parser.add_argument("--only-memory", action="store_true", help="faults in weights alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes for the repeats; they change no figure")
    options = parser.parse_args(arguments)
    options.no_time |= options.only_memory
    options.faults = options.faults or (QUICK_FAULTS if options.quick else POOL_FAULTS)
    options.repeats = options.repeats or (QUICK_REPEATS if options.quick else 1000)
    return options


def _show(content: dict[str, Any]) -> None:
    headings = (
        "arm",
        "half-width",
        "planted",
        "repeats",
        "coverage",
        "mean half-width",
        "uniform",
        "runs",
        "ratio",
        "bias",
    )
    table = Table(*headings)
    for title in ("cases", "uniform"):
        for case in content[title]:
            table.add_row(
                case["arm"] + (", uniform" if title == "uniform" else ""),
                f"{100 * case['half_width']:g} pt",
                f"{100 * case['planted']:g} pt",
                str(case["repeats"]),
                f"{100 * case['coverage']:.1f} %" + ("" if case["covers"] else " NO"),
                f"{100 * case['half_width_mean']:.4f} pt",
                f"{case['runs_uniform']:,}",
                f"{case['runs_hoplon']:,.0f}",
                f"{case['ratio']:.1f}",
                f"{case['bias_in_standard_errors']:.1f} SE",
            )
    console = Console(width=130)
    console.print(table)
    for row in content["domains"]:
        console.print(f"{row['arm']}, {row['domain']}: covers {100 * row['coverage']:.1f} % of {row['repeats']}")
    for case in content["memory"]:
        console.print(
            f"memory, {case['model']}: {100 * case['half_width']:g} pt, {case['runs_hoplon']:,.0f} runs, uniform "
            f"{case['runs_uniform']:,} (one batch each {case['runs_uniform_few']:,}), ratio {case['ratio']:.1f}; "
            f"{case['seconds_hoplon']:.1f} s against {case['seconds_uniform']:,.0f} s (extrapolated)"
        )
    for answer in content["time_to_answer"]:
        console.print(
            f"{answer['model']}: {100 * answer['half_width']:g} pt in {np.median(answer['hoplon_seconds']):.1f} s, "
            f"{answer['ratio']:.1f} times faster than {answer['peer']} (batch {answer['peer_batch']}, extrapolated): "
            f"{', '.join(f'{ratio:.1f}' for ratio in answer['ratios'])}"
        )


if __name__ == "__main__":
    main()
