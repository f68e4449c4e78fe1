"""Guards over the live memory of a module: armed on it, checked when a schedule says so, and what they found."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, final
from weakref import WeakSet

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from hoplon.errors import HoplonError, checked, unchecked
from hoplon.formats.digest import digest_of
from hoplon.protections.base import Protection
from hoplon.protections.memory_guard import Guard, GuardReport, check_all
from hoplon.protections.runtime.bindings import Bindings, memory_of, written_in_training
from hoplon.protections.runtime.schedule import EveryForward, When
from hoplon.zoo.seeding import one_thread

_LOG = logging.getLogger("hoplon")
_EVENTS_KEPT = 1000
_Called = TypeVar("_Called", bound=Callable[..., Any])


def _uncompiled(function: _Called) -> _Called:
    """A function that the compiler calls and does not look into: what it reads must be read anew each time.

    Where no compiler watches what this thread calls, nothing has to be kept from it, and a small check takes half as
    long without.
    """
    apart = torch.compiler.disable(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        watched = torch.compiler.is_compiling() or get_eval_frame_callback() is not None
        return (apart if watched else function)(*args, **kwargs)

    return cast("_Called", called)


@final
class UncorrectableMemory(HoplonError):  # noqa: N818 -- the name of the outcome
    """A guard found wrong words that it cannot repair; ``report`` says how many and where."""

    def __init__(self, report: GuardReport) -> None:
        super().__init__(
            f"expected memory that its guards can repair, got {report.uncorrectable} uncorrectable words in "
            f"{', '.join(report.where)}; load the weights again with load_state_dict"
        )
        self.report = report


@final
@dataclass(frozen=True)
class GuardEvent:
    """A check that found something.

    ``time`` in seconds since 1970, ``forward`` how many forward passes had been begun, ``guard`` the label of the
    protection, ``report`` what it found.
    """

    time: float
    forward: int
    guard: str
    report: GuardReport

    def __str__(self) -> str:
        found = self.report
        parts = (
            (found.corrected, "corrected"),
            (found.mitigated, "made harmless"),
            (found.uncorrectable, "beyond repair"),
        )
        became = ", ".join(f"{count} {what}" for count, what in parts if count) or "only detected"
        return (
            f"{self.guard} found {found.detected} wrong words in {', '.join(found.where) or 'memory'} after "
            f"{self.forward} forward passes: {became}"
        )


@final
@checked
class GuardMonitor:
    """The guards of a module and what happens around their checks: ``monitor`` of a hardened or a guarded model.

    Attributes:
        when: which check comes before which forward pass.
        report: findings of the last check.
        events: the checks that found something, the last thousand of them; they also go to the logger "hoplon".
        forwards: forward passes begun.
        left_out: names of what no guard watches: those chosen to be left out, and when the guards are armed in training
            mode the buffers that forward writes to there.
        on_uncorrectable: called where a check finds what it cannot repair; None raises.
    """

    def __init__(
        self,
        root: nn.Module,
        protections: Iterable[Protection],
        *,
        when: When | None = None,
        on_uncorrectable: Callable[[GuardReport], None] | None = None,
        vouched: str | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        schedule = EveryForward() if when is None else when
        self.root = root
        self.protections = tuple(protections)
        self.when = schedule
        self.on_uncorrectable = on_uncorrectable
        self.report = self._together = GuardReport()
        self._found: tuple[GuardReport | int | None, ...] = ()
        self.events: deque[GuardEvent] = deque(maxlen=_EVENTS_KEPT)
        self.forwards = 0
        self._leave_out = frozenset(leave_out)
        self.left_out: tuple[str, ...] = ()
        self._armed: list[tuple[str, Guard]] = []
        self._vouched = vouched
        self._bindings: Bindings | None = None
        self._lock = threading.RLock()
        self._threads: Callable[[], AbstractContextManager[None]] = nullcontext
        _note_forks()
        _monitors.add(self)
        if vouched is None:
            self.arm()

    def arm(self) -> None:
        """New guards on the memory as it is now, which is taken for correct."""
        guarding = [protection for protection in self.protections if type(protection).arm is not Protection.arm]
        training = written_in_training(self.root) if guarding else []
        if training:
            _LOG.warning(
                "%s left out of what is guarded: forward writes to it in training mode; arm in eval mode to guard it",
                ", ".join(training),
            )
        self.left_out = tuple(sorted(self._leave_out.union(training)))
        memory = memory_of(self.root, self.left_out) if guarding else {}
        armed = [(protection.label, protection.arm(memory)) for protection in guarding]
        self._armed = [(label, guard) for label, guard in armed if guard is not None]
        self._vouched = None
        self._bindings = Bindings(self.root, self.left_out)

    def refresh(self) -> None:
        """Take the memory as it is now for correct, also where tensors were replaced."""
        with self._lock:
            left_out = self._leave_out.union(written_in_training(self.root))
            if self._bindings is not None and self._bindings.same() and left_out == set(self.left_out):
                for guard in self.guards:
                    guard.refresh()
            else:
                self.arm()

    def copied(self, memo: dict[Any, Any]) -> GuardMonitor:
        """A monitor of a deep copy of the module.

        Where the module is copied and this comes along in its hook, the copy of the module is not whole yet. So its
        guards are armed when they are first used, on what must be the memory that the original vouches for here.
        """
        return GuardMonitor(
            deepcopy(self.root, memo),
            self.protections,
            when=self.when,
            on_uncorrectable=self.on_uncorrectable,
            vouched=digest_of(memory_of(self.root, self.left_out)),
            leave_out=self._leave_out,
        )

    @property
    def armed(self) -> list[tuple[str, Guard]]:
        """The label of each protection that guards memory, and its guard, in the order of the protections.

        Raises:
            HoplonError: the module is a copy and was changed before its guards were armed.
        """
        if self._vouched is not None:
            left_out = self._leave_out.union(written_in_training(self.root))
            if digest_of(memory_of(self.root, left_out)) != self._vouched:
                raise HoplonError(
                    "expected the copy of a guarded model to hold what was copied, got other values before its guards "
                    "were armed; copy it again, or call monitor.refresh() if it was changed on purpose"
                )
            self.arm()
        return self._armed

    @property
    def guards(self) -> list[Guard]:
        """The armed guards."""
        return [guard for _, guard in self.armed]

    @property
    def extra_bytes(self) -> int:
        """Memory of the guards, in bytes."""
        return sum(guard.extra_bytes for guard in self.guards)

    @property
    def guarantees(self) -> dict[str, str]:
        """By label, what each guard repairs for certain, only detects and misses; under "when", when it looks."""
        stated = {protection.label: protection.guarantee for protection in self.protections}
        return {label: stated[label] for label, _ in self.armed} | {"when": self.when.text}

    @_uncompiled
    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Let every guard compare and repair a slice of the memory, or all of it; what they found together.

        Raises:
            HoplonError: a tensor was replaced since the guards were armed, so that they watch memory nobody reads.
            StaleGuardError: the memory looks updated, not hit.
        """
        return self._check(turn, turns)

    @_uncompiled
    def check_due(self) -> GuardReport | None:
        """Make the check that ``when`` asks for before the next forward pass, and count the pass; None: none is due.

        A pass that a check refuses does not count: the same check comes again before the next one.

        Raises:
            UncorrectableMemory: a guard found what it cannot repair, and no ``on_uncorrectable`` was given.
            HoplonError, StaleGuardError: see :meth:`check`.
        """
        with self._lock:
            due = unchecked(type(self.when).due)(self.when, self.forwards) if self.armed else None
            report = None
            if due is not None:
                turn, turns = due
                report = self._check(turn, turns)
                if report.uncorrectable:
                    self.require_correct(report)
            self.forwards += 1
            return report

    def require_correct(self, report: GuardReport) -> GuardReport:
        """The report, once the callback has seen what is uncorrectable in it.

        Raises:
            UncorrectableMemory: there is such, and no callback.
        """
        if report.uncorrectable:
            if self.on_uncorrectable is None:
                raise UncorrectableMemory(report)
            self.on_uncorrectable(report)
        return report

    def in_a_copy(self) -> None:
        """Go on in a process that was forked: its memory came along, who held the lock and threads of torch did not."""
        self._lock = threading.RLock()
        self._threads = one_thread

    def _check(self, turn: int, turns: int) -> GuardReport:
        with self._lock, self._threads():
            armed = self.armed
            if self._bindings is None or not armed:
                self.report = GuardReport()
                return self.report
            self._bindings.require_same(turn=turn, turns=turns)
            reports = check_all([guard for _, guard in armed], turn=turn, turns=turns)
            found = (*reports, self.when.latency)
            if found != self._found:  # as a rule the same objects: no guard found anything
                self._found = found
                self._together = replace(sum(reports, GuardReport()), latency=self.when.latency)
            self.report = self._together
            if self.report.detected:
                for (label, _), report in zip(armed, reports, strict=True):
                    if report.detected:
                        self._note(GuardEvent(time.time(), self.forwards, label, report))
            return self.report

    def _note(self, event: GuardEvent) -> None:
        self.events.append(event)
        _LOG.log(logging.ERROR if event.report.uncorrectable else logging.WARNING, "%s", event)


_monitors: WeakSet[GuardMonitor] = WeakSet()


@functools.cache
def _note_forks() -> None:
    """Have monitors go on in processes that this one forks, once for this process."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_go_on)


def _go_on() -> None:
    for monitor in _monitors:
        monitor.in_a_copy()
