"""Memory cut into matrices of 64-bit words, whose columns parity sums up and whose rows consist of blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import isqrt
from typing import final

import torch
from torch import Tensor

from hoplon.harden.memory_runs import Run

WORD = 8  # bytes
_MOST_COLUMNS = 4096  # of a block: 32 KiB
_IN_PLACE = 65_536  # bytes: runs from here on are checked where they lie, smaller ones are packed for each check
_LANES = 8  # columns come in multiples of so many: 64 bytes
_STRIP = range(13, 38)  # rows added up in one go: more are slower, as each lies on a page of its own


@final
class WordMatrix:
    """Words of memory, ``groups`` side by side, each of ``rows`` blocks of ``columns`` words.

    Attributes:
        runs: the memory, end to end; one run that is checked where it lies, or many that are packed for each check.
        rows: blocks per group.
        groups: number of groups: blocks that follow each other in memory are in different ones.
        columns: words per block, a multiple of 8.
    """

    def __init__(self, runs: Sequence[Run], rows: int, groups: int, columns: int, *, packed: bool) -> None:
        self.runs = tuple(runs)
        self.rows, self.groups, self.columns = rows, groups, columns
        self.width = groups * columns
        self.names = tuple(dict.fromkeys(run.name for run in runs))
        self._starts = [0, *accumulate(run.nbytes for run in runs)]
        self._live = None if packed else runs[0].tensor.view(torch.int64).view(rows, self.width)
        self._gaps = any(run.gaps for run in runs)
        self._bytes = [run.tensor for run in runs]

    @property
    def packed(self) -> bool:
        """Whether :meth:`words` makes a copy."""
        return self._live is None

    def words(self) -> Tensor:
        """All words: int64, shape ``(rows, width)``; live memory unless :attr:`packed`, then zeros fill the end."""
        if self._live is not None:
            return self._live
        pieces = [run.read() for run in self.runs] if self._gaps else self._bytes
        missing = self.rows * self.width * WORD - self._starts[-1]
        filled = [*pieces, torch.zeros(missing, dtype=torch.uint8, device=pieces[0].device)]
        return torch.cat(filled).view(torch.int64).view(self.rows, self.width)

    def strips(self, words: Tensor) -> Tensor:
        """Some columns of the :meth:`words`, shape ``(rows, n)``, as they are added up: ``(strips, rows, n)``."""
        return words.view(-1, _strip(self.rows), words.shape[1])

    def group(self, words: Tensor, group: int) -> Tensor:
        """The blocks of one group of the :meth:`words`, shape ``(rows, columns)``."""
        return words[:, group * self.columns : (group + 1) * self.columns]

    def write(self, group: int, row: int, block: Tensor) -> None:
        """Put a block (int64, shape ``(columns,)``) in place."""
        data = block.contiguous().view(torch.uint8)
        for run, start, stop, offset in self.covered(group, row):
            run.write(start, data[offset : offset + stop - start])

    def elements(self, group: int, row: int, changed: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Elements of the model's memory that hold changed bytes of a block.

        Args:
            group: of the block.
            row: of the block.
            changed: bool, shape ``(8 * columns,)``.
        Returns:
            By storage: its name, and numbers of elements (int64, sorted, each once).
        """
        for run, start, stop, offset in self.covered(group, row):
            hit = changed[offset : offset + stop - start].nonzero()[:, 0]
            if len(hit):
                yield run.name, torch.unique((hit + run.start + start) // run.itemsize)

    def names_of(self, group: int, row: int) -> tuple[str, ...]:
        """Storages that a block holds parts of."""
        return tuple(dict.fromkeys(run.name for run, *_ in self.covered(group, row)))

    def covered(self, group: int, row: int) -> Iterator[tuple[Run, int, int, int]]:
        """Runs that meet a block, each with first and last byte that does, and the first one's place in the block."""
        first = (row * self.width + group * self.columns) * WORD
        last = first + self.columns * WORD
        number = bisect_right(self._starts, first) - 1
        while number < len(self.runs) and self._starts[number] < last:
            begin = self._starts[number]
            start, stop = max(first, begin), min(last, self._starts[number + 1])
            yield self.runs[number], start - begin, stop - begin, start - first
            number += 1


def matrices_of(runs: Sequence[Run], most_rows: int) -> list[WordMatrix]:
    """Cut the memory of one device into matrices of at most ``most_rows`` rows; what is small is packed into the last.

    Rows are odd in number, and columns a multiple of 8 by a number without factors 2 and 3: so the same element of all
    rows or channels of a weight, which lie a power of two apart as a rule, or 9 times one, is spread over many columns,
    where faults in all of them do not cancel.
    """
    found: list[WordMatrix] = []
    small: list[Run] = []
    for run in runs:
        lead = -run.tensor.storage_offset() % WORD if not run.gaps else 0
        aligned = not run.gaps and (run.tensor.data_ptr() + lead) % WORD == 0
        if run.nbytes < _IN_PLACE or not aligned:
            small.append(run)
            continue
        rows, groups, columns = _shape_within((run.nbytes - lead) // WORD, most_rows)
        stop = lead + rows * groups * columns * WORD
        found.append(WordMatrix([run.part(lead, stop)], rows, groups, columns, packed=False))
        small += [part for part in (run.part(0, lead), run.part(stop, run.nbytes)) if part.nbytes]
    if small:
        words = -(-sum(run.nbytes for run in small) // WORD)
        rows = _heights(words, most_rows)[0]
        groups = -(-words // (rows * _MOST_COLUMNS))
        columns = _LANES * _coprime(-(-words // (rows * groups * _LANES)), 1)
        found.append(WordMatrix(small, rows, groups, columns, packed=True))
    return found


def _shape_within(words: int, most_rows: int) -> tuple[int, int, int]:
    """Rows, groups and columns of a matrix that leaves few of these words over."""

    def shape(rows: int) -> tuple[int, int, int]:
        groups = -(-words // (rows * _MOST_COLUMNS))
        return rows, groups, _LANES * _coprime(words // (_LANES * groups * rows), -1)

    def price(rows: int) -> float:
        """Guard memory in bytes, and a 20th of what has to be packed."""
        _, groups, columns = shape(rows)
        rest = words - rows * groups * columns
        return WORD * groups * columns + 32 * (rows + 1) * groups + WORD * rest / 20

    return shape(min(_heights(words, most_rows), key=price))


def _heights(words: int, most_rows: int) -> list[int]:
    """Numbers of rows that suit a matrix of so many words, most first.

    Parity and sums of a single group of ``rows`` blocks take ``8 words / rows + 32 rows`` bytes, least at
    ``rows = sqrt(words / 4)``; somewhat fewer leave a choice.
    """
    most = max(1, min(most_rows, isqrt(words // 4)))
    odd = range(most - 1 + most % 2, max(1, most * 4 // 5) - 1, -2)
    return [rows for rows in odd if rows < _STRIP.stop or _strip(rows) in _STRIP] or [odd[0]]


def _strip(rows: int) -> int:
    """The largest divisor that is not too large."""
    return max(divisor for divisor in range(1, _STRIP.stop) if rows % divisor == 0)


def _coprime(number: int, step: int) -> int:
    """The next number, going by ``step``, that neither 2 nor 3 divides."""
    while number % 2 == 0 or number % 3 == 0:
        number += step
    return number
