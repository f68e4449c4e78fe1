"""What a training keeps after each epoch, so that it goes on where it was stopped and gives the same weights."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from hoplon.errors import DataError
from hoplon.zoo.cache import load_tensors, save_tensors

_BATCH = 250


@final
@dataclass(frozen=True)
class Epoch:
    """One line of a training curve.

    Attributes:
        loss: mean over the epoch's samples, as changed for training.
        right: share of the images set aside that the network gets right after it; None where none are.
        seconds: it took, without those to keep it.
    """

    loss: float
    right: float | None
    seconds: float


@final
@dataclass(frozen=True, eq=False)
class Run:
    """The parts of a training that change: network, optimiser, plan of step sizes, generator of order and changes."""

    net: nn.Module
    optimiser: torch.optim.Optimizer
    plan: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator


@final
@dataclass
class Diary:
    """A training's file and curve.

    Attributes:
        path: of the file; it is there from the first epoch on, until :meth:`end`.
        data: digest of what is trained on; a file of other data is refused.
        aside: images, as the network takes them, and labels that it is not trained on; None: none.
        curve: of the epochs so far.
    """

    path: Path
    data: str
    aside: tuple[Tensor, Tensor] | None = None
    curve: list[Epoch] = field(default_factory=list)
    _since: float = 0.0

    def resume(self, run: Run) -> int:
        """Put a run where the file left it, the global generator of torch as well; epochs that are done.

        Raises:
            DataError: a damaged file, or one of other data or of another network.
        """
        self._since = time.perf_counter()
        if not self.path.is_file():
            return 0
        tensors, notes = load_tensors(self.path)
        if notes.get("data") != self.data:
            raise DataError(f"expected a training on the data in HOPLON_DATA in {self.path}, got another; remove it")
        said = json.loads(notes["said"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, what = name.split(".")
                state.setdefault(int(number), {})[what] = tensor
        try:
            run.net.load_state_dict(_inside(tensors, "net."))
            run.optimiser.load_state_dict({"state": state, "param_groups": said["groups"]})
        except (RuntimeError, ValueError) as error:
            raise DataError(f"expected a training of the same network in {self.path}; remove it: {error}") from None
        run.plan.load_state_dict(said["plan"])
        run.generator.set_state(tensors["order"])
        torch.set_rng_state(tensors["draws"])
        self.curve = [Epoch(**epoch) for epoch in said["curve"]]
        return len(self.curve)

    def keep(self, run: Run, loss: float) -> None:
        """Write an epoch that has ended with this mean loss.

        Raises:
            DataError: the folder cannot be written to.
        """
        seconds = time.perf_counter() - self._since
        right = None if self.aside is None else share_right(run.net, *self.aside)
        self.curve.append(Epoch(loss, right, round(seconds, 2)))
        stored = run.optimiser.state_dict()
        said = {
            "groups": stored["param_groups"],
            "plan": {name: value for name, value in run.plan.state_dict().items() if not callable(value)},
            "curve": [asdict(epoch) for epoch in self.curve],
        }
        tensors: dict[str, Tensor] = {f"net.{name}": value for name, value in run.net.state_dict().items()}
        for number, state in stored["state"].items():
            tensors.update({f"optimiser.{number}.{name}": value for name, value in state.items()})
        tensors |= {"order": run.generator.get_state(), "draws": torch.get_rng_state()}
        save_tensors(self.path, tensors, {"data": self.data, "said": json.dumps(said)})
        self._since = time.perf_counter()

    def end(self) -> None:
        """Remove the file: the weights are kept elsewhere."""
        self.path.unlink(missing_ok=True)


def share_right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images, as the network takes them, of which it finds the label, in eval mode; its mode stays."""
    training = net.training
    net.eval()
    with torch.inference_mode():
        found = [net(part).argmax(1) for part in x.split(_BATCH)]
    net.train(training)
    return float((torch.cat(found) == y).double().mean())


def _inside(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
