"""A hardened student at the wheel, with faults in its memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.faults.table import Target
from hoplon.formats.base import same_bits
from hoplon.formats.named import format_named
from hoplon.injection.replay.golden import Arrival
from hoplon.injection.working_memory import strike_word
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.base import Protection, ValueProtection
from hoplon.protections.memory_guard import GuardReport, StaleGuardError
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.runtime.schedule import OnDemand
from hoplon_studies.driving.previous_frame import LastSound, PreviousFrame
from hoplon_studies.driving.student import waypoints_of
from hoplon_studies.driving.world.camera import as_input
from hoplon_studies.driving.world.roads import Floats
from hoplon_studies.driving.world.simulator import World

Word = Mapping[str, Any]
"""A row of a fault table."""


@final
@dataclass(frozen=True, eq=False)
class FaultsInFlight(Protection):
    """No protection: it strikes outputs of operators, in front of what bounds them.

    ``due``: faults of the next forward pass, by site.
    """

    due: dict[str, Word] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in reports."""
        return "faults in flight"

    def values(self, program: Program) -> Mapping[str, ValueProtection]:
        """One at every operator output."""
        return {site.name: _Strike(self.due, site.name) for site in Values().select(program)}


@dataclass(frozen=True, eq=False)
class _Strike(ValueProtection):
    due: Mapping[str, Word]
    site: str

    def __call__(self, value: Tensor) -> Tensor:
        return self.apply_(value.clone())

    def apply_(self, value: Tensor) -> Tensor:
        if (word := self.due.get(self.site)) is not None:
            _flip(value, word)
        return value


@final
class StruckStudent:
    """A student with its protections, as :func:`hoplon.harden` makes it; its live memory is struck once an episode.

    Its guards check all memory before each forward pass, as always. A fault that arrives "before" the check meets the
    one before the first pass; one that arrives "after" drives for one decision before the next check comes to it. Where
    a guard reports memory that it cannot repair, the student says stop.

    Args:
        program: the student.
        protections: of this arm.
        target: what faults strike: of ``"values"`` one in each decision, one after the other.
    Attributes:
        found: what the guards found since the fault struck.
    """

    def __init__(self, program: Program, protections: Iterable[Protection], target: Target = "memory") -> None:
        protections = tuple(protections)
        previous = next((one for one in protections if isinstance(one, PreviousFrame)), None)
        self._last_sound = None if previous is None else LastSound(previous.jumps)
        self._in_flight = FaultsInFlight() if target == "values" else None
        self.module = harden(program, [*filter(None, [self._in_flight]), *protections], when=OnDemand())
        self._live = self.module.memory()
        self._golden = {name: tensor.clone() for name, tensor in self._live.items()}
        self._effects = self.module.overlay.label if self.module.overlay.values else ""
        self._late: tuple[Word, ...] = ()
        self._coming: Iterator[Word] = iter(())
        self._first: GuardReport | None = None
        self.found = GuardReport()

    @contextmanager
    def under(
        self, fault: Iterable[Word], arrival: Arrival = "before", *, last: Floats | None = None
    ) -> Iterator[str | None]:
        """A scope in which a fault is in memory; afterwards all of it is as it was, bit for bit.

        ``last``: the decision before the first one, where an episode is under way.

        Gives a name of what the student now computes, the same for arms whose guards left the same words and that
        bound the same values; None where that is not settled, since a check is still to come that changes something.
        """
        words = tuple(fault)
        if self._last_sound is not None:
            self._last_sound.begin(last)
        if self._in_flight is not None:
            self._coming, words = iter(words), ()
        try:
            with _unlogged():
                self._late = words if arrival == "after" and self.module.monitor.guards else ()
                if not self._late:
                    self._strike(words)
                self.found = self._first = self._check()
                yield self._settled()
        finally:
            for name, tensor in self._live.items():
                tensor.copy_(self._golden[name])
            self.module.monitor.refresh()

    def waypoints(self, picture: NDArray[np.uint8], world: World | None = None) -> Floats | None:
        """Check, then look."""
        report, self._first = self._first, None
        if report is None:
            report = self._check()
            self.found += report
        if report.uncorrectable:
            return None
        if self._late:
            self._strike(self._late)
            self._late = ()
        if self._in_flight is not None:
            self._in_flight.due.clear()
            self._in_flight.due.update({word["site"]: word for word in islice(self._coming, 1)})
        alarms = self.module.alarms
        said = waypoints_of(self.module(as_input(picture[None]))[0])
        if self._last_sound is None:
            return said
        return self._last_sound.choose(said, alarmed=self.module.alarms > alarms)

    @property
    def held(self) -> int:
        """Decisions since the fault struck in whose place an earlier one was followed."""
        return 0 if self._last_sound is None else self._last_sound.held

    def _strike(self, words: Iterable[Word]) -> None:
        for word in words:
            _flip(self._live[word["site"]], word)

    def _check(self) -> GuardReport:
        """Report of the guards; damage that they refuse to repair is uncorrectable, as in campaigns."""
        try:
            return self.module.check()
        except StaleGuardError:
            return GuardReport(detected=1, uncorrectable=1, where=tuple(self._live))

    def _settled(self) -> str | None:
        assert self._first is not None
        if self._in_flight is not None or self._late or self._first.uncorrectable or self._check().detected:
            return None
        digest = hashlib.sha256(self._effects.encode())
        for name, tensor in self._live.items():
            where = (~same_bits(tensor, self._golden[name])).reshape(-1).nonzero()[:, 0]
            digest.update(f"\n{name} {where.tolist()}\n".encode())
            digest.update(tensor.reshape(-1)[where].numpy().tobytes())
        return digest.hexdigest()


def _flip(tensor: Tensor, word: Word) -> None:
    keep, flip = (int(np.uint64(word[mask]).astype(np.int64)) for mask in ("keep", "flip"))
    strike_word(tensor, word["element"], form=format_named(word["format"]), keep=keep, flip=flip)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without a line in the log for each fault that a guard repairs: here they are struck on purpose."""
    logger = logging.getLogger("hoplon")
    before, logger.disabled = logger.disabled, True
    try:
        with torch.no_grad():
            yield
    finally:
        logger.disabled = before
