"""Golden values of input batches: a cache with a budget, and what fills it for replay and for sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from hoplon.injection.arm import Arm
from hoplon.injection.golden_run import replay_of
from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.replay import Replay
from hoplon.injection.replay.values import delivered
from hoplon.program.eager import EagerProgram
from hoplon.program.program import Program
from hoplon.program.sites import ValueSite

T = TypeVar("T")


@final
class GoldenCache(Generic[T]):
    """Golden values by input batch; when the budget is spent the newest go, as batches are asked for in turn.

    Args:
        run: gives the values of a batch.
        tensors: the tensors among them, and anything else.
        most_bytes: held at most, counted once per tensor; one batch is held in any case.
        first: of the first batches, where they are there.
    """

    def __init__(
        self, run: Callable[[int], T], tensors: Callable[[T], Iterable[Any]], most_bytes: int, first: Iterable[T] = ()
    ) -> None:
        self._run, self._tensors, self._most_bytes = run, tensors, most_bytes
        self._held = dict(enumerate(first))

    def __getitem__(self, batch: int) -> T:
        if batch not in self._held:
            values = self._run(batch)
            while self._held and self._bytes([*self._held.values(), values]) > self._most_bytes:
                self._held.popitem()
            self._held[batch] = values
        return self._held[batch]

    @property
    def capacity(self) -> int:
        """Number of batches that the budget holds, as large as the first of those that are held."""
        return max(1, self._most_bytes // max(self._bytes([next(iter(self._held.values()))]), 1))

    def _bytes(self, batches: Iterable[T]) -> int:
        tensors = {id(x): x for values in batches for x in self._tensors(values) if isinstance(x, Tensor)}
        return sum(tensor.nbytes for tensor in tensors.values())


@dataclass(eq=False)
class SharedReplay:
    """One replay, and its golden values, for tables of value faults on much the same sites. Pickled without them."""

    arm: Arm
    _sites: dict[str, ValueSite] = field(default_factory=dict, init=False, repr=False)
    _current: tuple[Replay, GoldenCache[Golden]] | None = field(default=None, init=False, repr=False)

    def of(self, sites: Sequence[ValueSite]) -> tuple[Replay, GoldenCache[Golden]]:
        """Return the replay and its cache; new ones, for all sites so far, when there are new sites."""
        arm, reference = self.arm, self.arm.reference
        if self._current is None and (kept := reference.kept) is not None:
            self._sites |= {site.name: site for site in kept.replay.sites if isinstance(site, ValueSite)}
            self._current = self._with_cache(kept.replay, kept.batches)
        new = {site.name: site for site in sites if site.name not in self._sites}
        self._sites |= new
        if new or self._current is None:
            every = tuple(self._sites.values())
            replay = replay_of(reference.program, arm.overlay, reference.batch, every, arm.placement)
            self._current = self._with_cache(replay)
        return self._current

    def _with_cache(self, replay: Replay, first: Sequence[Golden] = ()) -> tuple[Replay, GoldenCache[Golden]]:
        reference, most_bytes = self.arm.reference, self.arm.budget.golden
        return replay, GoldenCache(
            lambda batch: replay.golden(reference.leaves(batch)[0]), Golden.tensors, most_bytes, first
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_current": None}


@dataclass(eq=False)
class FaultFree:
    """Fault-free values of chosen steps, for batches of eligible inputs under an overlay. Pickled without them.

    At most half of the budget for golden values is used.
    """

    arm: Arm
    _steps: set[int] = field(default_factory=set, init=False, repr=False)
    _cache: GoldenCache[Mapping[int, Any]] | None = field(default=None, init=False, repr=False)

    def want(self, steps: Iterable[int]) -> None:
        """Keep the values of these steps of the program too."""
        new = set(steps) - self._steps
        if new:
            self._steps |= new
            self._cache = None

    def __getitem__(self, batch: int) -> Mapping[int, Any]:
        """Return, by step, the value as its readers get it; by ``~step``, as a fault meets it."""
        if self._cache is None:
            run = partial(_fault_free, self.arm, frozenset(self._steps))  # not of this object, or both would stay
            self._cache = GoldenCache(run, Mapping.values, self.arm.budget.golden // 2)
        return self._cache[batch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


def _fault_free(arm: Arm, steps: frozenset[int], batch: int) -> dict[int, Any]:
    program = arm.reference.program
    protections = {program.site_steps[name]: p for name, p in arm.overlay.values.items()}
    values: dict[int, Any] = {}

    def keep(step: int, value: Any) -> Any:
        result = delivered(protections, step, value)
        if step in steps:
            values[step] = _copied(program, result)
            values[~step] = _copied(program, value) if arm.placement == "before" else values[step]
        return result

    leaves, _ = arm.reference.leaves(batch)
    read = program.read_values(leaves, program.memory())
    with torch.inference_mode():
        values |= {step: value for step, value in read.items() if step in steps}
        program.run(leaves, hook=keep)
    return values


def _copied(program: Program, value: Any) -> Any:
    """Return a value that no operator in place changes later; only eager programs have such operators."""
    return value.clone() if isinstance(program, EagerProgram) and isinstance(value, Tensor) else value
