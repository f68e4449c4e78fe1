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
from hoplon.overlay import Guard, GuardReport, Protection


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
    """Two more copies of every storage.

    Attributes:
        copies: the guard's own memory by name, ``conv1.weight#1`` and ``conv1.weight#2``: it can be hit as well.
    """

    def __init__(self, storages: Mapping[str, Tensor], vote: Literal["element", "tensor"]) -> None:
        self._live = storages
        self._vote = vote_ if vote == "element" else _vote_tensors_
        self.copies = {f"{name}#{n}": copy_of(live) for name, live in storages.items() for n in (1, 2)}

    @property
    def extra_bytes(self) -> int:
        """Bytes of the two copies."""
        return sum(copy.nbytes for copy in self.copies.values())

    def check(self) -> GuardReport:
        """Compare and repair; counts words of memory, a corrupted copy counting as its word."""
        report = GuardReport()
        with torch.inference_mode():
            for name, live in self._live.items():
                copies = self.copies[f"{name}#1"], self.copies[f"{name}#2"]
                detected, uncorrectable = (0, 0) if agree(live, *copies) else self._vote(live, *copies)
                where = (name,) if detected else ()
                report += GuardReport(live.numel(), detected, detected - uncorrectable, uncorrectable, where)
        return report

    def refresh(self) -> None:
        """Copy the memory anew."""
        with torch.inference_mode():
            for name, live in self._live.items():
                for n in (1, 2):
                    integer_view(self.copies[f"{name}#{n}"]).copy_(integer_view(live))


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
