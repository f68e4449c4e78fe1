"""Triple modular redundancy of memory: two more copies of every parameter and buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats import integer_view
from hoplon.harden.vote import agree, copy_of, distinct, vote_
from hoplon.memory_guard import Guard, GuardReport, of_turn, require_no_update, version_of
from hoplon.overlay import Protection


@final
@dataclass(frozen=True)
class TMR(Protection):
    """Keeps two more copies of every parameter and buffer and repairs all three by majority, bit for bit.

    With ``vote="element"`` every word is voted on alone: repaired whenever two of its three copies agree, uncorrectable
    (and left as it is) when all three differ. Two copies that are wrong in the same way outvote the right one: missed.

    With ``vote="tensor"`` whole tensors are voted on, as in the paper: two faults in two copies of one tensor are
    uncorrectable there, even in different words.

    Source:
        Schmedding et al. (Aspis), section III-B.
    """

    vote: Literal["element", "tensor"] = "element"

    def __post_init__(self) -> None:
        if self.vote not in ("element", "tensor"):
            raise HoplonError(f"expected vote 'element' or 'tensor', got {self.vote!r}")

    @property
    def label(self) -> str:
        """What reports call it."""
        return "tmr" if self.vote == "element" else "tmr-tensor"

    def arm(self, memory: Mapping[str, Tensor]) -> TMRGuard:
        """A guard over these tensors; names that share a storage are guarded once."""
        return TMRGuard(distinct(memory), self.vote)


@final
class TMRGuard(Guard):
    """Two more copies of every storage."""

    def __init__(self, storages: Mapping[str, Tensor], vote: Literal["element", "tensor"]) -> None:
        self._live = storages
        self._vote = vote_ if vote == "element" else _vote_tensors_
        self._copies = {f"{name}#{n}": copy_of(live) for name, live in storages.items() for n in (1, 2)}
        self._versions = {name: version_of(live) for name, live in storages.items()}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name, ``conv1.weight#1`` and ``conv1.weight#2``."""
        return self._copies

    @property
    def protected_bytes(self) -> int:
        """All of the memory it was armed on."""
        return sum(live.nbytes for live in self._live.values())

    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Compare and repair; counts words of memory, a corrupted copy counting as its word. Slices are of storages."""
        names = list(self._live)
        report = GuardReport()
        with torch.inference_mode():
            slice_ = [names[number] for number in of_turn(len(names), turn, turns)]
            suspects = [name for name in slice_ if not agree(self._live[name], *self._copies_of(name))]
            for name in suspects:
                self._require_no_update(name)
            for name in slice_:
                report += self._mend(name) if name in suspects else GuardReport(self._live[name].numel())
        return report

    def _copies_of(self, name: str) -> tuple[Tensor, Tensor]:
        return self._copies[f"{name}#1"], self._copies[f"{name}#2"]

    def _require_no_update(self, name: str) -> None:
        live, (first, second) = self._live[name], self._copies_of(name)
        if agree(first, second, second):
            differing = int((integer_view(live) != integer_view(first)).sum())
            written = version_of(live) != self._versions[name]
            require_no_update(name, differing=differing, total=live.numel(), written=written)

    def _mend(self, name: str) -> GuardReport:
        live = self._live[name]
        detected, uncorrectable = self._vote(live, *self._copies_of(name))
        self._versions[name] = version_of(live)
        return GuardReport(live.numel(), detected, detected - uncorrectable, uncorrectable, (name,))

    def refresh(self) -> None:
        """Copy the memory anew."""
        with torch.inference_mode():
            for name, live in self._live.items():
                for n in (1, 2):
                    integer_view(self.copies[f"{name}#{n}"]).copy_(integer_view(live))
                self._versions[name] = version_of(live)


def _vote_tensors_(live: Tensor, first: Tensor, second: Tensor) -> tuple[int, int]:
    """The vote over whole tensors: words that differ, and the same number again if no two tensors are equal."""
    a, b, c = integer_view(live), integer_view(first), integer_view(second)
    detected = int(((a != b) | (a != c)).sum())
    if torch.equal(b, c):
        a.copy_(b)
    elif torch.equal(a, b):
        c.copy_(a)
    elif torch.equal(a, c):
        b.copy_(a)
    else:
        return detected, detected
    return detected, 0
