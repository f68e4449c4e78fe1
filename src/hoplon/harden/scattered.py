"""Two copies of chosen words or blocks of memory, wherever they lie, and a guarded index of their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats import integer_view
from hoplon.harden.guarded import mend_entry, power_sums
from hoplon.harden.vote import agree, copy_of, vote_
from hoplon.harden.words import wide
from hoplon.memory_guard import require_no_update

_PIECE_WORDS = 1 << 12  # an index of so many entries has sums of its own
_BITE_WORDS = 1 << 15  # gathered into a core's cache and compared there
_LAUNCHED_WORDS = 1 << 22  # elsewhere, the launch of an operator is what costs


@final
class Piece:
    """Some chosen words of one storage, or some chosen blocks.

    Attributes:
        name: of the storage.
        words: the storage as one row of integers, whatever its strides; or cut into blocks, shape ``(blocks, words)``.
        index: int32 or int64, places in ``words``; guarded by ``sums`` (:func:`power_sums`).
        first: a copy of the chosen words or blocks; ``second`` is another.
    """

    def __init__(self, name: str, words: Tensor, index: Tensor, first: Tensor, second: Tensor, sums: Tensor) -> None:
        self.name, self.words, self.index = name, words, index
        self.first, self.second, self.sums = first, second, sums
        self.sums.copy_(power_sums(index))

    def __len__(self) -> int:
        return self.first.numel()

    def refresh(self) -> None:
        """Copy the words anew."""
        if not self._index_is_right() and not self._mend_index():
            raise HoplonError(f"expected an index of the protected words of {self.name}, got a damaged one; arm anew")
        live = self.words[self.index]
        self.first.copy_(live)
        self.second.copy_(live)

    def is_suspect(self) -> bool:
        """Whether anything is amiss: index, words or copies."""
        return not self._index_is_right() or not agree(self.words[self.index], self.first, self.second)

    def require_no_update(self, written: bool) -> None:
        """Refuse words that were updated, which leaves index and copies as they were.

        Raises:
            StaleGuardError: most words are not what both copies are.
        """
        if self._index_is_right() and torch.equal(self.first, self.second):
            differing = int((self.words[self.index] != self.first).sum())
            require_no_update(self.name, differing=differing, total=len(self), written=written)

    def mend(self) -> tuple[int, int]:
        """Words found wrong, and those among them that could not be repaired.

        The index comes first: nothing is ever written through a wrong one.
        """
        mended = 0
        if not self._index_is_right():
            if not self._mend_index():
                return len(self), len(self)
            mended = 1
        live = self.words[self.index]
        detected, uncorrectable = vote_(live, self.first, self.second)
        self.words[self.index] = live
        return detected + mended, uncorrectable

    def _index_is_right(self) -> bool:
        low, high = self.index.aminmax()
        return bool((low >= 0) & (high < len(self.words))) and torch.equal(power_sums(self.index), self.sums)

    def _mend_index(self) -> bool:
        return mend_entry(self.index, self.sums, 0, len(self.words)) is not None


@final
@dataclass(frozen=True)
class Bite:
    """Consecutive pieces of one kind of word, and one size of block, compared at once.

    ``gathers`` holds a storage, the places to gather, and where in the bite they belong.
    """

    pieces: Sequence[Piece]
    gathers: Sequence[tuple[Tensor, Tensor, slice]]
    index: Tensor
    first: Tensor
    second: Tensor
    sums: Tensor

    def __len__(self) -> int:
        return self.first.numel()

    @property
    def nbytes(self) -> int:
        """What a check of it reads of the storages, in whole cache lines."""
        return max(64 * len(self.index), self.first.nbytes)

    def agrees(self) -> bool:
        """Whether words, copies and the plain sums of the index are as they should be; a wrong place is a no."""
        if self.index.device.type == "cpu":
            intact = bool(self.index.numpy().sum(dtype=np.int64) == self.sums.numpy()[::3].sum())
        else:  # a place out of range would end the process there
            total = self.sums[::3].sum()
            ranges = [(places.aminmax(), len(words)) for words, places, _ in self.gathers]
            inside = [(low >= 0) & (high < count) for (low, high), count in ranges]
            intact = bool(torch.stack([*inside, self.index.sum(dtype=torch.int64) == total]).all())
        if not intact:
            return False
        live = torch.empty_like(self.first)
        try:
            for words, places, where in self.gathers:
                torch.index_select(words, 0, places, out=live[where])
        except IndexError:
            return False
        first = wide(self.first.view(-1))
        return agree(live.view(-1).view(first.dtype), first, self.second.view(-1).view(first.dtype))


def bites_of(pieces: Sequence[Piece]) -> list[Bite]:
    """Consecutive pieces of one kind of word put together."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        limit = _BITE_WORDS if piece.words.device.type == "cpu" else _LAUNCHED_WORDS
        last = runs[-1] if runs else []
        same = last and kind_of(last[0].words) == kind_of(piece.words)
        if not same or sum(map(len, last)) + len(piece) > limit:
            runs.append([])
        runs[-1].append(piece)
    return [_bite(run) for run in runs]


def differing(bites: Sequence[Bite]) -> list[Bite]:
    """The bites in which anything is amiss."""
    with torch.inference_mode():
        return [bite for bite in bites if not bite.agrees()]


def kind_of(words: Tensor) -> tuple[object, ...]:
    """What pieces that are compared at once have in common."""
    return words.dtype, words.device, *words.shape[1:]


def triplicated(chosen: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[list[Piece], dict[str, Tensor]]:
    """Copy chosen words of storages of one kind (:func:`kind_of`).

    Args:
        chosen: by name, the words of the storage (:class:`Piece`) and places in them, int64, ascending.
    Returns:
        The pieces, in order; and what holds them, by name: ``conv1.weight#1``, ``#2``, ``#index``, ``#sums``.
    """
    small = all(len(words) <= torch.iinfo(torch.int32).max for words, _ in chosen.values())
    counts = [len(places) for _, places in chosen.values()]
    index = copy_of(torch.cat([at for _, at in chosen.values()]).to(torch.int32 if small else torch.int64))
    first = copy_of(torch.cat([words[at] for words, at in chosen.values()]))
    second = copy_of(first)
    heights = [-(-count // _PIECE_WORDS) for count in counts]
    sums = copy_of(torch.zeros(3 * sum(heights), dtype=torch.int64, device=index.device))
    split = (index.split(counts), first.split(counts), second.split(counts), sums.split([3 * n for n in heights]))
    pieces: list[Piece] = []
    copies: dict[str, Tensor] = {}
    for name, at, one, two, its_sums in zip(chosen, *split, strict=True):
        copies |= {f"{name}#1": one, f"{name}#2": two, f"{name}#index": at, f"{name}#sums": its_sums}
        parts = (at.split(_PIECE_WORDS), one.split(_PIECE_WORDS), two.split(_PIECE_WORDS), its_sums.split(3))
        pieces += [Piece(name, chosen[name][0], *part) for part in zip(*parts, strict=True)]
    return pieces, copies


def spanned(tensor: Tensor) -> Tensor:
    """The words of a tensor from its first to its last in memory as one row, gaps included."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return integer_view(tensor).as_strided((extent,), (1,))


def offsets(tensor: Tensor, indices: Tensor) -> Tensor:
    """Row-major logical indices as places in :func:`spanned`."""
    coordinates = torch.unravel_index(indices, tensor.shape) if tensor.dim() else ()
    offset = torch.zeros_like(indices)
    for coordinate, stride in zip(coordinates, tensor.stride(), strict=True):
        offset += coordinate * stride
    return offset


def _bite(run: Sequence[Piece]) -> Bite:
    gathers: list[tuple[Tensor, Tensor, slice]] = []
    done = 0
    for name in dict.fromkeys(piece.name for piece in run):
        same = [piece for piece in run if piece.name == name]
        places = _joined([piece.index for piece in same])
        gathers.append((same[0].words, places, slice(done, done + len(places))))
        done += len(places)
    parts = ([getattr(piece, key) for piece in run] for key in ("index", "first", "second", "sums"))
    return Bite(run, gathers, *map(_joined, parts))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Consecutive parts of one tensor as the part that they make up, in the same memory."""
    count = sum(len(part) for part in parts)
    return parts[0].as_strided((count, *parts[0].shape[1:]), parts[0].stride())
