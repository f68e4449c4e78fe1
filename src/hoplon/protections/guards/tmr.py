"""Triple modular redundancy of memory: two more copies of every parameter and buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from operator import attrgetter
from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import checked
from hoplon.formats.base import integer_view
from hoplon.protections.base import Protection
from hoplon.protections.guards.memory.arena import arena_around, end_to_end
from hoplon.protections.guards.memory.words import (
    in_batches,
    in_wide,
    of_turn_by_size,
    row_of,
    shared,
    without_repeats,
)
from hoplon.protections.guards.memory.writing import write_differing
from hoplon.protections.guards.voting import distinct, unlike_both, vote_
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, change, inference, nothing_found
from hoplon.registry import register

_PIECE_BYTES = 1 << 18  # read once from memory, and compared with both copies from a core's cache

_Wide = tuple[tuple[Tensor, Tensor, Tensor], ...]
"""Rows of integers of memory and both copies, to be compared."""


@register(
    "protection",
    "tmr",
    sentence="Keeps two more copies of every parameter and buffer and repairs them by majority before each batch. "
    "Meant for corrupted weights in memory.",
)
@final
@checked
@dataclass(frozen=True)
class TMR(Protection):
    """Keeps two more copies of every parameter and buffer and repairs all three by majority, bit for bit.

    With ``vote="element"`` every word is voted on alone: repaired whenever two of its three copies agree, uncorrectable
    (and left as it is) when all three differ. Two copies that are wrong in the same way outvote the right one: missed.

    With ``vote="tensor"`` whole tensors are voted on, as in the paper: two faults in two copies of one tensor are
    uncorrectable there, even in different words.

    Source:
        Schmedding et al. (Aspis), sections II-B and III-A.
    """

    vote: Literal["element", "tensor"] = "element"

    @property
    @override
    def label(self) -> str:
        return "tmr" if self.vote == "element" else "tmr-tensor"

    @property
    @override
    def guarantee(self) -> str:
        unit = "word" if self.vote == "element" else "tensor"
        return (
            f"repairs any corruption of one of the three copies of a {unit}, bit for bit; reports a {unit} whose "
            "copies all differ; misses two that are wrong in the same way, which 1 in 32 of independent pairs of "
            "single-bit faults in two copies of one float32 word are"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> TMRGuard:
        """Arm a guard on these tensors; names that share a storage are guarded once."""
        return TMRGuard(memory, self.vote)


@final
class TMRGuard(StorageGuard[list["_Piece"]]):
    """Two more copies of every storage; checks count words of memory, a corrupted copy as its word.

    With ``vote="tensor"`` a tensor that differs in the words of a slice is voted on whole.
    """

    def __init__(self, memory: Mapping[str, Tensor], vote: Literal["element", "tensor"]) -> None:
        storages = {name: without_repeats(tensor) for name, tensor in distinct(memory).items()}
        super().__init__(memory, storages)
        self._by_tensor = vote == "tensor"
        names = sorted(storages, key=lambda name: storages[name].data_ptr())  # laid out as the memory is in an arena
        twice = [dict(zip(names, end_to_end([storages[name] for name in names]), strict=True)) for _ in range(2)]
        self._copies = {f"{name}#{n}": twice[n - 1][name] for name in storages for n in (1, 2)}
        self._pieces = [
            piece for name, live in storages.items() for piece in _pieces_of(name, live, *self._copies_of(name))
        ]
        self._runs: dict[tuple[int, int], tuple[list[_Run], int]] = {}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name, ``conv1.weight#1`` and ``conv1.weight#2``."""
        return self._copies

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, list[_Piece]]]:
        if (turn, turns) not in self._runs:
            pieces = of_turn_by_size(self._pieces, len, turn, turns)
            self._runs[turn, turns] = _runs_of(pieces), sum(piece.words[0].numel() for piece in pieces)
        runs, words = self._runs[turn, turns]
        differing = set(chain.from_iterable(shared(_differing, runs, len)))
        suspects = groupby((piece for piece in self._pieces if piece in differing), key=attrgetter("name"))
        return nothing_found(words), {name: list(suspect) for name, suspect in suspects} if differing else {}

    @override
    def _repaired(self, name: str, suspect: list[_Piece]) -> GuardReport:
        if self._by_tensor:
            votes = [_vote_tensors_(self._live[name], *self._copies_of(name))]
        else:
            votes = [vote_(*piece.words) for piece in suspect]
        detected, uncorrectable = map(sum, zip(*votes, strict=True))
        return GuardReport(0, detected, detected - uncorrectable, uncorrectable, (name,))

    def _copies_of(self, name: str) -> tuple[Tensor, Tensor]:
        return self._copies[f"{name}#1"], self._copies[f"{name}#2"]

    @override
    def _changes(self, suspects: Mapping[str, list[_Piece]]) -> dict[str, Change]:
        return {
            name: change(sum(unlike_both(*piece.words) for piece in suspect), self._live[name].numel())
            for name, suspect in suspects.items()
        }

    def refresh(self) -> None:
        """Copy the memory anew."""
        with torch.inference_mode():
            for name, live in self._live.items():
                for n in (1, 2):
                    integer_view(self.copies[f"{name}#{n}"]).copy_(integer_view(live))
        self._counters.note()


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some words of a storage and of both copies, and the same in wide words, part by part, to be compared."""

    name: str
    words: tuple[Tensor, Tensor, Tensor]
    wide: _Wide

    def __len__(self) -> int:
        return self.words[0].nbytes


@dataclass(frozen=True, eq=False)
class _Run:
    """Pieces that follow each other in memory and in both copies, compared at once."""

    pieces: list[_Piece]
    wide: _Wide

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


def _pieces_of(name: str, *same: Tensor) -> list[_Piece]:
    """A storage and its copies in pieces of the same words; in one where their memory is laid out differently."""
    rows = [row_of(tensor) for tensor in same]
    live, first, second = rows
    if live is None or first is None or second is None or len({tensor.stride() for tensor in same}) > 1:
        one, two, three = (integer_view(tensor) for tensor in same)
        return [_Piece(name, (one, two, three), ((one, two, three),))]
    step = _PIECE_BYTES // live.itemsize if live.device.type == "cpu" else len(live)
    return [
        _Piece(name, part, _in_wide(*part))
        for part in zip(live.split(step), first.split(step), second.split(step), strict=True)
    ]


def _runs_of(pieces: Sequence[_Piece]) -> list[_Run]:
    pieces = sorted(pieces, key=lambda piece: piece.words[0].data_ptr())
    arenas = {piece: [arena_around(words) for words in piece.words] for piece in pieces}
    before = dict(zip(pieces, accumulate(map(len, pieces), initial=0), strict=False))

    def place(piece: _Piece) -> object:
        """The same for pieces that follow each other in all three."""
        around = [arena.data_ptr() for arena in arenas[piece] if arena is not None]
        starts = [words.data_ptr() - before[piece] for words in piece.words]
        return (around, starts) if len(around) == len(starts) else piece

    def joined(run: list[_Piece]) -> _Wide:
        rows = []
        for arena, words in zip(arenas[run[0]], run[0].words, strict=True):
            assert arena is not None
            start = words.data_ptr() - arena.data_ptr()
            rows.append(arena[start : start + sum(map(len, run))])
        return _in_wide(*rows)

    runs = in_batches(pieces, place, lambda piece: _PIECE_BYTES)
    return [_Run(run, joined(run) if len(run) > 1 else run[0].wide) for run in runs]


def _in_wide(*rows: Tensor) -> _Wide:
    """Three rows of words in parts that are compared fast, if memory is aligned in the same way in all."""
    parts = [in_wide(row) for row in rows]
    alike = len({tuple((part.dtype, len(part)) for part in row) for row in parts}) == 1
    return tuple(zip(*(parts if alike else [[row] for row in rows]), strict=True))


def _differing(runs: Sequence[_Run]) -> list[_Piece]:
    with inference():
        found = [run for run in runs if not _agrees(run)]
        return [piece for run in found for piece in run.pieces if not _agrees(piece)]


def _agrees(compared: _Run | _Piece) -> bool:
    return all(torch.equal(live, first) and torch.equal(live, second) for live, first, second in compared.wide)


def _vote_tensors_(live: Tensor, first: Tensor, second: Tensor) -> tuple[int, int]:
    """The vote over whole tensors: words that differ, and the same number again if no two tensors are equal."""
    a, b, c = integer_view(live), integer_view(first), integer_view(second)
    detected = int(((a != b) | (a != c)).sum())
    if torch.equal(b, c):
        write_differing(a, b)
    elif torch.equal(a, b):
        write_differing(c, a)
    elif torch.equal(a, c):
        write_differing(b, a)
    else:
        return detected, detected
    return detected, 0
