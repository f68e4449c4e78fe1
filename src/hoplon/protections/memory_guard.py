"""Guards of memory: what they promise, what a check finds, and which changes they refuse to take for soft errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError

_Suspect = TypeVar("_Suspect")
_BURST_WORDS = 1024  # a change of most of so many words, and no more, may still be one burst
_FEW_WORDS = 16  # most of fewer words say nothing: a fault can hit them all


@dataclass(frozen=True)
class GuardReport:
    """Findings of one check of memory.

    All counts are of words of memory (of blocks, where a guard cannot tell words). A detected word is one of:
    ``corrected``, restored bit for bit; ``mitigated``, made harmless but perhaps not what it was; ``uncorrectable``,
    still wrong. ``where`` names the storages of the detected ones.

    ``latency`` is how many forward passes may have run on a fault before this check came to it, where a schedule
    makes the checks; None where nothing bounds it. It is no finding, and equality of reports leaves it out.
    """

    checked: int = 0
    detected: int = 0
    corrected: int = 0
    uncorrectable: int = 0
    where: tuple[str, ...] = ()
    mitigated: int = 0
    latency: int | None = field(default=None, compare=False)

    def __add__(self, other: GuardReport) -> GuardReport:
        """Add the findings of two guards."""
        return GuardReport(
            self.checked + other.checked,
            self.detected + other.detected,
            self.corrected + other.corrected,
            self.uncorrectable + other.uncorrectable,
            tuple(dict.fromkeys(self.where + other.where)),
            self.mitigated + other.mitigated,
            max((bound for bound in (self.latency, other.latency) if bound is not None), default=None),
        )


class Guard(ABC):
    """A protection of memory, armed on live tensors, which it repairs in place."""

    @property
    @abstractmethod
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name, live: copies, sums, indices. It can be hit as well."""

    @property
    def extra_bytes(self) -> int:
        """Memory that the guard holds beside the model's, in bytes."""
        return sum(tensor.nbytes for tensor in self.copies.values())

    @property
    @abstractmethod
    def protected_bytes(self) -> int:
        """Memory of the model that the guard watches, in bytes."""

    @abstractmethod
    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Compare the memory with what the guard knows; repair what it can.

        Args:
            turn: which slice to check, in ``range(turns)``.
            turns: into how many slices of about equal size the memory is cut; one is all of it. Checks of all turns
                together find what one whole check finds.
        Raises:
            StaleGuardError: memory that looks updated, not hit; nothing was written.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Take the memory as it is now for correct, after a legitimate change."""


class StorageGuard(Guard, Generic[_Suspect]):
    """A guard of whole storages by name: a check refuses updates of all that are suspect before it repairs any."""

    def __init__(self, storages: Mapping[str, Tensor]) -> None:
        self._live = storages
        self._note_versions()

    @property
    @override
    def protected_bytes(self) -> int:
        return sum(live.nbytes for live in self._live.values())

    @override
    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        with torch.inference_mode():
            report, suspects = self._suspects(turn, turns)
            for name, suspect in suspects.items():
                written = version_of(self._live[name]) != self._versions[name]
                self._refuse_update(name, suspect, written=written)
            for name, suspect in suspects.items():
                report += self._repaired(name, suspect)
                self._versions[name] = version_of(self._live[name])
        return report

    @abstractmethod
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, Mapping[str, _Suspect]]:
        """Compare a slice: words checked, and by storage what is wrong in it."""

    @abstractmethod
    def _refuse_update(self, name: str, suspect: _Suspect, *, written: bool) -> None:
        """Apply :func:`require_no_update` to a suspect storage."""

    @abstractmethod
    def _repaired(self, name: str, suspect: _Suspect) -> GuardReport:
        """Repair a suspect storage and report it."""

    def _note_versions(self) -> None:
        self._versions = {name: version_of(live) for name, live in self._live.items()}


@final
class StaleGuardError(HoplonError):
    """Memory holds other values than its guard knows, and too many of them for soft errors."""

    def __init__(self, name: str, differing: int, total: int) -> None:
        super().__init__(
            f"expected memory that only soft errors may have changed, got other values in {differing:,} of {total:,} "
            f"words of {name}; call refresh() of model.monitor, or of the guard, if it was updated on purpose, load "
            "the weights again if it was not"
        )


def check_all(guards: Sequence[Guard], *, turn: int = 0, turns: int = 1) -> list[GuardReport]:
    """Check with each guard, in order.

    What one guard cannot repair, another one of the same memory perhaps can. So guards that report uncorrectable words
    look once more after all have had their turn; of what they found first, that which they find right or repair now
    counts as corrected.

    Args:
        turn: as for :meth:`Guard.check`.
        turns: likewise.
    Raises:
        StaleGuardError: memory that looks updated, not hit.
    """
    reports = [guard.check(turn=turn, turns=turns) for guard in guards]
    if len(guards) > 1:
        for number, first in enumerate(reports):
            if first.uncorrectable:
                left = min(guards[number].check(turn=turn, turns=turns).uncorrectable, first.uncorrectable)
                mended = first.uncorrectable - left
                reports[number] = replace(first, corrected=first.corrected + mended, uncorrectable=left)
    return reports


def require_no_update(name: str, *, differing: int, total: int, written: bool) -> None:
    """Refuse a change that an update of the weights makes, and soft errors do not.

    An update changes most words of a tensor. So does a burst that covers a small one: there, torch's version counter
    decides, which moves when an operator writes; a change of fewer than 16 words never counts as an update. A guard
    asks this of all its storages before it repairs any.

    Args:
        differing: words that are not what the guard knows.
        total: words of the storage that the guard knows.
        written: whether the version counter of the storage moved since the guard last looked.
    Raises:
        StaleGuardError: most words of a storage differ, and it was written to or is larger than bursts are.
    """
    if 2 * differing > total and total >= (_FEW_WORDS if written else _BURST_WORDS):
        raise StaleGuardError(name, differing, total)


def of_turn(count: int, turn: int, turns: int) -> range:
    """Return those of ``count`` consecutive pieces that belong to a turn; turns differ by one piece at most.

    Raises:
        HoplonError: a turn out of range.
    Example:
        >>> [list(of_turn(5, turn, 2)) for turn in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    if not 0 <= turn < turns:
        raise HoplonError(f"expected a turn in [0, {turns}), got {turn}")
    return range(count * turn // turns, count * (turn + 1) // turns)


def version_of(tensor: Tensor) -> int:
    """Return how often operators wrote to the storage, as far as torch counts: 0 for tensors made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version
