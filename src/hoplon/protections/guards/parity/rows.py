"""Parity rows and block sums of the memory of one device: kept, compared, and written back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.protections.guards.parity.diagnosis import Diagnosis, block_sums
from hoplon.protections.guards.parity.matrix import WORD, WordMatrix
from hoplon.protections.guards.voting import copy_of
from hoplon.protections.memory_guard import pieces_of_turn

_LANES = 8  # slices begin at every eighth column


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks that share a parity row.

    Attributes:
        matrix: where the blocks are.
        number: which of the matrix's groups.
        columns: where its parity row is.
        sums: where the sums of its blocks are, those of the parity row last.
    """

    matrix: WordMatrix
    number: int
    columns: slice
    sums: slice


@final
class ParityRows:
    """Parity and sums of some matrices.

    Attributes:
        parity: sums of the columns of all matrices, side by side; int64, modulo 2^64.
        sums: twice the two sums of each block; int64, shape ``(blocks, 2)``.
    """

    def __init__(self, matrices: Sequence[WordMatrix]) -> None:
        self.matrices = tuple(matrices)
        self.groups: list[Group] = []
        column = block = 0
        for matrix in matrices:
            for number in range(matrix.groups):
                columns, sums = slice(column, column + matrix.columns), slice(block, block + matrix.rows + 1)
                self.groups.append(Group(matrix, number, columns, sums))
                column, block = columns.stop, sums.stop
        zeros = torch.zeros(1, dtype=torch.int64, device=matrices[0].runs[0].tensor.device)
        self.parity = copy_of(zeros.expand(column))
        self.sums = copy_of(zeros.expand(block, 2)), copy_of(zeros.expand(block, 2))
        self._plans: dict[tuple[int, int], Callable[[], bool]] = {}
        self.learn()

    def learn(self) -> None:
        """Take the memory as it is now for correct."""
        with torch.inference_mode():
            for group, words in self._each(self.groups):
                self.parity[group.columns] = words.sum(0)
                self._set_sums(group, torch.cat([block_sums(words), block_sums(self.parity[None, group.columns])]))

    def is_intact(self, turn: int, turns: int) -> bool:
        """Return True if a slice of memory adds up to its parity and a slice of both copies of the sums agrees."""
        plan = self._plans.get((turn, turns))
        if plan is None:
            plan = self._plans[turn, turns] = self._plan(turn, turns)
        return plan()

    def _plan(self, turn: int, turns: int) -> Callable[[], bool]:
        """The comparison of a slice, its views made once: a check takes little longer than reading the memory."""
        ends = pieces_of_turn(WORD * sum(matrix.rows * matrix.width for matrix in self.matrices), turn, turns)
        pairs: list[tuple[Tensor, Tensor]] = []
        still: list[Callable[[], Tensor]] = []
        moving: list[tuple[WordMatrix, range, Sequence[Tensor]]] = []
        begin = offset = 0
        for matrix in self.matrices:
            columns = range(_column(matrix, ends.start - begin), _column(matrix, ends.stop - begin))
            if columns:
                row = self.parity[offset + columns.start : offset + columns.stop]
                parts = matrix.parts(matrix.words(), columns)
                rows = row.split([part.numel() // matrix.rows for part in parts])
                if matrix.moves:
                    moving.append((matrix, columns, rows))
                else:
                    still.append(matrix.words)
                    pairs += zip(parts, rows, strict=True)
            begin += WORD * matrix.rows * matrix.width
            offset += matrix.width
        entries = pieces_of_turn(len(self.sums[0]), turn, turns)
        one, other = (sums[entries.start : entries.stop] for sums in self.sums)

        def intact() -> bool:
            for words in still:
                words()
            found = pairs
            for matrix, columns, rows in moving:
                found = [*found, *zip(matrix.parts(matrix.words(), columns), rows, strict=True)]
            if one.device.type == "cpu":
                for part, row in found:
                    total = part.sum(-2)
                    if not torch.equal(total.sum(-2) if total.dim() > 1 else total, row):
                        return False
            elif found:  # wait for the device once
                totals = [part.sum(-2).sum(-2).view(-1) for part, _ in found]
                if not torch.equal(torch.cat(totals), torch.cat([row for _, row in found])):
                    return False
            return torch.equal(one, other)

        return intact

    def suspects(self) -> Iterator[tuple[Group, Tensor]]:
        """Groups that do not add up, or whose sums differ from their copies: each with a copy of its blocks.

        Blocks have the shape ``(rows + 1, columns)``, the parity row last.
        """
        wanted = []
        for group, words in self._each(self.groups):
            one, other = self.known(group)
            if not (torch.equal(words.sum(0), self.parity[group.columns]) and torch.equal(one, other)):
                wanted.append(group)
        for group, words in self._each(wanted):
            yield group, torch.cat([words, self.parity[None, group.columns]])

    def known(self, group: Group) -> Tensor:
        """Both copies of the sums of a group's blocks: shape ``(2, rows + 1, 2)``."""
        return torch.stack([sums[group.sums] for sums in self.sums])

    def wrong_sums(self, group: Group, diagnosis: Diagnosis) -> list[int]:
        """Rows whose kept sums are not those of the repaired blocks, in either copy."""
        off = (self.known(group) != diagnosis.sums).any(-1).any(0)
        return [int(row) for row in off.nonzero()[:, 0]]

    def repair(self, group: Group, blocks: Tensor, diagnosis: Diagnosis) -> None:
        """Write back the parity row, the sums, and the words that differ of the blocks.

        Raises:
            ReadOnlyMemory: these cannot be written.
        """
        assert diagnosis.blocks is not None
        self.parity[group.columns] = diagnosis.blocks[-1]
        self._set_sums(group, diagnosis.sums)
        for row in (blocks != diagnosis.blocks)[:-1].any(1).nonzero()[:, 0].tolist():
            group.matrix.write(group.number, row, diagnosis.blocks[row])

    def _set_sums(self, group: Group, sums: Tensor) -> None:
        for copy in self.sums:
            copy[group.sums] = sums

    def _each(self, groups: Sequence[Group]) -> Iterator[tuple[Group, Tensor]]:
        """Groups with their blocks; what is packed is packed once."""
        for matrix in dict.fromkeys(group.matrix for group in groups):
            words = matrix.words()
            for group in groups:
                if group.matrix is matrix:
                    yield group, matrix.group(words, group.number)


def _column(matrix: WordMatrix, position: int) -> int:
    """Return the column at which a slice begins that starts at so many bytes of a matrix."""
    if position >= WORD * matrix.rows * matrix.width:
        return matrix.width
    return max(0, position) // (WORD * _LANES * matrix.rows) * _LANES
