"""A hardened student at the wheel, with faults in its memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from hoplon.formats.base import same_bits
from hoplon.formats.named import format_named
from hoplon.injection.replay.golden import Arrival
from hoplon.injection.working_memory import strike_word
from hoplon.program.program import Program
from hoplon.protections.base import Protection
from hoplon.protections.memory_guard import GuardReport, StaleGuardError
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.runtime.schedule import OnDemand
from hoplon_studies.driving.camera import as_input
from hoplon_studies.driving.roads import Floats
from hoplon_studies.driving.simulator import World
from hoplon_studies.driving.student import waypoints_of

Word = Mapping[str, Any]
"""A row of a fault table."""


@final
class StruckStudent:
    """A student with its protections, as :func:`hoplon.harden` makes it; its live memory is struck once an episode.

    Its guards check all memory before each forward pass, as always. A fault that arrives "before" the check meets the
    one before the first pass; one that arrives "after" drives for one decision before the next check comes to it. Where
    a guard reports memory that it cannot repair, the student says stop.

    Args:
        program: the student.
        protections: of this arm.
    Attributes:
        found: what the guards found since the fault struck.
    """

    def __init__(self, program: Program, protections: Iterable[Protection]) -> None:
        self.module = harden(program, protections, when=OnDemand())
        self._live = self.module.memory()
        self._golden = {name: tensor.clone() for name, tensor in self._live.items()}
        self._effects = self.module.overlay.label if self.module.overlay.values else ""
        self._late: tuple[Word, ...] = ()
        self._first: GuardReport | None = None
        self.found = GuardReport()

    @contextmanager
    def under(self, fault: Iterable[Word], arrival: Arrival = "before") -> Iterator[str | None]:
        """A scope in which a fault is in memory; afterwards all of it is as it was, bit for bit.

        Gives a name of what the student now computes, the same for arms whose guards left the same words and that
        bound the same values; None where that is not settled, since a check is still to come that changes something.
        """
        words = tuple(fault)
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

    def waypoints(self, picture: NDArray[np.uint8], world: World) -> Floats | None:
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
        return waypoints_of(self.module(as_input(picture[None]))[0])

    def _strike(self, words: Iterable[Word]) -> None:
        for word in words:
            keep, flip = (int(np.uint64(word[mask]).astype(np.int64)) for mask in ("keep", "flip"))
            form = format_named(word["format"])
            strike_word(self._live[word["site"]], word["element"], form=form, keep=keep, flip=flip)

    def _check(self) -> GuardReport:
        """Report of the guards; damage that they refuse to repair is uncorrectable, as in campaigns."""
        try:
            return self.module.check()
        except StaleGuardError:
            return GuardReport(detected=1, uncorrectable=1, where=tuple(self._live))

    def _settled(self) -> str | None:
        assert self._first is not None
        if self._late or self._first.uncorrectable or self._check().detected:
            return None
        digest = hashlib.sha256(self._effects.encode())
        for name, tensor in self._live.items():
            where = (~same_bits(tensor, self._golden[name])).reshape(-1).nonzero()[:, 0]
            digest.update(f"\n{name} {where.tolist()}\n".encode())
            digest.update(tensor.reshape(-1)[where].numpy().tobytes())
        return digest.hexdigest()


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
