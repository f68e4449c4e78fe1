"""How good scores of weights are as proxies of vulnerability, and which weights are critical: ResNet-20 on CIFAR-10.

Proxies. The vulnerability of a weight is the share of inputs that fail, averaged over the flips of the fault model. It
is measured for randomly chosen weights: with bit 30 flipped; for single bits, at each of bits 22 to 31 (what the lower
ones, which change a weight by less than a quarter, may do is left out); for sets of two and three bits, by two random
sets with and two without bit 30, weighted by their probabilities (a set of k of 32 bits holds bit 30 with probability
k / 32): so few draws add noise that lowers the figures of all scores. Against it each score has Spearman's rank
correlation, and its recall: of the best-scored 1 % (10 %) of the weights measured, the share that are at least as
vulnerable as the last of the 1 % (10 %) most vulnerable; equally vulnerable ones count. "chance" is the recall of a
score that knows nothing. Intervals: bootstrap over weights, 95 %.

Figure 13. The share of faults that fail more than a threshold of the inputs, in random weights and in the 500 weights
with the highest scores; Wilson 95 %. Needs the data in HOPLON_DATA.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

import hoplon as hp
from hoplon.importance import layerwise
from hoplon.stats.intervals import wilson
from hoplon.zoo import resolve_data, resolve_model

SITES = hp.Memory("*.weight", kind="conv")
BITS, WORST = 32, 30
COUNTED = range(22, BITS)
THRESHOLDS = (0.0, 0.01, 0.05, 0.5, 0.9)
TOP = 500
PLAIN = ("random", "magnitude", "gradient", "fisher", "nisp", "taylor")
MODELS = {"bit 30": hp.BitFlip(bits=(WORST,)), **{f"{k} of 32": hp.BitFlip(k) for k in (1, 2, 3)}}
Place = tuple[str, int]


class Setting:
    """Model, inputs and scores that all measurements share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        model, data = resolve_model("resnet20-cifar10"), resolve_data("cifar10")
        self.program = hp.capture(model.module, model.example, name=model.name)
        self.inputs = data.held_out.sample(options.inputs, seed=options.seed)
        self.known = data.calibration.sample(options.calibration, seed=options.seed)
        self.sites = SITES.select(self.program)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.scores: dict[str, hp.Scores] = {name: self.score(name) for name in PLAIN}
        self.scores["layerwise taylor"] = layerwise(self.scores["taylor"])

    def score(self, name: str, **more: Any) -> hp.Scores:
        function = getattr(hp.importance, name)
        found: hp.Scores = function(self.program, self.known, loss=F.cross_entropy, sites=SITES, **more)
        return found

    def random_weights(self, count: int) -> list[Place]:
        """Different weights, every one equally likely."""
        number, element = hp.sampling.ElementUniform().elements(self.sites, 2 * count, generator=self.generator)
        drawn = dict.fromkeys(zip((self.sites[n].name for n in number.tolist()), element.tolist(), strict=True))
        return list(drawn)[:count]

    def bits(self, count: int, *, of: Sequence[int], always: Sequence[int] = ()) -> tuple[int, ...]:
        """A random set of bits that holds ``always``."""
        order = torch.randperm(len(of), generator=self.generator)[: count - len(always)]
        return tuple(sorted([*always, *(of[int(i)] for i in order)]))

    def failing(self, faults: Sequence[tuple[str, int, tuple[int, ...]]]) -> np.ndarray:
        """The share of inputs that each fault fails, float64, in order."""
        campaign = hp.Campaign(self.program, self.inputs, sites=SITES, sampling=hp.sampling.Explicit(faults))
        results = campaign.run(seed=self.options.seed)
        self.eligible = results.summary()[0].n_inputs
        return results.per_fault()["failure"].to_numpy()


def at(scores: hp.Scores, weights: Sequence[Place]) -> np.ndarray:
    """The scores of some weights."""
    return np.array([float(scores[site].reshape(-1)[element]) for site, element in weights])


def measured(setting: Setting) -> dict[str, tuple[list[Place], np.ndarray]]:
    """By fault model the weights and their vulnerability."""
    options, others = setting.options, [bit for bit in range(BITS) if bit != WORST]
    weights = setting.random_weights(options.weights)
    worst = setting.failing([(*place, (WORST,)) for place in weights])
    few = weights[: options.several]
    rest = [setting.failing([(*place, (bit,)) for place in few]) for bit in COUNTED if bit != WORST]
    single = (worst[: len(few)] + np.sum(rest, axis=0)) / BITS
    found = {"bit 30": (weights, worst), "1 of 32": (few, single)}
    for count in (2, 3):
        with_it, without = (
            np.mean(
                [
                    setting.failing([(*place, setting.bits(count, of=others, always=always)) for place in few])
                    for _ in range(2)
                ],
                axis=0,
            )
            for always in ((WORST,), ())
        )
        found[f"{count} of 32"] = few, count / BITS * with_it + (1 - count / BITS) * without
    return found


def correlation(score: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's, 0 where one of the two is constant."""
    first, second = (rankdata(x) - (len(x) + 1) / 2 for x in (score, truth))
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / norm if norm else 0.0


def recall(score: np.ndarray, truth: np.ndarray, share: float) -> float:
    """Of the best-scored share, how many are among the most vulnerable, ties of these included."""
    count = max(1, round(share * len(truth)))
    last = np.sort(truth)[-count]
    return float((truth[np.argsort(-score, kind="stable")[:count]] >= last).mean())


def bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float], score: np.ndarray, truth: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """The statistic with its percentile interval over resampled weights."""
    random = np.random.default_rng(seed)
    rows = (random.integers(len(score), size=len(score)) for _ in range(400))
    again = [statistic(score[row], truth[row]) for row in rows]
    low, high = np.quantile(again, (0.025, 0.975))
    return statistic(score, truth), float(low), float(high)


def proxies(setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per fault model and score."""
    for name, (weights, truth) in measured(setting).items():
        foretold = setting.score("expected_damage", fault_model=MODELS[name])
        for score, scores in {**setting.scores, "expected_damage": foretold}.items():
            values = at(scores, weights)
            row: dict[str, Any] = {"faults": name, "score": score, "n_weights": len(weights)}
            row |= {"n_inputs": setting.eligible, "vulnerability": float(truth.mean())}
            found = bootstrap(correlation, values, truth, setting.options.seed)
            row |= dict(zip(("correlation", "correlation_low", "correlation_high"), found, strict=True))
            for percent in (1, 10):
                found = bootstrap(lambda s, t, p=percent: recall(s, t, p / 100), values, truth, setting.options.seed)
                keys = (f"recall_{percent}", f"recall_{percent}_low", f"recall_{percent}_high")
                row |= dict(zip(keys, found, strict=True))
                last = np.sort(truth)[-max(1, round(percent / 100 * len(truth)))]
                row[f"chance_{percent}"] = float((truth >= last).mean())
            yield row


def figure13(setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per choice of bits, choice of weights and threshold."""
    everything, exponent = range(BITS), range(23, 31)
    others = [bit for bit in everything if bit != WORST]
    chosen: Mapping[str, Callable[[], tuple[int, ...]]] = {
        "2 of 32": lambda: setting.bits(2, of=everything),
        "3 of 32": lambda: setting.bits(3, of=everything),
        "2 of the exponent": lambda: setting.bits(2, of=exponent),
        "bit 30 and another": lambda: setting.bits(2, of=others, always=(WORST,)),
    }
    count = setting.options.faults
    sets: dict[str, list[Place]] = {"random": setting.random_weights(count)}
    ranked = {name: setting.scores[name] for name in ("magnitude", "taylor")}
    ranked["expected_damage"] = setting.score("expected_damage", fault_model=hp.BitFlip(2))
    for name, scores in ranked.items():
        top = hp.sampling.TopScore(scores.values, count=TOP).chosen
        places = [(site, element) for site, indices in top.items() for element in indices.tolist()]
        order = torch.randperm(len(places), generator=setting.generator)
        sets[f"top {TOP} {name}"] = [places[int(i)] for i in order[:count]]
    for bits, draw in chosen.items():
        for name, places in sets.items():
            shares = setting.failing([(*place, draw()) for place in places])
            for threshold in THRESHOLDS:
                critical = int((shares > threshold).sum())
                interval = wilson(critical, len(shares))
                row = {"bits": bits, "weights": name, "threshold": threshold, "critical": critical}
                row |= {"n_faults": len(shares), "n_inputs": setting.eligible, "share": interval.estimate}
                yield row | {"share_low": interval.low, "share_high": interval.high}


def shown(found: Mapping[str, list[dict[str, Any]]], title: str) -> Iterator[Table]:
    if found["proxies"]:
        table = Table(title=f"Proxies; {title}", title_justify="left")
        for heading in ("faults", "score", "weights", "rank correlation", "recall at 1 %", "recall at 10 %"):
            table.add_column(heading)
        for row in found["proxies"]:
            cells = [f"{row['correlation']:.3f} [{row['correlation_low']:.3f}, {row['correlation_high']:.3f}]"]
            for p in (1, 10):
                limits = f"[{row[f'recall_{p}_low']:.2f}, {row[f'recall_{p}_high']:.2f}]"
                cells.append(f"{row[f'recall_{p}']:.2f} {limits}, chance {row[f'chance_{p}']:.2f}")
            table.add_row(row["faults"], row["score"], str(row["n_weights"]), *cells)
        yield table
    if found["figure13"]:
        table = Table(title=f"Critical share, % of faults; {title}", title_justify="left")
        for heading in ("bits", "weights", "faults", *(f"> {100 * t:g} %" for t in THRESHOLDS)):
            table.add_column(heading)
        cells_of: dict[tuple[str, str, int], list[str]] = {}
        for row in found["figure13"]:
            cell = f"{100 * row['share']:.1f} [{100 * row['share_low']:.1f}, {100 * row['share_high']:.1f}]"
            cells_of.setdefault((row["bits"], row["weights"], row["n_faults"]), []).append(cell)
        for key, cells in cells_of.items():
            table.add_row(*map(str, key), *cells)
        yield table


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and rows there")
    parser.add_argument("--quick", action="store_true", help="a few faults, under 50 seconds: no figures to rely on")
    parser.add_argument("--parts", nargs="+", choices=("proxies", "figure13"), default=("proxies", "figure13"))
    parser.add_argument("--weights", type=int, default=1000, help="measured with bit 30 flipped")
    parser.add_argument("--several", type=int, default=150, help="of these, measured with other bits flipped as well")
    parser.add_argument("--faults", type=int, default=150, help="per row of figure 13")
    parser.add_argument("--inputs", type=int, default=48, help="held-out inputs; those the model gets right count")
    parser.add_argument("--calibration", type=int, default=1024, help="training samples that scores are computed on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.quick:
        options.weights, options.several, options.faults = 30, 6, 5
        options.inputs, options.calibration = 12, 64
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if options.quick and not os.environ.get("HOPLON_DATA"):
        print("skipped: needs the data in HOPLON_DATA", file=sys.stderr)
        return
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    setting = Setting(options)
    parts = {"proxies": proxies, "figure13": figure13}
    found = {name: list(part(setting)) if name in options.parts else [] for name, part in parts.items()}
    kept = ("weights", "several", "faults", "inputs", "calibration", "threads", "seed")
    conditions = {**{key: getattr(options, key) for key in kept}, "seconds": time.perf_counter() - started}
    conditions |= {"torch": torch.__version__, "python": platform.python_version()}
    for table in shown(found, f"seed {options.seed}, {setting.eligible} inputs, {options.calibration} scored on"):
        Console(width=150).print(table)
    if options.json is not None:
        content = {"conditions": conditions, **found}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
