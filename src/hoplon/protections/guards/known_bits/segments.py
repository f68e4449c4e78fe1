"""Consecutive words of live memory, in the order of memory where that has no gaps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hoplon.formats.base import integer_view
from hoplon.protections.guards.memory.words import row_of
from hoplon.protections.guards.memory.writing import write_at


class Segment:
    """Words ``start`` to ``stop`` of a storage.

    Attributes:
        name: of the storage.
        row: the segment as a row that shares its memory; None where the storage has gaps.
    """

    def __init__(self, name: str, tensor: Tensor, start: int, stop: int) -> None:
        self.name, self.start, self.stop = name, start, stop
        self._words = integer_view(tensor)
        self._storage = row_of(tensor)
        self.row = None if self._storage is None else self._storage[start:stop]

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def dtype(self) -> torch.dtype:
        """The integer of the width of its words."""
        return self._words.dtype

    @property
    def device(self) -> torch.device:
        """Device of the storage."""
        return self._words.device

    @property
    def nbytes(self) -> int:
        """Bytes of the words."""
        return len(self) * self.dtype.itemsize

    def storage_words(self) -> Tensor:
        """All words of the storage as one row on its device: the memory itself where it has no gaps, a copy else."""
        return self._words.reshape(-1) if self._storage is None else self._storage

    def words(self) -> Tensor:
        """The words as one row on the CPU; not to be written to."""
        return self.storage_words()[self.start : self.stop].cpu()

    def write(self, places: Tensor, words: Tensor) -> None:
        """Put words in these places, counted from the start of the segment, where they differ.

        Raises:
            ReadOnlyMemory: they cannot be written.
        """
        differing = self.words()[places] != words
        places, words = places[differing].to(self.device), words[differing]
        if self.row is None:
            write_at(self._words, torch.unravel_index(places + self.start, self._words.shape), words)
        else:
            write_at(self.row, (places,), words)


def segments_of(storages: Mapping[str, Tensor], block: int | None) -> list[Segment]:
    """The segments of all storages: one each, or blocks of so many words, the last of a storage perhaps shorter."""
    segments = []
    for name, tensor in storages.items():
        row = row_of(tensor)
        count = tensor.numel() if row is None else len(row)
        size = count if block is None else block
        segments += [Segment(name, tensor, start, min(start + size, count)) for start in range(0, count, size)]
    return segments
