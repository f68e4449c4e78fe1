"""Fault-free values of input batches, for those who look at faults before they are run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.memory_budget import Budget
from hoplon.injection.replay.golden import Placement
from hoplon.program.eager import EagerProgram
from hoplon.program.program import Program
from hoplon.protections.base import Overlay


@dataclass(eq=False)
class FaultFree:
    """Runs batches of eligible inputs under an overlay; keeps what was asked for. Pickled without it.

    At most half of the budget for fault-free values is kept, the latest batches.
    """

    reference: GoldenRun
    overlay: Overlay
    placement: Placement
    budget: Budget
    _kept: set[int] = field(default_factory=set, init=False, repr=False)
    _held: OrderedDict[int, Mapping[int, Any]] = field(default_factory=OrderedDict, init=False, repr=False)

    def want(self, steps: Iterable[int]) -> None:
        """Keep the values of these steps of the program too."""
        new = set(steps) - self._kept
        if new:
            self._kept |= new
            self._held.clear()

    def __getitem__(self, batch: int) -> Mapping[int, Any]:
        """By step, the value as its readers get it; by ``~step``, as a fault meets it."""
        if batch not in self._held:
            values = self._run(batch)
            while self._held and _bytes([*self._held.values(), values]) > self.budget.golden // 2:
                self._held.popitem(last=False)
            self._held[batch] = values
        return self._held[batch]

    def _run(self, batch: int) -> dict[int, Any]:
        program = self.reference.program
        protections = {program.site_steps[name]: p for name, p in self.overlay.values.items()}
        values: dict[int, Any] = {}

        def keep(step: int, value: Any) -> Any:
            delivered = protections[step](value) if step in protections else value
            if step in self._kept:
                values[step] = _still(program, delivered)
                values[~step] = _still(program, value) if self.placement == "before" else values[step]
            return delivered

        leaves, _ = self.reference.leaves(batch)
        memory = program.memory()
        with torch.inference_mode():
            values |= {step: memory[name] for step, name in program.memory_steps.items() if step in self._kept}
            values |= {step: value for step, value in program.constants.items() if step in self._kept}
            values |= {s: leaf for s, leaf in zip(program.input_steps, leaves, strict=True) if s in self._kept}
            program.run(leaves, hook=keep)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}


def _still(program: Program, value: Any) -> Any:
    """What an operator in place will not change later; programs that are not eager have none."""
    return value.clone() if isinstance(program, EagerProgram) and isinstance(value, Tensor) else value


def _bytes(batches: Iterable[Mapping[int, Any]]) -> int:
    """Memory held, counted once per tensor."""
    held = {id(value): value.nbytes for values in batches for value in values.values() if isinstance(value, Tensor)}
    return sum(held.values())
