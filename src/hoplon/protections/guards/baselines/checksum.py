"""Checksums over groups of words: what they find is flagged, set to zero or loaded again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from math import ceil
from pathlib import Path
from typing import Literal, final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, DataError, HoplonError, checked, said
from hoplon.formats.base import integer_view
from hoplon.protections.base import Protection
from hoplon.protections.guards.known_bits.fingerprint import changed_samples, fingerprint_of, same_sum
from hoplon.protections.guards.known_bits.segments import Segment, segments_of
from hoplon.protections.guards.memory.words import in_batches, joint_words, of_turn_by_size, shared
from hoplon.protections.guards.voting import copy_of, distinct
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, inference, nothing_found
from hoplon.registry import register

Action = Literal["flag", "zero", "reload"]
Source = Callable[[str], Tensor] | str | os.PathLike[str]

_PIECE_WORDS = 1 << 16
_MOST_BYTES = 1 << 24  # summed up in one go
_EVEN_GROUPS = 16  # of a storage: fewer are summed up with those of others
_LAUNCHED_WORDS = 1 << 24


@register("protection", "checksum")
@final
@checked
@dataclass(frozen=True)
class Checksum(Protection):
    """Detects wrong bits in the most significant byte of words, by a sum over each group; repairs nothing by itself.

    Per group of words the guard keeps the sum of their top bytes (sign and seven exponent bits of a float32), modulo
    2^16, twice: 4 bytes a group. Counts are of groups.

    Detected for certain: every single flip in the top bytes of a group, every two but opposite ones in one bit lane,
    and fewer than 512 in one lane and direction. Two random flips in the top bytes of one group are missed with
    a probability of 1/16; other changes with about 2^-16. Flips below the top byte are not looked for: acting upon a
    harmless flip would do more harm than the flip.

    What is done with a wrong group: "flag" reports it as uncorrectable; "zero" sets all of its words to 0
    (``mitigated``), and remembers that; "reload" takes them from ``source`` (``corrected``), unless the words there
    are not those that the guard learned (uncorrectable, left as they are).

    An update of the weights is refused (:class:`StaleGuardError`) as soon as it makes a group wrong; before that it is
    left alone, and a fault after it is refused with it until ``refresh()``. Where torch counted no write, eight hashed
    words of each storage tell whether most of it is what it was.

    Args:
        action: what is done.
        group: words per group.
        source: of the words to load, with "reload": a function from the name of a storage to a tensor like it, or the
            path of a safetensors file with these names.
    Raises:
        HoplonError: an unknown action, a group of less than one word, or a source where none belongs or none where one
            does.
    Source:
        The class of RADAR: Li et al., RADAR: Run-time Adversarial Weight Attack Detection and Accuracy Recovery, DATE
        2021, which keeps two bits of a masked sum over interleaved int8 weights, against an attacker, and sets groups
        to zero. Here against chance: no key, no interleaving, the whole sum, any dtype.
    """

    action: Action = "flag"
    group: Count = 512
    source: Source | None = None

    def __post_init__(self) -> None:
        if (self.action == "reload") != (self.source is not None):
            raise HoplonError(
                f"expected a source of weights with action 'reload' and no other, got action {self.action!r} and "
                f"source {self.source!r}"
            )

    @property
    def label(self) -> str:
        """Name in reports, e.g. "checksum-flag"."""
        return f"checksum-{self.action}"

    @property
    @override
    def guarantee(self) -> str:
        then = {"flag": "reports them", "zero": "sets them to 0 (mitigated)", "reload": "loads them again"}[self.action]
        return (
            f"detects one flip, and any two but opposite ones in one lane, in the top bytes of a group of {self.group} "
            f"words, and {then}; misses two random flips there with probability 1/16, other changes with about 2^-16; "
            "does not look at the bits below"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> ChecksumGuard:
        """A guard over these tensors; names that share a storage are guarded once."""
        return ChecksumGuard(memory, self)


@dataclass(frozen=True)
class _Piece:
    """Consecutive groups of a storage.

    Attributes:
        nbytes: of their words.
        address: of the first one, on the CPU and without gaps; else 0.
        even: many groups, none of them shorter.
    """

    name: str
    groups: range
    nbytes: int
    address: int
    even: bool

    def __len__(self) -> int:
        return self.nbytes


@dataclass(frozen=True)
class _Run:
    """Groups that follow each other in memory: of which storages, their sums as they are now and as kept twice."""

    names: tuple[str, ...]
    sums: Callable[[], Tensor]
    kept: tuple[Tensor, Tensor]
    nbytes: int

    def is_right(self) -> bool:
        now, (first, second) = self.sums(), self.kept
        return torch.equal(now, first) and torch.equal(now, second)


def _differing(runs: Sequence[_Run]) -> list[str]:
    """Storages of runs with a group whose sum is not as both kept ones."""
    with inference():
        found = [run for run in runs if not run.is_right()]
    return [name for run in found for name in run.names]


def _pieces_of(segment: Segment, size: int) -> list[_Piece]:
    on_cpu = segment.device.type == "cpu"
    step = max(1, (_PIECE_WORDS if on_cpu else _LAUNCHED_WORDS) // size)
    address = 0 if segment.row is None or not on_cpu else segment.row.data_ptr()
    itemsize = segment.dtype.itemsize
    whole, count = len(segment) // size, -(-len(segment) // size)
    even = whole if whole >= _EVEN_GROUPS else 0
    parts = [(groups, groups.stop <= even) for end in (range(even), range(even, count)) for groups in _cut(end, step)]
    return [
        _Piece(segment.name, groups, len(words) * itemsize, address and address + words.start * itemsize, many)
        for groups, many in parts
        for words in [range(groups.start * size, min(groups.stop * size, len(segment)))]
    ]


def _cut(whole: range, step: int) -> list[range]:
    return [whole[start : start + step] for start in range(0, len(whole), step)]


def _top_bytes(words: Tensor) -> Tensor:
    return words if words.itemsize == 1 else words >> 8 * (words.itemsize - 1)


def _even_sums(groups: Tensor) -> Callable[[], Tensor]:
    """What sums up the top bytes of rows of words, int16: a product of bytes with ones where that is exact."""
    if not _multiplies_bytes():
        return lambda: _top_bytes(groups).sum(1, dtype=torch.int32).to(torch.int16)
    ones = torch.ones(groups.shape[1], dtype=groups.dtype) << 8 * (groups.itemsize - 1)
    data, ones = groups.view(torch.int8), ones.view(torch.int8)[:, None]
    return lambda: torch._int_mm(data, ones)[:, 0].to(torch.int16)


def _uneven_sums(words: Tensor, starts: npt.NDArray[np.intp]) -> Callable[[], Tensor]:
    """What sums up the top bytes of groups that begin at these words, int16."""
    row, shift = words.numpy(), 8 * (words.itemsize - 1)
    return lambda: torch.from_numpy(np.add.reduceat(row >> shift, starts, dtype=np.int32).astype(np.int16))


@functools.cache
def _multiplies_bytes() -> bool:
    """Return True if this torch multiplies matrices of bytes on this processor, without rounding at any step."""
    if not hasattr(torch, "_int_mm") or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    rows = torch.arange(-128, 128).to(torch.int8)[:, None].repeat(1, 64)
    ones = torch.tensor([0, 0, 0, 1] * 8 + [1] * 32, dtype=torch.int8)
    return bool((torch._int_mm(rows, ones[:, None])[:, 0] == 40 * torch.arange(-128, 128)).all())


@final
class ChecksumGuard(StorageGuard[tuple[Tensor, Tensor]]):
    """Two sums for every group of words; checks count groups, and a wrong sum as its group."""

    compares_all = False

    def __init__(self, memory: Mapping[str, Tensor], how: Checksum) -> None:
        super().__init__(memory, distinct(memory))
        self._how = how
        self._segments = {segment.name: segment for segment in segments_of(self._live, None)}
        self._pieces = sorted(
            (piece for segment in self._segments.values() for piece in _pieces_of(segment, how.group)),
            key=lambda piece: piece.address,
        )
        counts = {name: -(-len(segment) // how.group) for name, segment in self._segments.items()}
        ordered = list(dict.fromkeys(piece.name for piece in self._pieces))
        self._copies: dict[str, Tensor] = {}
        for key in ("sums1", "sums2"):
            for device in dict.fromkeys(segment.device for segment in self._segments.values()):
                there = [name for name in ordered if self._segments[name].device == device]
                sizes = [counts[name] for name in there]
                together = copy_of(torch.zeros(sum(sizes), dtype=torch.int16, device=device)).split(sizes)
                self._copies |= {f"{name}#{key}": sums for name, sums in zip(there, together, strict=True)}
        self._copies |= {f"{name}#evidence": copy_of(torch.zeros(2, dtype=torch.int32)) for name in self._segments}
        self._runs: dict[tuple[int, int], tuple[list[_Run], int]] = {}
        self.refresh()

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name: ``conv1.weight#sums1`` and ``#sums2``, and ``#evidence`` of each storage."""
        return self._copies

    @override
    def refresh(self) -> None:
        with torch.inference_mode():
            for name in self._segments:
                self._learn(name, torch.tensor(True))
                self._learn_evidence(name)
        self._counters.note()

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, tuple[Tensor, Tensor]]]:
        if (turn, turns) not in self._runs:
            pieces = of_turn_by_size(self._pieces, lambda piece: len(piece.groups), turn, turns)
            self._runs[turn, turns] = self._runs_of(pieces), sum(len(piece.groups) for piece in pieces)
        runs, groups = self._runs[turn, turns]
        names = dict.fromkeys(chain.from_iterable(shared(_differing, runs, lambda run: run.nbytes)))
        wrong = {name: self._wrong(name) for name in names}
        return nothing_found(groups), {name: masks for name, masks in wrong.items() if any(map(torch.any, masks))}

    def _runs_of(self, pieces: Sequence[_Piece]) -> list[_Run]:
        """The pieces, those that follow each other in memory together."""
        before = dict(zip(pieces, accumulate(map(len, pieces), initial=0), strict=False))

        def base(piece: _Piece) -> object:
            """The same for pieces that follow each other in memory, in one storage or in one arena."""
            if not piece.address:
                return piece
            around = joint_words(self._segments[piece.name].storage_words())[0].data_ptr()
            return around, piece.address - before[piece]

        batches = in_batches(
            pieces,
            lambda piece: (self._segments[piece.name].dtype, piece.even, base(piece)),
            lambda piece: _MOST_BYTES if piece.even else _PIECE_WORDS,
        )
        return [self._run_of(batch) for batch in batches]

    def _run_of(self, batch: Sequence[_Piece]) -> _Run:
        first, size, segment = batch[0], self._how.group, self._segments[batch[0].name]
        count = sum(len(piece.groups) for piece in batch)
        one, other = (sums[first.groups.start :].as_strided((count,), (1,)) for sums in self._kept(first.name))
        nbytes = sum(map(len, batch))
        sums: Callable[[], Tensor] = partial(self._sums_of, first.name, first.groups)
        if first.address:
            words, _ = joint_words(segment.storage_words())
            start = (first.address - words.data_ptr()) // words.itemsize
            row = words[start : start + nbytes // words.itemsize]
            if first.even:
                sums = _even_sums(row.view(-1, size))
            else:
                lengths = [len(part) for one in batch for part in _cut(range(len(one) // row.itemsize), size)]
                sums = _uneven_sums(row, np.cumsum([0, *lengths[:-1]]))
        return _Run(tuple(dict.fromkeys(piece.name for piece in batch)), sums, (one, other), nbytes)

    def _kept(self, name: str) -> tuple[Tensor, Tensor]:
        return self._copies[f"{name}#sums1"], self._copies[f"{name}#sums2"]

    def _sums_of(self, name: str, groups: range | None = None) -> Tensor:
        """Sums of the top bytes of some groups, or of all, int16."""
        words, size = self._segments[name].storage_words(), self._how.group
        if groups is not None:
            words = words[groups.start * size : groups.stop * size]
        top = _top_bytes(words)
        whole = len(top) // size * size
        sums = [top[:whole].view(-1, size).sum(1, dtype=torch.int32)]
        if whole < len(top):
            sums.append(top[whole:].sum(dtype=torch.int32)[None])
        return torch.cat(sums).to(torch.int16)

    def _learn(self, name: str, groups: Tensor) -> None:
        """Take these groups (a mask) of a storage as they are now for correct."""
        now = self._sums_of(name)
        for sums in self._kept(name):
            sums.copy_(torch.where(groups, now, sums))

    def _learn_evidence(self, name: str) -> None:
        self._copies[f"{name}#evidence"].copy_(fingerprint_of(self._segments[name].words()))

    def _wrong(self, name: str) -> tuple[Tensor, Tensor]:
        """Return masks of the wrong groups of a storage, and of those with one wrong sum: bool, shape ``(groups,)``."""
        now, (first, second) = self._sums_of(name), self._kept(name)
        return (now != first) & (now != second), (now == first) ^ (now == second)

    @override
    def _changes(self, suspects: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Change]:
        found = {}
        for name, segment in self._segments.items():
            wrong, total = suspects[name][0] if name in suspects else torch.zeros(1), len(segment)
            share = int(wrong.sum()) / len(wrong)
            changed, sampled = changed_samples(segment.words(), self._copies[f"{name}#evidence"])
            throughout = 2 * changed > sampled or (len(wrong) > 1 and 2 * share > 1)
            found[name] = Change(ceil(total * share), total, throughout)
        return found

    @override
    def _repaired(self, name: str, suspect: tuple[Tensor, Tensor]) -> GuardReport:
        wrong, sums_only = suspect
        count, mended, segment = int(wrong.sum()), int(sums_only.sum()), self._segments[name]
        self._learn(name, sums_only)
        report = GuardReport(0, mended + count, mended, 0, (name,))
        if not count or self._how.action == "flag":
            return report + GuardReport(uncorrectable=count)
        places = wrong.cpu().repeat_interleave(self._how.group)[: len(segment)].nonzero()[:, 0]
        if self._how.action == "zero":
            segment.write(places, torch.zeros(len(places), dtype=segment.dtype))
            self._learn(name, wrong)
            self._learn_evidence(name)
            return report + GuardReport(mitigated=count)
        words = _loaded(self._how.source, name, self._live[name])
        if not same_sum(fingerprint_of(words), self._copies[f"{name}#evidence"]):
            return report + GuardReport(uncorrectable=count)
        segment.write(places, words[places])
        left = int(self._wrong(name)[0].sum())
        return report + GuardReport(corrected=count - left, uncorrectable=left)


def _loaded(source: Source | None, name: str, live: Tensor) -> Tensor:
    """The words of a storage from where they are kept, as one row in the order of the storage's memory.

    Raises:
        DataError: no such file, or no tensor like it there.
    """
    if callable(source):
        found = source(name)
    else:
        try:
            with safe_open(Path(str(source)), framework="pt") as file:
                found = file.get_tensor(name)
        except (OSError, SafetensorError, RuntimeError, TypeError) as error:
            raise DataError(f"expected {name} in {source}, got {said(error)}; save the weights there") from error
    if (found.shape, found.dtype) != (live.shape, live.dtype):
        raise DataError(
            f"expected {name} of {live.dtype} and shape {tuple(live.shape)} to load again, got {found.dtype} and "
            f"{tuple(found.shape)}"
        )
    like = torch.empty_like(live, device="cpu")
    integer_view(like).copy_(integer_view(found))
    return segments_of({name: like}, None)[0].words()
