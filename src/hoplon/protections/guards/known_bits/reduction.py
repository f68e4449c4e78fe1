"""Bitwise AND and OR over the words of segments, which tell where a known bit is wrong: memory is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoplon.protections.guards.known_bits.segments import Segment
from hoplon.protections.guards.memory.words import in_batches, joint_words, of_turn_by_size, shared

_CACHED_BYTES = 1 << 18  # stays in a core's cache from the first reduction to the second
_LAUNCHED_BYTES = 1 << 26  # elsewhere, the launch of an operator is what costs

_Words = npt.NDArray[Any]


@dataclass(frozen=True)
class _Piece:
    """Words ``start`` to ``stop`` of the segment with this number."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Run:
    """Consecutive pieces of one storage in numpy's terms: words, where each piece starts, AND and OR of each."""

    words: _Words
    starts: npt.NDArray[np.intp]
    every: _Words
    some: _Words


@dataclass(frozen=True)
class _Slice:
    """The pieces of one turn: those on the CPU as runs, with the number of each one's segment, and all others."""

    runs: list[_Run]
    numbers: npt.NDArray[np.intp]
    every: _Words
    some: _Words
    others: list[list[_Piece]]
    words: int


@final
class BitwiseReduction:
    """Walks over segments of one width of word, on all threads.

    On the CPU numpy reduces a piece twice, with "and" and with "or", while the cache holds it; that takes 1.3 times as
    long as one sum of int64 words. torch has no such reduction, and its operators would write as much as they read.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._pieces = [
            _Piece(number, start, min(start + step, len(segment)))
            for number, segment in enumerate(segments)
            for step in [_step(segment)]
            for start in range(0, len(segment), step)
        ]
        storages = {segment.name: segment for segment in segments if self._is_cached(segment)}
        self._around = {name: joint_words(segment.storage_words()) for name, segment in storages.items()}
        self._pieces.sort(key=self._address)
        self._slices: dict[tuple[int, int], _Slice] = {}

    def violating(self, masks: Tensor, values: Tensor, turn: int, turns: int) -> tuple[int, list[int]]:
        """Count the words of a turn, and list the numbers of the segments with one whose masked bits are wrong."""
        if (turn, turns) not in self._slices:
            self._slices[turn, turns] = self._slice(turn, turns)
        portion = self._slices[turn, turns]
        shared(_reduce, portion.runs, lambda run: run.words.nbytes)
        mask, value = masks.numpy()[portion.numbers], values.numpy()[portion.numbers]
        wrong = ((portion.every ^ value) | (portion.some ^ value)) & mask
        if not portion.others and not np.count_nonzero(wrong):
            return portion.words, []
        found = set(portion.numbers[wrong != 0].tolist()) | self._violating_elsewhere(portion.others, masks, values)
        return portion.words, sorted(found)

    def all_and_any(self) -> tuple[Tensor, Tensor]:
        """For each segment the bits that all of its words have, and those that any has; on the CPU."""
        rows = [segment.words().numpy() for segment in self._segments]
        every = np.array([np.bitwise_and.reduce(row) for row in rows], dtype=rows[0].dtype)
        some = np.array([np.bitwise_or.reduce(row) for row in rows], dtype=rows[0].dtype)
        return torch.from_numpy(every), torch.from_numpy(some)

    def _slice(self, turn: int, turns: int) -> _Slice:
        pieces = of_turn_by_size(self._pieces, len, turn, turns)
        before = dict(zip(pieces, accumulate(map(len, pieces), initial=0), strict=False))

        def place(piece: _Piece) -> object:
            """The same for pieces that follow each other in memory without a gap."""
            around, start = self._address(piece)
            return around, start - before[piece] if around else self._segments[piece.number].name

        runs = in_batches(pieces, place, lambda piece: _step(self._segments[piece.number]))
        cached = [run for run in runs if self._is_cached(self._segments[run[0].number])]
        dtype = torch.empty(0, dtype=self._segments[0].dtype).numpy().dtype
        count = sum(len(run) for run in cached)
        every, some = np.zeros(count, dtype), np.zeros(count, dtype)
        cut: list[_Run] = []
        done = 0
        for run in cached:
            starts = np.cumsum([0, *map(len, run[:-1])], dtype=np.intp)
            ends = slice(done, done + len(run))
            words, first = self._around[self._segments[run[0].number].name][0], self._address(run[0])[1]
            cut.append(_Run(words[first : first + sum(map(len, run))].numpy(), starts, every[ends], some[ends]))
            done += len(run)
        return _Slice(
            cut,
            np.array([piece.number for run in cached for piece in run], dtype=np.intp),
            every,
            some,
            [run for run in runs if not self._is_cached(self._segments[run[0].number])],
            sum(map(len, pieces)),
        )

    def _address(self, piece: _Piece) -> tuple[int, int]:
        """Where the words are among which a piece lies, and its first one among them; of the storage where none are."""
        segment = self._segments[piece.number]
        words, start = self._around.get(segment.name, (None, 0))
        return 0 if words is None else words.data_ptr(), start + segment.start + piece.start

    @staticmethod
    def _is_cached(segment: Segment) -> bool:
        return segment.device.type == "cpu" and segment.row is not None

    def _words(self, run: Sequence[_Piece]) -> Tensor:
        first, last = self._segments[run[0].number], self._segments[run[-1].number]
        return first.storage_words()[first.start + run[0].start : last.start + run[-1].stop]

    def _violating_elsewhere(self, runs: Sequence[list[_Piece]], masks: Tensor, values: Tensor) -> set[int]:
        """Numbers of violating segments on other devices, or in memory with gaps."""
        if not runs:
            return set()
        flags = []
        for run in runs:
            words = self._words(run)
            numbers = slice(run[0].number, run[-1].number + 1)
            sizes = torch.tensor([len(piece) for piece in run])
            mask, value = (
                (part[numbers] if len(run) == 1 else part[numbers].repeat_interleave(sizes)).to(words.device)
                for part in (masks, values)
            )
            flags.append((((words ^ value) & mask) != 0).any())
        suspects = {piece.number for run, flag in zip(runs, flags, strict=True) if flag for piece in run}
        return {n for n in suspects if bool((((self._segments[n].words() ^ values[n]) & masks[n]) != 0).any())}


def _step(segment: Segment) -> int:
    """Words of a segment that are walked over at once."""
    return (_CACHED_BYTES if segment.device.type == "cpu" else _LAUNCHED_BYTES) // segment.dtype.itemsize


def _reduce(runs: Sequence[_Run]) -> None:
    for run in runs:
        np.bitwise_and.reduceat(run.words, run.starts, out=run.every)
        np.bitwise_or.reduceat(run.words, run.starts, out=run.some)
