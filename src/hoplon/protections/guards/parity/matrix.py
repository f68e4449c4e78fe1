"""Memory cut into matrices of 64-bit words, whose columns parity sums up and whose rows consist of blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import isqrt
from typing import final

import torch
from torch import Tensor

from hoplon.protections.guards.parity.extents import Run, bytes_of, cut, spans_of

WORD = 8  # bytes
_MOST_COLUMNS = 4096  # of a block: 32 KiB
_ABREAST = 2  # groups side by side in large memory
_IN_PLACE = 65_536  # bytes: runs from here on are checked where they lie, smaller ones are packed for each check
_AT_ONCE = 1 << 16  # words added up in one go
_LANES = 8  # columns come in multiples of so many: 64 bytes
_STRIP = range(19, 26)  # rows added up in one go: more are slower, as each lies on a page of its own


@final
class WordMatrix:
    """Words of memory in units, one after the other; a unit is ``rows`` rows of blocks, ``abreast`` in each.

    The blocks of one unit that stand in a column are a group.

    Attributes:
        runs: the memory, end to end; consecutive and checked where it lies, or packed for each check.
        rows: blocks per group.
        abreast: groups side by side: with two or more, blocks that follow each other in memory are in different ones.
        columns: words per block, a multiple of 8.
        units: of equal size.
        groups: number of groups, those of a unit after those of the one before.
        width: words of all groups' parity.
    """

    def __init__(
        self, runs: Sequence[Run], rows: int, abreast: int, columns: int, *, units: int = 1, packed: bool = False
    ) -> None:
        spans = spans_of(runs)
        self.runs = tuple(run for span in spans for run in span)
        self.rows, self.abreast, self.columns, self.units = rows, abreast, columns, units
        self.groups = units * abreast
        self.width = self.groups * columns
        self.names = tuple(dict.fromkeys(run.name for run in self.runs))
        self._starts = [0, *accumulate(run.nbytes for run in self.runs)]
        self._gaps = any(run.gaps for run in self.runs)
        self._bytes = [bytes_of(span) for span in spans]
        self._live = None if packed else self._shaped(bytes_of(self.runs))
        size = rows * self.width * WORD
        self._fill = torch.zeros(size - self._starts[-1], dtype=torch.uint8, device=self._bytes[0].device)
        self._copy: Tensor | None = None
        if packed and size <= _IN_PLACE:
            with torch.inference_mode(False):
                self._copy = self._fill.new_zeros(size)
            self._live = self._shaped(self._copy)

    @property
    def moves(self) -> bool:
        """True if :meth:`words` are in another place each time."""
        return self._live is None

    def words(self) -> Tensor:
        """All words: int64, shape ``(units, rows, width / units)``.

        Live memory, or a copy as it is now, with zeros at the end.
        """
        if self._live is None or self._copy is not None:
            pieces = [run.read() for run in self.runs] if self._gaps else self._bytes
            filled = torch.cat([*pieces, self._fill], out=self._copy)
            return self._shaped(filled) if self._live is None else self._live
        return self._live

    def parts(self, words: Tensor, columns: range) -> list[Tensor]:
        """Consecutive columns of the :meth:`words` as they are added up; columns of part of a unit by themselves.

        Returns:
            Views; on the CPU each of one unit: of shape ``(rows, n)``, or ``(strips, rows, n)`` where it is large, and
            sums of strips stay in the cache; elsewhere of shape ``(units, strips, rows, n)``.
        """
        wide = words.shape[2]
        if words.device.type == "cpu":
            begins = range(0, self.width, wide)
            found = [
                unit[:, max(columns.start - begin, 0) : columns.stop - begin]
                for unit, begin in zip(words.unbind(0), begins, strict=True)
                if columns.start < begin + wide and begin < columns.stop
            ]
            return [part if part.numel() <= _AT_ONCE else self._strips(part) for part in found]
        (first, start), (last, stop) = divmod(columns.start, wide), divmod(columns.stop, wide)
        if first == last:
            return [self._strips(words[first : first + 1, :, start:stop])]
        whole = first + (start > 0)
        parts = [words[first:whole, :, start:], words[whole:last], words[last : last + 1, :, :stop]]
        return [self._strips(part) for part in parts if part.numel()]

    def _strips(self, part: Tensor) -> Tensor:
        *before, rows, columns = part.shape
        return part.view(*before, -1, _strip(rows), columns)

    def group(self, words: Tensor, group: int) -> Tensor:
        """The blocks of one group of the :meth:`words`, shape ``(rows, columns)``."""
        unit, place = divmod(group, self.abreast)
        return words[unit, :, place * self.columns : (place + 1) * self.columns]

    def _shaped(self, data: Tensor) -> Tensor:
        return data.view(torch.int64).view(self.units, self.rows, -1)

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
        unit, place = divmod(group, self.abreast)
        first = ((unit * self.rows + row) * self.abreast + place) * self.columns * WORD
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
    for span in spans_of(runs):
        first = bytes_of(span)
        lead = -first.data_ptr() % WORD
        aligned = (first.storage_offset() + lead) % WORD == 0
        if span[0].gaps or not aligned or _bytes_of(span) < _IN_PLACE:
            small += span
            continue
        some, rest = cut(span, lead)
        small += some
        while (size := _bytes_of(rest)) >= _IN_PLACE:
            rows, abreast, columns, units = _shape_within(size // WORD, most_rows)
            some, rest = cut(rest, rows * abreast * columns * units * WORD)
            found.append(WordMatrix(some, rows, abreast, columns, units=units))
        small += rest
    if small:
        words = -(-_bytes_of(small) // WORD)
        rows = _heights(words, most_rows)[0]
        groups = -(-words // (rows * _MOST_COLUMNS))
        columns = _LANES * _coprime(-(-words // (rows * groups * _LANES)), 1)
        found.append(WordMatrix(small, rows, groups, columns, packed=True))
    return found


def _bytes_of(runs: Sequence[Run]) -> int:
    return sum(run.nbytes for run in runs)


def _shape_within(words: int, most_rows: int) -> tuple[int, int, int, int]:
    """Rows, groups abreast, columns and units of a matrix that leaves few of these words over."""

    def shape(rows: int) -> tuple[int, int, int, int]:
        groups = -(-words // (rows * _MOST_COLUMNS))
        abreast = min(groups, _ABREAST)
        units = -(-groups // abreast)
        return rows, abreast, _LANES * _coprime(words // (_LANES * abreast * units * rows), -1), units

    def price(rows: int) -> float:
        """Guard memory in bytes, and a 20th of what is left over."""
        _, abreast, columns, units = shape(rows)
        groups = abreast * units
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
