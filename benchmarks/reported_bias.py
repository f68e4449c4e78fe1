"""Bias of the estimate that campaigns report: a thousand of them on pools of faults whose truth is known.

A pool of faults is run once in each arm of each network (``--pool`` keeps it) and taken for the whole population, as in
``statistics.py``; campaigns with a half-width are repeated on it by hoplon's own plans. Counted: the bias of the
reported estimate, the same of an estimate to which the runs after the first look would count, coverage, looks, runs.
``--real``: whole campaigns on the network itself, whose runs, looks and estimates are compared with the simulation.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# ``statistics.py`` here is called like a module of the standard library, which others import: its folder comes last.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [*(place for place in sys.path if str(Path(place or ".").resolve()) != _HERE), _HERE]

import numpy as np
import torch
from pools import campaign_of, recorded
from rich.console import Console
from rich.table import Table
from scipy import stats
from simulated import Found, population_of, repeated

from hoplon.comparison.costs.latency import conditions

# Network and data; half-widths of each arm.
NETWORKS: dict[str, tuple[str, dict[str, tuple[float, ...]]]] = {
    "lenet-digits": ("digits", {"none": (0.002, 0.0005), "ranger": (0.002, 0.0005)}),
    "resnet20-cifar10": ("cifar10", {"none": (0.002, 0.0005), "ranger": (0.0005, 0.0001)}),
    "alexnet-cifar10": ("cifar10", {"none": (0.002, 0.0005), "ranger": (0.002, 0.0005)}),
    "lenet-mnist-quick": ("mnist", {"none": (0.002, 0.0005), "ranger": (0.002, 0.0005)}),
}
FAULTS, REPEATS, QUICK_FAULTS, QUICK_REPEATS = 262_144, 1000, 16_384, 25


@dataclass(frozen=True)
class Cell:
    """One arm of one network at one half-width.

    ``bias``: of the reported estimate, in standard errors of its mean over the repeats, and over the truth; ``pooled``:
    the same of what all runs together would give. ``looks``: campaigns that stopped at the first look, the second, ...
    ``real``: campaigns on the network; their mean runs less those simulated, their mean estimate less the truth, each
    in its standard error (the second with that of the pool), and their looks.
    """

    model: str
    arm: str
    half_width: float
    truth: float
    pool_faults: int
    repeats: int
    bias: float
    bias_relative: float
    pooled_bias: float
    pooled_bias_relative: float
    coverage: float
    covers: bool
    looks: tuple[int, ...]
    runs: float
    half_width_mean: float
    candidates: float
    real: dict[str, Any] | None = None


def cell_of(model: str, arm: str, half_width: float, options: argparse.Namespace) -> Cell:
    data = NETWORKS[model][0]
    folder = None if options.pool is None else options.pool / model
    _, pool = recorded(arm, options.faults, folder, seed=options.seed, chosen=(model, data))
    over = population_of(pool, half_width, planted=0.0, domains=())
    found = repeated(over, "stratified", options.repeats, seed=options.seed, workers=options.workers, domains_in=0)
    estimate, pooled, low, high, runs, looks, candidates = _columns(found)
    covered = int(((low <= over.target) & (over.target <= high)).sum())
    return Cell(
        model=model,
        arm=arm,
        half_width=half_width,
        truth=over.target,
        pool_faults=pool.faults,
        repeats=len(found),
        bias=_off(estimate, over.target),
        bias_relative=float(estimate.mean() / over.target - 1) if over.target else 0.0,
        pooled_bias=_off(pooled, over.target),
        pooled_bias_relative=float(pooled.mean() / over.target - 1) if over.target else 0.0,
        coverage=covered / len(found),
        covers=bool(stats.binomtest(covered, len(found), 0.95, alternative="less").pvalue > 0.001),
        looks=tuple(np.bincount(looks.astype(int))[1:].tolist()),
        runs=float(runs.mean()),
        half_width_mean=float((high - low).mean() / 2),
        candidates=float(candidates.mean()),
        real=_real(model, arm, half_width, over.target, pool.faults, found, options) if options.real else None,
    )


def _columns(found: Sequence[Found]) -> np.ndarray:
    return np.array([(f.estimate, f.pooled, f.low, f.high, f.runs, f.looks, f.candidates) for f in found]).T


def _off(estimates: np.ndarray, truth: float, *, variance: float = 0.0) -> float:
    """Difference of the mean from the truth, which has a variance itself, in its standard error."""
    error = math.sqrt(float(estimates.var()) / len(estimates) + variance)
    return float((estimates.mean() - truth) / error) if error else 0.0


def _real(
    model: str, arm: str, half_width: float, truth: float, faults: int, found: Sequence[Found], options: Any
) -> dict[str, Any]:
    _, campaign = campaign_of(arm, (model, NETWORKS[model][0]))
    rows = []
    for seed in range(options.real):
        results = campaign.run(half_width=half_width, seed=seed, threads=options.threads)
        rate, design = results.summary()[0], results.design
        assert design is not None
        rows.append((rate.failure.estimate, rate.n_runs, design.looks))
    estimates, runs, looks = np.array(rows, dtype=float).T
    simulated = _columns(found)[4]
    return {
        "campaigns": len(rows),
        "runs": float(runs.mean()),
        "runs_off": _off(runs, float(simulated.mean()), variance=float(simulated.var()) / len(simulated)),
        "estimate": float(estimates.mean()),
        "estimate_off": _off(estimates, truth, variance=truth * (1 - truth) / faults),
        "looks": np.bincount(looks.astype(int))[1:].tolist(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="torch")
    cells: list[Cell] = []
    content: dict[str, Any] = {"conditions": {**conditions(torch.device("cpu")), "seed": options.seed}}
    for model in options.models:
        for arm, half_widths in NETWORKS[model][1].items():
            for half_width in half_widths[: 1 if options.quick else None]:
                cells.append(cell_of(model, arm, half_width, options))
                content["cells"] = [asdict(cell) for cell in cells]
                if options.json is not None:
                    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _show(cells)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the cells here")
    parser.add_argument("--quick", action="store_true", help="LeNet alone, a small pool, few repeats")
    parser.add_argument("--pool", type=Path, help="keep the pools in this folder, and read them from there")
    parser.add_argument("--models", nargs="+", choices=tuple(NETWORKS))
    parser.add_argument("--faults", type=int, help="of a pool")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--real", type=int, default=0, help="campaigns on the network itself, per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes for the repeats; they change no figure")
    options = parser.parse_args(arguments)
    options.models = options.models or tuple(NETWORKS)[: 1 if options.quick else None]
    options.faults = options.faults or (QUICK_FAULTS if options.quick else FAULTS)
    options.repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    return options


def _show(cells: Sequence[Cell]) -> None:
    headings = ("network", "arm", "half-width", "truth", "bias", "all runs", "coverage", "looks", "runs", "real")
    table = Table(*headings)
    for cell in cells:
        real = cell.real or {}
        table.add_row(
            cell.model,
            cell.arm,
            f"{100 * cell.half_width:g} pt",
            f"{100 * cell.truth:.4f} %",
            f"{cell.bias:+.1f} SE ({100 * cell.bias_relative:+.2f} %)",
            f"{cell.pooled_bias:+.1f} SE ({100 * cell.pooled_bias_relative:+.2f} %)",
            f"{100 * cell.coverage:.1f} %" + ("" if cell.covers else " NO"),
            "/".join(map(str, cell.looks)),
            f"{cell.runs:,.0f}",
            f"{real['estimate_off']:+.1f}, {real['runs_off']:+.1f} SE; {real['looks']}" if real else "",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
