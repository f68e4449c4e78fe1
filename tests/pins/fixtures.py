"""The files that are pinned: where they lie, how each is made, and what is read from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hoplon as hp
from tests.pins import campaigns, networks
from tests.pins.campaigns import SEED
from tests.pins.networks import Convolutional

HERE = Path(__file__).resolve().parent
FIXTURES = HERE / "fixtures"
DIGESTS = HERE / "digests.json"

VALUES, STOPPED, HALF_WIDTH, MEMORY, GUARDS = (
    FIXTURES / name for name in ("values", "stopped", "half-width", "memory", "guard-memory")
)
BUNDLE, RANGES, SCORES, STUDY = (FIXTURES / name for name in ("bundle", "ranges.json", "scores.safetensors", "study"))
# Run directories that are complete.
COMPLETE = {path.name: path for path in (VALUES, HALF_WIDTH, MEMORY, GUARDS)}

_COUNT_OF_THE_STOPPED = 2060  # two units and the beginning of a third
MODEL_FILE = "from tests.pins.networks import convolutional\n"


class StoppedError(Exception):
    """Raised by what is told of the progress."""


def command() -> list[str]:
    """The command that makes the campaign of memory faults, in a folder with ``model.py`` and ``data.npz``."""
    place = ["model.py:convolutional", "data.npz", "--out", "memory", "--threads", "1", "--batch", "4"]
    faults = ["--target", "memory", "--bits", "16-31", "--count", "70", "--seed", str(SEED)]
    return ["inject", *place, *faults, "--criterion", "top-1", "--criterion", "top-2", "--json"]


def write_inputs_of_the_command(folder: Path) -> None:
    """What the command reads."""
    data = networks.inputs(Convolutional)
    (folder / "model.py").write_text(MODEL_FILE, encoding="utf-8")
    np.savez(folder / "data.npz", x=data.x.numpy(), y=data.y.numpy())


def long_campaign(store: Path | None, *, resume: bool = False, stop_after: int | None = None) -> hp.Results:
    """The campaign that was stopped; run to its end, resumed, or stopped after so many faults.

    Raises:
        StoppedError: it was to be stopped.
    """

    def progress(done: int, _total: int | None) -> None:
        """Stop once enough faults have finished."""
        if stop_after is not None and done > stop_after:
            raise StoppedError

    plan = campaigns.campaign()
    return plan.run(count=_COUNT_OF_THE_STOPPED, seed=SEED, store=store, resume=resume, threads=1, progress=progress)


def protections() -> tuple[Any, ...]:
    """What the bundle protects its network with."""
    scores = campaigns.scores()
    bounds = replace(campaigns.ranges(), slack=0.0)  # as they were when the bundle was written
    return hp.Ranger(bounds), hp.Aspis(scores, fraction=0.25), hp.Parity(group=16)


def hardened() -> hp.runtime.HardenedModule:
    """The module of the bundle."""
    return hp.harden(campaigns.program(Convolutional), protections(), when=hp.runtime.Rotating(2))


def bytes_digest(tensor: Tensor) -> str:
    """SHA-256 of the values of a tensor."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def read_bundle(folder: Path) -> dict[str, Any]:
    """What a bundle does to inputs beyond its bounds, and what it holds."""
    module = hp.load_bundle(folder)
    x = networks.inputs(Convolutional).x
    with torch.no_grad():
        plain, far = module(x), module(16 * x)
    return {
        "outputs": bytes_digest(plain),
        "outputs out of range": bytes_digest(far),
        "labels": [protection.label for protection in module.protections],
        "memory": {name: bytes_digest(tensor) for name, tensor in sorted(module.memory().items())},
        "scheduled": repr(module.monitor.when),
    }


def read_ranges(path: Path) -> dict[str, list[float]]:
    """Bounds by site."""
    ranges = hp.Ranges.load(path)
    return {site: [float(bound.low), float(bound.high)] for site, bound in sorted(ranges.bounds.items())}


def read_scores(path: Path) -> dict[str, Any]:
    """Scores by site, the best of them, and where they are from."""
    scores = hp.Scores.load(path)
    return {
        "score": scores.score,
        "values": {site: bytes_digest(values) for site, values in sorted(scores.values.items())},
        "top tenth": {site: chosen.tolist() for site, chosen in sorted(scores.top(0.1).items())},
    }


def take_over_versions(folder: Path, like: Path, *, file: str = "manifest.json", key: str | None = None) -> None:
    """Let a copy of a fixture say the versions in force here, without which it would be refused, and change no more.

    Args:
        folder: the copy.
        like: a folder of the same kind, made here.
        file: in both, that names the versions.
        key: of the entry that holds them; None: they lie at the top.
    """
    there, here = read_json(folder / file), read_json(like / file)
    held, wanted = (there, here) if key is None else (there[key], here[key])
    held["versions"] = wanted["versions"]
    write_json(folder / file, there)


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
