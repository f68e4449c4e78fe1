"""Two copies of chosen words or blocks of memory, wherever they lie, and a guarded index of their places."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.protections.guards.index_sums import mend_entry, power_sums
from hoplon.protections.guards.memory.arena import end_to_end
from hoplon.protections.guards.memory.words import in_batches, in_wide
from hoplon.protections.guards.memory.writing import write_at
from hoplon.protections.guards.voting import agree, copy_of, unlike_both, vote_

_CHUNK_WORDS = 1 << 12  # an index of so many entries has sums of its own
_SMALL_WORDS = 1 << 12  # there is memory to gather so many into
_BATCH_WORDS = 1 << 18  # gathered into caches and compared there
_LAUNCHED_WORDS = 1 << 22  # elsewhere, the launch of an operator is what costs


@final
class Chunk:
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
        """Return True if index, words or copies are not as they should be."""
        return not self._index_is_right() or not agree(self.words[self.index], self.first, self.second)

    def changed(self) -> int:
        """Count the words that are not what the copies are; a damaged index cannot tell, and counts as one."""
        return unlike_both(self.words[self.index], self.first, self.second) if self._index_is_right() else 1

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
        before = live.clone()
        detected, uncorrectable = vote_(live, self.first, self.second)
        entries, *columns = places = (live != before).nonzero(as_tuple=True)
        write_at(self.words, (self.index[entries].long(), *columns), live[places])
        return detected + mended, uncorrectable

    def _index_is_right(self) -> bool:
        low, high = self.index.aminmax()
        return bool((low >= 0) & (high < len(self.words))) and torch.equal(power_sums(self.index), self.sums)

    def _mend_index(self) -> bool:
        return mend_entry(self.index, self.sums, 0, len(self.words)) is not None


@final
class ChunkBatch:
    """Consecutive chunks of one kind of word, and one size of block, compared at once.

    Attributes:
        chunks: them.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = tuple(chunks)
        self._index, self._first, self._second, self._sums = (
            _joined([getattr(chunk, key) for chunk in chunks]) for key in ("index", "first", "second", "sums")
        )
        self._gathers: list[tuple[Tensor, slice]] = []  # words of a storage, and where its places are in the batch
        done = 0
        for _, same in groupby(chunks, key=lambda chunk: (chunk.words.data_ptr(), len(chunk.words))):
            some = list(same)
            count = sum(len(chunk.index) for chunk in some)
            self._gathers.append((some[0].words, slice(done, done + count)))
            done += count
        self._lead = self._first.data_ptr() % 8 // self._first.itemsize
        self._copies = in_wide(self._first.view(-1)), in_wide(self._second.view(-1))
        self._known: Tensor | None = None
        self._total = 0
        self._small = self._prepared() if len(self) <= _SMALL_WORDS and _gathers_by_int32() else None

    def __len__(self) -> int:
        return self._first.numel()

    def is_intact(self) -> bool:
        """Return True if index, words and copies are as they were when each chunk was last found right by itself."""
        if self._known is None or not torch.equal(self._sums, self._known) or not self._places_add_up():
            return False
        try:
            parts = self._gathered()
        except (IndexError, RuntimeError):
            return False
        return all(torch.equal(now, then) for copy in self._copies for now, then in zip(parts, copy, strict=True))

    def take_for_right(self) -> None:
        """Record that each chunk by itself has been found right, or mended."""
        self._known = copy_of(self._sums)
        self._total = int(self._sums.view(-1, 3)[:, 0].sum())

    def _places_add_up(self) -> bool:
        """Return True if no single place is wrong."""
        if self._index.device.type == "cpu":
            # In their own width: two wrong signs cancel, but are found as soon as words are gathered by them.
            return (int(self._index.sum(dtype=self._index.dtype)) - self._total) % (1 << 8 * self._index.itemsize) == 0
        checks = [self._index.sum(dtype=torch.int64) == self._total]
        for words, where in self._gathers:  # a place out of range would end the process there
            low, high = self._index[where].aminmax()
            checks.append((low >= 0) & (high < len(words)))
        return bool(torch.stack(checks).all())

    def _gathered(self) -> list[Tensor]:
        """The words as they are now, cut like their copies."""
        if self._small is not None:
            parts, gathers = self._small
            for gather in gathers:
                gather()
            return parts
        row, live = self._empty()
        for words, where in self._gathers:
            if words.dim() == 1:
                _gather(words, self._index[where], live[where])
            else:
                torch.index_select(words, 0, self._index[where], out=live[where])
        return in_wide(row)

    def _prepared(self) -> tuple[list[Tensor], list[Callable[[], Tensor]]]:
        """The same of few words, which take less time than to make the views of them: those are made once."""
        row, live = self._empty()
        return in_wide(row), [
            partial(torch.gather if words.dim() == 1 else torch.index_select, words, 0, self._index[at], out=live[at])
            for words, at in self._gathers
        ]

    def _empty(self) -> tuple[Tensor, Tensor]:
        """Memory for the words as one row, aligned like their copies; and in the shape of these."""
        row = torch.empty(self._lead + len(self), dtype=self._first.dtype, device=self._first.device)[self._lead :]
        return row, row.view(self._first.shape)


def _padded(rows: Tensor) -> Tensor:
    """Rows, with zeros behind them up to a multiple of 64 bytes."""
    return torch.cat([rows, rows.new_zeros(-len(rows) % 64, *rows.shape[1:])])


def _gather(words: Tensor, places: Tensor, out: Tensor) -> None:
    """Words at these places, on all threads: the rows of a matrix of places are shared out, a single row is not."""
    if not _gathers_by_int32():
        places = places.to(torch.int64)
    threads = torch.get_num_threads() if words.device.type == "cpu" else 1
    even = len(places) // threads * threads
    rows = places[:even].view(threads, -1)
    torch.gather(words.expand(threads, -1), 1, rows, out=out[:even].view(threads, -1))
    if even < len(places):
        torch.gather(words, 0, places[even:], out=out[even:])


@functools.cache
def _gathers_by_int32() -> bool:
    """Return True if this torch takes places as int32."""
    try:
        torch.gather(torch.zeros(1), 0, torch.zeros(1, dtype=torch.int32))
    except RuntimeError:
        return False
    return True


def chunk_batches(chunks: Sequence[Chunk]) -> list[ChunkBatch]:
    """Join consecutive chunks of one kind of word."""

    def most(chunk: Chunk) -> int:
        return _BATCH_WORDS if chunk.words.device.type == "cpu" else _LAUNCHED_WORDS

    return [ChunkBatch(batch) for batch in in_batches(chunks, lambda chunk: kind_of(chunk.words), most)]


def kind_of(words: Tensor) -> tuple[object, ...]:
    """Return what chunks of one batch have in common: dtype, device and the shape of a block."""
    return words.dtype, words.device, *words.shape[1:]


def triplicated(chosen: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[list[Chunk], dict[str, Tensor]]:
    """Copy chosen words of storages of one kind (:func:`kind_of`).

    Args:
        chosen: by name, the words of the storage (:class:`Chunk`) and places in them, int64, ascending.
    Returns:
        The chunks, in order; and what holds them, by name: ``conv1.weight#1``, ``#2``, ``#index``, ``#sums``.
    """
    small = all(len(words) <= torch.iinfo(torch.int32).max for words, _ in chosen.values())
    counts = [len(places) for _, places in chosen.values()]
    index = torch.cat([at for _, at in chosen.values()]).to(torch.int32 if small else torch.int64)
    words = torch.cat([words[at] for words, at in chosen.values()])
    padded = end_to_end([_padded(part) for part in (index, words, words)])
    index, first, second = (copy[: len(words)] for copy in padded)
    heights = [-(-count // _CHUNK_WORDS) for count in counts]
    sums = copy_of(torch.zeros(3 * sum(heights), dtype=torch.int64, device=index.device))
    split = (index.split(counts), first.split(counts), second.split(counts), sums.split([3 * n for n in heights]))
    chunks: list[Chunk] = []
    copies: dict[str, Tensor] = {}
    for name, at, one, two, its_sums in zip(chosen, *split, strict=True):
        copies |= {f"{name}#1": one, f"{name}#2": two, f"{name}#index": at, f"{name}#sums": its_sums}
        parts = (at.split(_CHUNK_WORDS), one.split(_CHUNK_WORDS), two.split(_CHUNK_WORDS), its_sums.split(3))
        chunks += [Chunk(name, chosen[name][0], *part) for part in zip(*parts, strict=True)]
    return chunks, copies


def offsets(tensor: Tensor, indices: Tensor) -> Tensor:
    """Row-major logical indices as places in :func:`spanned`."""
    coordinates = torch.unravel_index(indices, tensor.shape) if tensor.dim() else ()
    offset = torch.zeros_like(indices)
    for coordinate, stride in zip(coordinates, tensor.stride(), strict=True):
        offset += coordinate * stride
    return offset


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Consecutive parts of one tensor as the part that they make up, in the same memory."""
    count = sum(len(part) for part in parts)
    return parts[0].as_strided((count, *parts[0].shape[1:]), parts[0].stride())
