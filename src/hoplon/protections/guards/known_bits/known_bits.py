"""Bits that are equal in all words of a tensor: restored without a copy of anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, checked
from hoplon.protections.base import Protection
from hoplon.protections.guards.index_sums import mend_entry, power_sums
from hoplon.protections.guards.known_bits.fingerprint import changed_samples, fingerprint_of, same_sum
from hoplon.protections.guards.known_bits.reduction import BitwiseReduction
from hoplon.protections.guards.known_bits.segments import Segment, segments_of
from hoplon.protections.guards.voting import distinct
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, nothing_found
from hoplon.registry import register


@register(
    "protection",
    "known-bits",
    sentence="Restores the bits that all words of a tensor share, before each batch. Meant for corrupted weights "
    "in memory; it leaves other bits alone, which do little harm.",
)
@final
@checked
@dataclass(frozen=True)
class KnownBits(Protection):
    """Restores the bits that are equal in all words of a tensor, from one word that says which and one that says how.

    Trained weights are small: the highest exponent bits are the same in all words of a tensor, and those are the ones
    whose flips do nearly all of the harm. Per tensor the guard keeps two words (8 bytes for float32), and an 8-byte
    fingerprint (a checksum and hashes of eight words), which is looked at only where a known bit is wrong. A check
    reads the memory once.

    Repaired for certain: every flip of known bits, however many and wherever, as long as no other bits are wrong;
    ``corrected``, bit for bit. Mitigated: words that also have other wrong bits; the known ones are restored, the
    others stay. Not looked for: flips of other bits alone; they go by unreported. Words are claimed as corrected
    although other bits are wrong with a probability of 2^-32.
    The guard's own words are kept beside sums, which repair one wrong entry of them and report two.

    An update of the weights is refused (:class:`StaleGuardError`) as soon as it moves a word out of the known
    bits; before that it is left alone, and a fault after it is refused with it until ``refresh()``. Where torch counted
    no write, eight hashed words of each storage tell whether most of it is what it was.
    """

    block: Count | None = None

    @property
    def label(self) -> str:
        """Name in reports: "known-bits", or "known-bits/1024" with blocks."""
        return "known-bits" if self.block is None else f"known-bits/{self.block}"

    @property
    @override
    def guarantee(self) -> str:
        where = "tensor" if self.block is None else f"block of {self.block:,} words"
        return (
            f"repairs any number of flips in the bits that are equal in all words of a {where}; where words have "
            "other wrong bits as well, those stay (mitigated); does not look for flips of other bits alone; calls "
            "a word corrected that is not with probability 2^-32"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> KnownBitsGuard:
        """Arm a guard on these tensors; names that share a storage are guarded once."""
        return KnownBitsGuard(memory, self.block)


@final
class KnownBitsGuard(StorageGuard["_Suspect"]):
    """The known bits of every storage, or of every block of it; ``protected_bytes`` has :attr:`known_share` of them.

    Checks count words of memory, a corrupted entry of the guard's own counting as one. Where a block has wrong words
    in a slice, the whole block is mended.
    """

    compares_all = False

    def __init__(self, memory: Mapping[str, Tensor], block: int | None) -> None:
        super().__init__(memory, distinct(memory))
        segments = segments_of(self._live, block)
        self._groups = {
            str(dtype).removeprefix("torch."): _Group([part for part in segments if part.dtype == dtype])
            for dtype in dict.fromkeys(part.dtype for part in segments)
        }
        self.refresh()

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory, by width of word: ``int32#known``, ``#evidence`` and ``#sums``."""
        return {
            f"{width}#{key}": tensor
            for width, group in self._groups.items()
            for key, tensor in (("known", group.known), ("evidence", group.fingerprints), ("sums", group.sums))
        }

    @property
    def known_bits(self) -> dict[str, tuple[int, ...]]:
        """By storage, the bits that are known in all of its blocks, 0 = least significant. Pruned tensors have few."""
        masks = dict.fromkeys(self._live, -1)
        for group in self._groups.values():
            for segment, mask in zip(group.segments, group.masks.tolist(), strict=True):
                masks[segment.name] &= mask
        return {
            name: tuple(bit for bit in range(8 * self._live[name].itemsize) if mask >> bit & 1)
            for name, mask in masks.items()
        }

    @property
    def known_share(self) -> float:
        """The share of all bits of the memory that are known."""
        known = sum(
            len(segment) * sum(mask >> bit & 1 for bit in range(8 * segment.dtype.itemsize))
            for group in self._groups.values()
            for segment, mask in zip(group.segments, group.masks.tolist(), strict=True)
        )
        total = 8 * sum(segment.nbytes for group in self._groups.values() for segment in group.segments)
        return known / total if total else 0.0

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, _Suspect]]:
        checked, own = 0, list[GuardReport]()
        suspects: dict[str, _Suspect] = {}
        for group in self._groups.values():
            mended = None if group.is_right() else group.mend()
            if mended is not None:
                own.append(mended)
            if mended is None or not mended.uncorrectable:
                words, numbers = group.reduction.violating(group.masks, group.values, turn, turns)
                checked += words
                for number in numbers:
                    suspects.setdefault(group.segments[number].name, []).append((group, number))
        return sum(own, nothing_found(checked)), suspects

    @override
    def _changes(self, suspects: Mapping[str, _Suspect]) -> dict[str, Change]:
        totals, sampled, seen = Counter[str](), Counter[str](), Counter[str]()
        for group in self._groups.values():
            for number, segment in enumerate(group.segments):
                totals[segment.name] += len(segment)
                changed, count = group.changed_samples(number)
                seen[segment.name] += changed
                sampled[segment.name] += count
        wrong = {name: sum(int(group.wrong(n).sum()) for group, n in suspect) for name, suspect in suspects.items()}
        return {
            name: Change(wrong.get(name, 0), total, 2 * max(wrong.get(name, 0) / total, seen[name] / sampled[name]) > 1)
            for name, total in totals.items()
        }

    @override
    def _repaired(self, name: str, suspect: _Suspect) -> GuardReport:
        return sum((group.restore(number) for group, number in suspect), GuardReport())

    def refresh(self) -> None:
        """Find the known bits anew."""
        with torch.inference_mode():
            for group in self._groups.values():
                group.refresh()
        self._counters.note()


class _Group:
    """The segments of one width of word: masks and values of their known bits, and fingerprints."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self.reduction = BitwiseReduction(segments)
        with torch.inference_mode(False):
            self.known = torch.zeros(2 * len(segments), dtype=segments[0].dtype)
            self.fingerprints = torch.zeros(2 * len(segments), dtype=torch.int32)
            self.sums = torch.zeros(6, dtype=torch.int64)
            self.masks, self.values = self.known.chunk(2)
            self._entries = _narrow(self.known)
            self._known_sums, self._evidence_sums = self.sums.chunk(2)

    def refresh(self) -> None:
        every, some = self.reduction.all_and_any()
        self.masks.copy_(~(every ^ some))
        self.values.copy_(every & some)
        for number, segment in enumerate(self.segments):
            self.fingerprints[2 * number : 2 * number + 2] = fingerprint_of(segment.words())
        self._known_sums.copy_(power_sums(self._entries))
        self._evidence_sums.copy_(power_sums(self.fingerprints))

    def is_right(self) -> bool:
        """Return True if masks and values are as they were; one sum alone would hide two wrong ones that cancel."""
        return torch.equal(power_sums(self._entries), self._known_sums)

    def mend(self) -> GuardReport:
        """Repair masks and values; what was wrong with them."""
        entries = self._entries
        limits = torch.iinfo(entries.dtype)
        position = mend_entry(entries, self._known_sums, limits.min, limits.max + 1)
        if position is None:
            names = tuple(dict.fromkeys(segment.name for segment in self.segments))
            return GuardReport(0, len(self.segments), 0, len(self.segments), names)
        per_word = len(entries) // len(self.known)
        segment = self.segments[max(position, 0) // per_word % len(self.segments)]
        return GuardReport(0, 1, 1, 0, (segment.name,))

    def wrong(self, number: int) -> Tensor:
        """Return a mask of the words of a segment with a wrong known bit: bool, shape ``(words,)``."""
        return ((self.segments[number].words() ^ self.values[number]) & self.masks[number]) != 0

    def restored(self, number: int) -> Tensor:
        """The words of a segment with their known bits as they were."""
        mask = self.masks[number]
        return (self.segments[number].words() & ~mask) | (self.values[number] & mask)

    def fits(self, number: int) -> bool:
        """Return True if the restored words have the checksum of the segment."""
        return same_sum(fingerprint_of(self.restored(number)), self._fingerprint(number))

    def changed_samples(self, number: int) -> tuple[int, int]:
        """Count the sampled words of a segment that changed in bits that are not known, and all sampled ones."""
        return changed_samples(self.restored(number), self._fingerprint(number))

    def restore(self, number: int) -> GuardReport:
        """Write the known bits of a segment."""
        segment, wrong, words = self.segments[number], self.wrong(number), self.restored(number)
        count, corrected = int(wrong.sum()), self.fits(number)
        segment.write(wrong.nonzero()[:, 0], words[wrong])
        return GuardReport(0, count, count * corrected, 0, (segment.name,), count * (not corrected))

    def _fingerprint(self, number: int) -> Tensor:
        """Return the fingerprint of a segment when it was last taken for correct; one wrong entry of all is mended."""
        if not torch.equal(power_sums(self.fingerprints), self._evidence_sums):
            limits = torch.iinfo(torch.int32)
            mend_entry(self.fingerprints, self._evidence_sums, limits.min, limits.max + 1)
        return self.fingerprints[2 * number : 2 * number + 2]


_Suspect = list[tuple[_Group, int]]
"""The segments of one storage with wrong known bits, by number."""


def _narrow(words: Tensor) -> Tensor:
    """Words as integers of less than 64 bits, for sums of powers."""
    return words.view(torch.int32) if words.dtype == torch.int64 else words
