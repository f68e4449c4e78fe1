"""Guards of memory: what they promise, what a check finds, and which changes they refuse to take for soft errors."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

from hoplon.errors import HoplonError, checked

_Suspect = TypeVar("_Suspect")
_version_of = attrgetter("_version")
_BURST_WORDS = 1024  # a change of most words of one storage of fewer may be one burst
_FEW_WORDS = 16  # so may one of most words of several storages that have fewer in all
_NAMED = 5  # storages beside the first one in a message
_as_is = nullcontext[None]()


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


@functools.lru_cache(maxsize=1024)
def nothing_found(checked: int) -> GuardReport:
    """The report of a check of so many words, all of them right."""
    return GuardReport(checked)


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


class Change(NamedTuple):
    """What a guard finds changed in a storage.

    Attributes:
        differing: words that are not what the guard knows, at least; a damaged copy is no change of the storage.
        total: words of the storage that the guard knows.
        throughout: most of them differ.
    """

    differing: int
    total: int
    throughout: bool


@checked
def change(differing: int, total: int) -> Change:
    """Return the change of a storage all of whose words were compared."""
    return Change(differing, total, 2 * differing > total)


@final
class Counters:
    """Torch's version counters of memory as they were when a guard last found it right.

    An operator that writes moves the counter of what it writes to. Soft errors never do; neither do guards, which write
    through ``.data``. Two writers that torch does not count are counted: fused optimizers, from the first guard on, and
    batch norm in training, by the counter of its batches.

    Args:
        memory: all that was given to be guarded; views and names that share memory are written to together.
    """

    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        _count_fused_steps()
        self._memory = dict(memory)
        self._counted = {name: tensor for name, tensor in memory.items() if not tensor.is_inference()}
        self._known = self.read()

    def read(self) -> list[int]:
        """The counters as they are; tensors made in inference mode have none."""
        return list(map(_version_of, self._counted.values()))

    def note(self, versions: list[int] | None = None) -> None:
        """Take memory for right as it was at these counters; by default, now."""
        self._known = self.read() if versions is None else versions

    def require_no_update(self, changes: Mapping[str, Change]) -> None:
        """Refuse changes that an update of the weights makes, and soft errors do not.

        A guard asks this of everything that it finds changed before it repairs any. Where the counter moved, a single
        word is enough. Where it did not, most words of a storage of at least 1,024, or of several storages with at
        least 16 words in all, are an update that torch did not count; what is less may be a burst.

        Raises:
            StaleGuardError: names a storage that was updated.
        """
        changed = {name: found for name, found in changes.items() if found.differing}
        if not changed:
            return
        counted = zip(self._counted, self._known, self.read(), strict=True)
        moved = [name for name, then, now in counted if then != now]
        written = {name for name in changes if any(self._writes(by, name) for by in moved)}
        throughout = {name: found for name, found in changes.items() if found.throughout and name not in written}
        several = len(throughout) > 1 and sum(found.total for found in throughout.values()) >= _FEW_WORDS
        large = {name for name, found in throughout.items() if found.total >= _BURST_WORDS}
        updated = [name for name in changed if name in written or name in large or several]
        if updated:
            first, *others = sorted(updated, key=lambda name: name not in moved)
            raise StaleGuardError(first, changed[first].differing, changed[first].total, others)

    def _writes(self, moved: str, name: str) -> bool:
        """Return True if what moved one counter may have written to the memory of a name."""
        module = moved.removesuffix("num_batches_tracked")
        if module != moved and name in (f"{module}running_mean", f"{module}running_var"):
            return True
        first, second = _extent(self._memory[moved]), _extent(self._memory[name])
        return first[0] == second[0] and first[1] < second[2] and second[1] < first[2]


class StorageGuard(Guard, Generic[_Suspect]):
    """A guard of storages by name: a check refuses updates of any of them before it repairs one.

    Args:
        memory: all that was given to be guarded.
        live: what is guarded of it, to be written to unseen by the counters: :func:`distinct` gives that.
    """

    compares_all: ClassVar[bool] = True
    """A check that finds nothing proves right all that a later repair may write."""

    def __init__(self, memory: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        self._live = live
        self._counters = Counters(memory)

    @property
    @override
    def protected_bytes(self) -> int:
        return sum(live.nbytes for live in self._live.values())

    @override
    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        with inference():
            versions = self._counters.read()  # before the look: what is written meanwhile is written after it
            report, suspects = self._suspects(turn, turns)
            if suspects:
                every = suspects if turns == 1 else self._suspects(0, 1)[1]
                self._counters.require_no_update(self._changes(every))
                for name, suspect in suspects.items():
                    try:
                        report += self._repaired(name, suspect)
                    except ReadOnlyMemory:
                        left = max(1, self._changes({name: suspect})[name].differing)
                        report += GuardReport(0, left, 0, left, (name,))
            elif turns == 1 and self.compares_all:
                self._counters.note(versions)
        return report

    @abstractmethod
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, Mapping[str, _Suspect]]:
        """Compare a slice: words checked, and by storage what is wrong in it."""

    @abstractmethod
    def _changes(self, suspects: Mapping[str, _Suspect]) -> Mapping[str, Change]:
        """Compute what changed in the suspect storages; and in others, where suspects do not tell all that changed."""

    @abstractmethod
    def _repaired(self, name: str, suspect: _Suspect) -> GuardReport:
        """Repair a suspect storage and report it. Nothing is written to its words but those that are wrong.

        Raises:
            ReadOnlyMemory: there is something to write, and that cannot be.
        """


@final
class ReadOnlyMemory(Exception):  # noqa: N818 -- no error of the caller's: a check reports it as uncorrectable
    """Wrong words lie in memory that this process cannot write to, such as a file that is mapped read-only."""


@final
class StaleGuardError(HoplonError):
    """Memory holds other values than its guard knows: an operator wrote them, or they are too many for soft errors."""

    def __init__(self, name: str, differing: int, total: int, others: Sequence[str] = ()) -> None:
        names = ", ".join([repr(name), *map(repr, others[:_NAMED])] + ["..."] * (len(others) > _NAMED))
        super().__init__(
            f"expected memory that only soft errors may have changed, got other values in {differing:,} of {total:,} "
            f"words of {name}; call refresh() of model.monitor, or of the guard, if it was updated on purpose, "
            f"hp.guard(..., leave_out=[{names}]) if forward writes there, load the weights again otherwise"
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


def inference() -> AbstractContextManager[Any]:
    """Inference mode; to enter it where it is on already takes as long as a small check."""
    return _as_is if torch.is_inference_mode_enabled() else torch.inference_mode()


@checked
def of_turn(count: int, turn: int, turns: int) -> range:
    """Return those of ``count`` consecutive pieces that belong to a turn; turns differ by one piece at most.

    Raises:
        HoplonError: a turn out of range.
    Example:
        >>> [list(of_turn(5, turn, 2)) for turn in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    return pieces_of_turn(count, turn, turns)


@functools.lru_cache(maxsize=1024)
def pieces_of_turn(count: int, turn: int, turns: int) -> range:
    """Return as `of_turn` does, without looking at the types each time: a small check asks several times."""
    if not 0 <= turn < turns:
        raise HoplonError(f"expected a turn in [0, {turns}), got {turn}")
    return range(count * turn // turns, count * (turn + 1) // turns)


def _extent(tensor: Tensor) -> tuple[torch.device, int, int]:
    """Device, and addresses of the first byte of a tensor and behind its last."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return tensor.device, start, start + span * tensor.itemsize * (tensor.numel() > 0)


@functools.cache
def _count_fused_steps() -> None:
    """Have each step of a fused optimizer move the counters of what it writes to, once for this process."""
    register_optimizer_step_post_hook(_count_fused_step)


def _count_fused_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version([tensor for tensor in group["params"] if tensor.grad is not None])
