"""Parity: every parameter and buffer guarded for about one percent of memory, whole blocks rebuilt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from hoplon.errors import Count, checked
from hoplon.protections.base import Protection
from hoplon.protections.guards.parity.diagnosis import Diagnosis, diagnose
from hoplon.protections.guards.parity.extents import runs_of
from hoplon.protections.guards.parity.matrix import matrices_of
from hoplon.protections.guards.parity.rows import Group, ParityRows
from hoplon.protections.memory_guard import (
    Counters,
    Guard,
    GuardReport,
    ReadOnlyMemory,
    change,
    inference,
    nothing_found,
    pieces_of_turn,
)
from hoplon.registry import register


@register(
    "protection",
    "parity",
    sentence="Keeps sums across blocks of all parameters and buffers, compares them before each batch and rebuilds"
    " wrong blocks. Meant for corrupted weights in memory.",
)
@final
@checked
@dataclass(frozen=True)
class Parity(Protection):
    """Guards every parameter and buffer, in place, for about 1 % of a large model's memory.

    Memory is read as 64-bit words and cut into blocks of up to 32 KiB, of which up to ``group`` share one parity row:
    their sum, modulo 2^64, word by word. A check sums up all memory once, at the speed of reading it, and compares with
    the parity rows. Only if they differ, two further sums of each block tell which blocks are wrong; these are rebuilt
    from parity and the other blocks, and accepted only if their own sums then fit. The block sums are kept twice.

    - Detected for certain: every change confined to one block of each group, however many bits; every change of two
      bits, unless they are the same bit of the same column of two blocks of one group; every change of parity or sums
      alone.
    - Repaired for certain, bit for bit: per group, one block with one or two wrong bits, or one parity row; and any
      other change of one block, unless it leaves both of the block's sums as they are: then it is reported.
    - Repaired or reported: changes of several blocks of a group. They are repaired if there is one single way to share
      out the wrong columns among the wrong blocks: few columns, or a burst over the edge of two blocks.
    - Missed: changes of two or more blocks of a group that cancel in every column. Two random flips in memory do so
      with a probability of at most about ``group / (2 x bits of memory)``: :attr:`ParityGuard.miss_probability`.
    - An update of the weights is refused (:class:`StaleGuardError`); so is a fault that changes most words of a
      storage of 1,024 words or more, or of several storages, which looks the same.

    Args:
        group: how many blocks share a parity row at most; fewer cost more memory and let more simultaneous faults be
            repaired. Small storages have fewer anyway.
    Raises:
        HoplonError: a group smaller than one block.
    Source:
        hoplon's own. Sums against parity are checksums as in Huang, Abraham, Algorithm-Based Fault Tolerance for Matrix
        Operations, IEEE Transactions on Computers 1984, here over blocks of memory instead of rows of a matrix.
    """

    group: Count = 192

    label = "parity"

    @property
    def guarantee(self) -> str:
        """The class, in a sentence each."""
        return (
            f"any change of one block (up to 32 KiB) in each group of up to {self.group} is detected for certain, and "
            "repaired bit for bit if it moves the block's two sums: always for one or two flipped bits, otherwise with "
            "probability above 1 - 2^-60 for random words; several wrong blocks in a group are repaired where the "
            "repair is unique, else reported; two random flipped bits are missed with "
            f"probability at most about {self.group} / (2 x bits of memory)"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> ParityGuard:
        """A guard over these tensors; memory that several of them share is guarded once.

        Raises:
            HoplonError: a tensor that is not plain memory: sparse, quantised, or without data.
        """
        return ParityGuard(memory, group=self.group)


@dataclass
class _Findings:
    """Wrong blocks of all groups, before anything is written.

    Attributes:
        repairs: groups that can be repaired.
        elements: wrong words of them by storage, as numbers of elements; each once per block.
        suspected: words that may be wrong, in groups that cannot be repaired.
        names: storages of everything found.
        own: wrong words of parity and sums.
        uncorrectable: wrong blocks that cannot be repaired.
    """

    repairs: list[tuple[ParityRows, Group, Tensor, Diagnosis]] = field(default_factory=list)
    elements: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    suspected: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, None] = field(default_factory=dict)
    own: int = 0
    uncorrectable: int = 0

    def add(self, part: ParityRows, group: Group, blocks: Tensor, diagnosis: Diagnosis) -> None:
        """Note what is wrong in one group, and in which storages."""
        matrix, last = group.matrix, len(blocks) - 1
        sums: list[int] = []
        if diagnosis.blocks is None:
            self.uncorrectable += max(1, len(diagnosis.wrong))
            rows, target = diagnosis.wrong, self.suspected
            changed = diagnosis.gap.expand(len(rows), -1)
        else:
            self.repairs.append((part, group, blocks, diagnosis))
            rows, target = (blocks != diagnosis.blocks).any(1).nonzero()[:, 0].tolist(), self.elements
            changed = blocks[rows] ^ diagnosis.blocks[rows]
            sums = part.wrong_sums(group, diagnosis)
            self.own += int((blocks[last] != diagnosis.blocks[last]).sum()) + len(sums)
        for row, words in zip(rows, changed, strict=True):
            if row != last:
                for name, numbers in matrix.elements(group.number, row, words.contiguous().view(torch.uint8) != 0):
                    target[name].append(numbers)
                    self.names[name] = None
        if not set(rows) - {last}:  # parity and sums belong to whole blocks
            blamed = [name for row in set(sums) - {last} for name in matrix.names_of(group.number, row)]
            self.names |= dict.fromkeys(blamed or matrix.names)

    def give_up(self, part: ParityRows, group: Group, blocks: Tensor, diagnosis: Diagnosis) -> None:
        """Count the blocks of a group as uncorrectable, whose parity and sums alone were repaired."""
        others = [repair for repair in self.repairs if repair[1] is not group]
        self.repairs.clear()
        self.elements.clear()
        own = self.own
        for other in others:
            self.add(*other)
        self.own = own
        self.add(part, group, blocks, replace(diagnosis, blocks=None))

    def doubtful(self) -> dict[str, list[Tensor]]:
        """Elements that are wrong, or may be, by storage."""
        names = dict.fromkeys([*self.elements, *self.suspected])
        return {name: self.elements.get(name, []) + self.suspected.get(name, []) for name in names}


@final
class ParityGuard(Guard):
    """Parity rows and block sums of every storage, those of each device beside it.

    Attributes:
        parts: what is kept, by device, and how memory is cut into groups of blocks.
    """

    def __init__(self, memory: Mapping[str, Tensor], *, group: int) -> None:
        runs = runs_of(memory)
        self._counts: dict[str, int] = defaultdict(int)
        for run in runs:
            self._counts[run.name] += run.nbytes // run.itemsize
        self._bytes = sum(run.nbytes for run in runs)
        self._words = sum(self._counts.values())
        devices = dict.fromkeys(run.tensor.device for run in runs)
        self.parts = [
            ParityRows(matrices_of([run for run in runs if run.tensor.device == device], group)) for device in devices
        ]
        self._counters = Counters(memory)

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name: ``parity@cpu``, ``sums#1@cpu`` and ``sums#2@cpu``; int64."""
        return {
            f"{key}@{part.parity.device}": tensor
            for part in self.parts
            for key, tensor in (("parity", part.parity), ("sums#1", part.sums[0]), ("sums#2", part.sums[1]))
        }

    @property
    def protected_bytes(self) -> int:
        """All of the memory it was armed on."""
        return self._bytes

    @property
    def miss_probability(self) -> float:
        """Upper bound of the probability that a check misses two flipped bits, drawn uniformly from the guarded memory.

        They have to be the same bit of the same column, and to cancel: in opposite directions (at most half of the
        cases, if words do not depend on each other), or both in bit 63, where direction does not matter modulo 2^64.
        """
        bits = 8 * self._bytes
        matrices = [matrix for part in self.parts for matrix in part.matrices]
        pairs = sum(64 * matrix.width * matrix.rows * (matrix.rows - 1) for matrix in matrices)
        return pairs / bits / (bits - 1) * (63 / 64 / 2 + 1 / 64) if pairs else 0.0

    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Compare and repair.

        A slice is of columns of all groups, so that slices are of equal size even within one large tensor; if anything
        in it is wrong, all memory is checked before any is repaired.

        Returns:
            In words of memory, and of parity and sums; where blocks cannot be repaired, these count instead.
        """
        checked = len(pieces_of_turn(self._words, turn, turns))
        with inference():
            versions = self._counters.read()
            if all(part.is_intact(turn, turns) for part in self.parts):
                if turns == 1:
                    self._counters.note(versions)
                return nothing_found(checked)
            findings = self._examine()
            self._counters.require_no_update(
                {name: change(_distinct(found), self._counts[name]) for name, found in findings.doubtful().items()}
            )
            for part, group, blocks, diagnosis in list(findings.repairs):
                try:
                    part.repair(group, blocks, diagnosis)
                except ReadOnlyMemory:
                    findings.give_up(part, group, blocks, diagnosis)
        corrected = findings.own + sum(_distinct(found) for found in findings.elements.values())
        detected = corrected + findings.uncorrectable
        return GuardReport(self._words, detected, corrected, findings.uncorrectable, tuple(findings.names))

    def refresh(self) -> None:
        """Sum up the memory anew."""
        for part in self.parts:
            part.learn()
        self._counters.note()

    def _examine(self) -> _Findings:
        findings = _Findings()
        for part in self.parts:
            for group, blocks in part.suspects():
                findings.add(part, group, blocks, diagnose(blocks, part.known(group)))
        return findings


def _distinct(found: Sequence[Tensor]) -> int:
    """Count elements, each once; one may lie in two blocks."""
    return len(torch.unique(torch.cat([numbers.cpu() for numbers in found])))
