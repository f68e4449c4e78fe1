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
from hoplon.injection.memory_budget import tensor_bytes
from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.regions import RegionReplay
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
        most_bytes: held at most; one batch is held in any case.
        first: of the first batches, where they are there.
    """

    def __init__(
        self, run: Callable[[int], T], tensors: Callable[[T], Iterable[Any]], most_bytes: int, first: Iterable[T] = ()
    ) -> None:
        self._run, self._tensors, self._most_bytes = run, tensors, most_bytes
        self._held = dict(enumerate(first))
        self._bytes = {batch: tensor_bytes(tensors(values)) for batch, values in self._held.items()}

    def __getitem__(self, batch: int) -> T:
        if batch not in self._held:
            values = self._run(batch)
            size = tensor_bytes(self._tensors(values))
            while self._held and sum(self._bytes.values()) + size > self._most_bytes:
                newest, _ = self._held.popitem()
                del self._bytes[newest]
            self._held[batch], self._bytes[batch] = values, size
        return self._held[batch]

    @property
    def capacity(self) -> int:
        """Number of batches that the budget holds, as large as the first of those that are held; 1 if none is."""
        return max(1, self._most_bytes // max(next(iter(self._bytes.values()), self._most_bytes), 1))


@dataclass(eq=False)
class SharedReplay:
    """One replay, and its golden values, for tables of value faults on much the same sites. Pickled without them."""

    arm: Arm
    _sites: dict[str, ValueSite] = field(default_factory=dict, init=False, repr=False)
    _current: tuple[Replay, GoldenCache[Golden]] | None = field(default=None, init=False, repr=False)
    _room: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kept = self.arm.reference.kept
        known = kept.replay if kept is not None else None
        own = self.arm.budget.golden / self.arm.reference.input_batches
        self._room = known.room if isinstance(known, RegionReplay) else own  # which workers keep, without the rest

    @property
    def known(self) -> tuple[Replay, int] | None:
        """The replay, and how many input batches are held at once; None where there was no pass on its way yet."""
        current, kept = self._current, self.arm.reference.kept
        if current is None and kept is not None:
            current = self._with_cache(kept.replay, kept.batches)
        return None if current is None else (current[0], current[1].capacity)

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
            replay = replay_of(reference.program, arm.overlay, reference.batch, every, arm.placement, room=self._room)
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
    program, kept = arm.reference.program, arm.reference.kept
    if kept is not None and batch < len(kept.batches) and not isinstance(program, EagerProgram):
        golden = kept.batches[batch].delivered.computed()  # of the unprotected model: as a fault meets them
        with torch.inference_mode():
            return {number: golden[step] for step in sorted(steps) for number in (step, ~step)}
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
