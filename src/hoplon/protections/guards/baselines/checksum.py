"""Checksums over groups of words: what they find is flagged, set to zero or loaded again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Literal, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, DataError, HoplonError, checked, said
from hoplon.formats.base import integer_view
from hoplon.protections.base import Protection
from hoplon.protections.guards.known_bits.fingerprint import changed_samples, fingerprint_of, same_sum
from hoplon.protections.guards.known_bits.segments import segments_of
from hoplon.protections.guards.memory.words import of_turn_by_size, shared
from hoplon.protections.guards.voting import copy_of, distinct
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard
from hoplon.registry import register

Action = Literal["flag", "zero", "reload"]
Source = Callable[[str], Tensor] | str | os.PathLike[str]

_PIECE_WORDS = 1 << 16
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


@final
class ChecksumGuard(StorageGuard[tuple[Tensor, Tensor]]):
    """Two sums for every group of words; checks count groups, and a wrong sum as its group."""

    compares_all = False

    def __init__(self, memory: Mapping[str, Tensor], how: Checksum) -> None:
        super().__init__(memory, distinct(memory))
        self._how = how
        self._segments = {segment.name: segment for segment in segments_of(self._live, None)}
        self._copies: dict[str, Tensor] = {}
        self._pieces: list[tuple[str, range]] = []
        for name, segment in self._segments.items():
            groups = range(-(-len(segment) // how.group))
            step = max(1, (_PIECE_WORDS if segment.device.type == "cpu" else _LAUNCHED_WORDS) // how.group)
            self._pieces += [(name, groups[start : start + step]) for start in groups[::step]]
            empty = torch.zeros(len(groups), dtype=torch.int16, device=segment.device)
            self._copies |= {f"{name}#sums1": copy_of(empty), f"{name}#sums2": copy_of(empty)}
        self._copies |= {f"{name}#evidence": copy_of(torch.zeros(2, dtype=torch.int32)) for name in self._segments}
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
        pieces = of_turn_by_size(self._pieces, lambda piece: len(piece[1]), turn, turns)
        found = shared(self._differing, pieces, lambda piece: 4 * self._how.group * len(piece[1]))
        suspects = {name: self._wrong(name) for name in dict.fromkeys(chain.from_iterable(found))}
        return GuardReport(sum(len(groups) for _, groups in pieces)), suspects

    def _differing(self, pieces: Sequence[tuple[str, range]]) -> list[str]:
        """Storages with a group whose sum is not as both kept ones."""
        with torch.inference_mode():
            return [
                name
                for name, groups in pieces
                for now in [self._sums_of(name, groups)]
                if not all(torch.equal(now, sums[groups.start : groups.stop]) for sums in self._kept(name))
            ]

    def _kept(self, name: str) -> tuple[Tensor, Tensor]:
        return self._copies[f"{name}#sums1"], self._copies[f"{name}#sums2"]

    def _sums_of(self, name: str, groups: range | None = None) -> Tensor:
        """Sums of the top bytes of some groups, or of all, int16."""
        words, size = self._segments[name].storage_words(), self._how.group
        if groups is not None:
            words = words[groups.start * size : groups.stop * size]
        top = words if words.itemsize == 1 else words >> 8 * (words.itemsize - 1)
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
