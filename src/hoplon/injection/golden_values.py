"""Golden values that the tables of a campaign have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hoplon.injection.golden_run import GoldenRun, replay_of
from hoplon.injection.memory_budget import USUAL, Budget
from hoplon.injection.replay.golden import Golden, Placement
from hoplon.injection.replay.replay import Replay
from hoplon.program.sites import ValueSite
from hoplon.protections.base import Overlay


class GoldenCache:
    """Golden values by input batch; the oldest go when the budget is spent."""

    def __init__(self, reference: GoldenRun, replay: Replay, most_bytes: int) -> None:
        self._reference, self._replay, self._most_bytes = reference, replay, most_bytes
        self._held: OrderedDict[int, Golden] = OrderedDict()

    def __getitem__(self, number: int) -> Golden:
        if number not in self._held:
            leaves, _ = self._reference.leaves(number)
            golden = self._replay.golden(leaves)
            while self._held and sum(g.bytes for g in self._held.values()) + golden.bytes > self._most_bytes:
                self._held.popitem(last=False)
            self._held[number] = golden
        return self._held[number]


@dataclass(eq=False)
class SharedReplay:
    """One replay, and its golden values, for tables of value faults on much the same sites. Pickled without them."""

    reference: GoldenRun
    overlay: Overlay
    placement: Placement
    budget: Budget = USUAL
    _sites: dict[str, ValueSite] = field(default_factory=dict, init=False, repr=False)
    _made: tuple[Replay, GoldenCache] | None = field(default=None, init=False, repr=False)

    def of(self, sites: Sequence[ValueSite]) -> tuple[Replay, GoldenCache]:
        """The replay; a new one, for all sites so far, when there are new ones."""
        new = {site.name: site for site in sites if site.name not in self._sites}
        self._sites |= new
        if new or self._made is None:
            chosen = tuple(self._sites.values())
            replay = replay_of(self.reference.program, self.overlay, self.reference.batch, chosen, self.placement)
            self._made = replay, GoldenCache(self.reference, replay, self.budget.golden)
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}
