"""What guards leave of memory faults: the same faults over every guard, and failure against the protected fraction.

Two attacks meet a network: faults in random convolution weights, and in important ones (the top 5 % by Taylor on other
data than the guards' scores come from). A curve says what remains when the top fraction of each score is protected: a
fault in a protected weight is repaired, whatever its bits, so it follows from one unprotected campaign.

Source: Schmedding et al. (Aspis), section V-B, figures 15 and 16.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import hoplon as hp
from hoplon import importance, zoo
from hoplon.campaign.results import Results
from hoplon.comparison.protected_fraction import remaining

CONVOLUTIONS = hp.Memory("*.weight", kind="conv")
FRACTIONS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
ATTACKED = 0.05
DATA = {"resnet20-cifar10": "cifar10", "resnet56-cifar10": "cifar10", "lenet-digits": "digits"}


@dataclass(frozen=True)
class Case:
    """One arm under one attack: share of inputs that fail per fault, interval clustered by fault."""

    model: str
    attack: str
    fault_model: str
    arm: str
    failure: float
    low: float
    high: float
    stopped: float
    n_faults: int
    n_inputs: int
    failing_bits: float | None


@dataclass(frozen=True)
class Point:
    """What remains of an attack when the top fraction of a score is protected."""

    model: str
    attack: str
    fault_model: str
    score: str
    fraction: float
    failure: float
    low: float
    high: float
    n_faults: int


@dataclass(frozen=True)
class Setting:
    """A model, the inputs that faults meet, ranges, and scores: the guards' and the attacker's."""

    name: str
    program: hp.Program
    met: hp.Inputs
    ranges: hp.Ranges
    scores: Mapping[str, hp.Scores]
    attacker: hp.Scores


def setting(name: str, options: argparse.Namespace) -> Setting:
    model, data = zoo.model(name), zoo.data(DATA[name])
    program = hp.capture(model.module, model.example, name=model.name)
    known = data.calibration.sample(2 * options.calibration, seed=options.seed)
    own, other = known.take(range(options.calibration)), known.take(range(options.calibration, len(known)))
    shared = {"loss": F.cross_entropy, "sites": CONVOLUTIONS}
    scores = {
        "taylor": importance.taylor(program, own, **shared),
        "expected damage": importance.expected_damage(program, own, **shared),
        "magnitude": importance.magnitude(program, sites=CONVOLUTIONS),
        "fisher": importance.fisher(program, own, **shared),
        "random": importance.random(program, sites=CONVOLUTIONS, seed=options.seed),
    }
    attacker = importance.taylor(program, other, **shared)
    met = data.held_out.take(range(options.inputs))
    return Setting(name, program, met, hp.profile_ranges(program, own), scores, attacker)


def arms(found: Setting) -> dict[str, list[hp.protections.Protection]]:
    taylor = found.scores["taylor"]
    return {
        "none": [],
        "ranger": [hp.Ranger(found.ranges)],
        **{f"aspis-{100 * share:g}%": [hp.Aspis(taylor, share)] for share in (0.01, 0.1, 1.0)},
        "tmr": [hp.TMR()],
        "parity": [hp.Parity()],
        "sec-ded memory": [hp.guards.SecDedMemory()],
    }


def attacks(found: Setting) -> dict[str, hp.sampling.Sampling]:
    chosen = found.attacker.top(ATTACKED)
    return {"random weights": hp.sampling.ElementUniform(), f"top {100 * ATTACKED:g} %": hp.sampling.Among(chosen)}


def measured(found: Setting, options: argparse.Namespace, tell: Any) -> Iterator[Case | Point]:
    for attack, sampling in attacks(found).items():
        for bits in options.bits:
            fault_model = hp.BitFlip(bits)
            plan = hp.Campaign(found.program, found.met, sites=CONVOLUTIONS, fault_model=fault_model, sampling=sampling)
            faults = plan.draw(count=options.faults, seed=options.seed)
            tell(f"{found.name}, {attack}, {fault_model.name}")
            compared = hp.compare(
                found.program,
                found.met,
                arms=arms(found),
                faults=faults,
                latency=False,
                guard_faults=options.guard_faults,
            )
            for arm in compared.arms:
                exposure = arm.exposure
                yield Case(
                    model=found.name,
                    attack=attack,
                    fault_model=fault_model.name,
                    arm=arm.name,
                    failure=arm.rate.failure.estimate,
                    low=arm.rate.failure.low,
                    high=arm.rate.failure.high,
                    stopped=exposure.uncorrectable if exposure else 0.0,
                    n_faults=arm.rate.n_faults,
                    n_inputs=arm.rate.n_inputs,
                    failing_bits=exposure.failing_bits[0] if exposure and exposure.failing_bits else None,
                )
            unprotected = compared["none", "memory"].results
            yield from curves(found, attack, fault_model.name, unprotected)


def curves(found: Setting, attack: str, fault_model: str, unprotected: Results) -> Iterator[Point]:
    for score, values in found.scores.items():
        for fraction in FRACTIONS:
            rate = remaining(unprotected, values, fraction)
            n_faults = unprotected.per_fault().height
            yield Point(found.name, attack, fault_model, score, fraction, rate.estimate, rate.low, rate.high, n_faults)


def shown(cases: Sequence[Case], points: Sequence[Point]) -> Iterator[Table]:
    table = Table(
        title="Same faults over every guard: share of inputs that fail per fault [95 %]", title_justify="left"
    )
    for heading in ("model", "attack", "faults", "arm", "failure", "stopped", "faults x inputs"):
        table.add_column(heading)
    for case in cases:
        rate = f"{100 * case.failure:.2f} % [{100 * case.low:.2f}, {100 * case.high:.2f}]"
        sizes = f"{case.n_faults} x {case.n_inputs}"
        stopped = f"{100 * case.stopped:.1f} %"
        table.add_row(case.model, case.attack, case.fault_model, case.arm, rate, stopped, sizes)
    yield table
    curve = Table(title="Failure in % that remains, by protected fraction of the weights", title_justify="left")
    for heading in ("model", "attack", "faults", "score", *(f"{100 * fraction:g} %" for fraction in FRACTIONS)):
        curve.add_column(heading)
    rows: dict[tuple[str, ...], list[str]] = {}
    for point in points:
        key = (point.model, point.attack, point.fault_model, point.score)
        rows.setdefault(key, []).append(f"{100 * point.failure:.2f}")
    for key, row in rows.items():
        curve.add_row(*key, *row)
    yield curve


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write cases and points there")
    parser.add_argument(
        "--quick", action="store_true", help="LeNet, which needs no files, few faults; under 50 seconds"
    )
    parser.add_argument("--models", nargs="+", choices=tuple(DATA), default=["resnet20-cifar10"])
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3], help="flips in one word")
    parser.add_argument("--faults", type=int, default=400)
    parser.add_argument("--guard-faults", type=int, default=100)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.bits = ["lenet-digits"], [2]
        options.faults, options.guard_faults, options.inputs, options.calibration = 50, 20, 32, 128
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    console, progress = Console(width=140), Console(stderr=True)
    cases: list[Case] = []
    points: list[Point] = []
    for name in options.models:
        with progress.status(name) as status:
            for found in measured(setting(name, options), options, status.update):
                (cases if isinstance(found, Case) else points).append(found)  # type: ignore[arg-type]
    for table in shown(cases, points):
        console.print(table)
    if options.json is not None:
        about = {"seed": options.seed, "threads": options.threads, "torch": torch.__version__}
        about |= {"options": {name: value for name, value in vars(options).items() if name != "json"}}
        content = {"conditions": about, "cases": [*map(asdict, cases)], "points": [*map(asdict, points)]}
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
