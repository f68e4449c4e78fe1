"""Checksums over groups of words: what they find is flagged, set to zero or loaded again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from hoplon.errors import DataError, HoplonError
from hoplon.formats.base import integer_view
from hoplon.protections.base import Protection
from hoplon.protections.guards.known_bits.fingerprint import changed_samples, fingerprint_of
from hoplon.protections.guards.known_bits.segments import Segment, segments_of
from hoplon.protections.guards.memory.words import of_turn_by_size, shared
from hoplon.protections.guards.voting import copy_of, distinct
from hoplon.protections.memory_guard import Guard, GuardReport, require_no_update, version_of

Action = Literal["flag", "zero", "reload"]
Source = Callable[[str], Tensor] | str | os.PathLike[str]

_PIECE_WORDS = 1 << 16
_LAUNCHED_WORDS = 1 << 24


@final
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
    (``mitigated``), and remembers that; "reload" takes them from ``source`` (``corrected`` if its sum then fits, else
    uncorrectable).

    An update of the weights is refused (:class:`StaleGuardError`) where most groups of a storage, or most of
    eight hashed words, are not what they were, within the limits of :func:`require_no_update`.

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
    group: int = 512
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.action not in ("flag", "zero", "reload"):
            raise HoplonError(f"expected action 'flag', 'zero' or 'reload', got {self.action!r}")
        if self.group < 1:
            raise HoplonError(f"expected a group of at least one word, got {self.group}")
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
        return ChecksumGuard(distinct(memory), self)


@final
class ChecksumGuard(Guard):
    """Two sums for every group of words."""

    def __init__(self, storages: Mapping[str, Tensor], how: Checksum) -> None:
        self._live, self._how = storages, how
        self._segments = {segment.name: segment for segment in segments_of(storages, None)}
        groups = {name: -(-len(segment) // how.group) for name, segment in self._segments.items()}
        self._copies: dict[str, Tensor] = {}
        for name, segment in self._segments.items():
            empty = torch.zeros(groups[name], dtype=torch.int16, device=segment.device)
            self._copies |= {f"{name}#sums1": copy_of(empty), f"{name}#sums2": copy_of(empty)}
        self._fingerprints: dict[str, Tensor] = {}
        self._pieces = [
            (name, start, min(start + step, groups[name]))
            for name, segment in self._segments.items()
            for step in [max(1, (_PIECE_WORDS if segment.device.type == "cpu" else _LAUNCHED_WORDS) // how.group)]
            for start in range(0, groups[name], step)
        ]
        self.refresh()

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name: ``conv1.weight#sums1`` and ``#sums2``, and ``#evidence`` of each storage."""
        return self._copies | {f"{name}#evidence": tensor for name, tensor in self._fingerprints.items()}

    @property
    def protected_bytes(self) -> int:
        """All of the memory it was armed on, of whose words it sees the top bytes."""
        return sum(live.nbytes for live in self._live.values())

    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Compare sums and act; counts groups, and a wrong sum as its group."""
        sizes = [(stop - start) * self._how.group for _, start, stop in self._pieces]
        numbers = of_turn_by_size(sizes, turn, turns)
        pieces, sizes = self._pieces[numbers.start : numbers.stop], sizes[numbers.start : numbers.stop]
        report = GuardReport(sum(stop - start for _, start, stop in pieces))
        if not pieces:
            return report
        names = dict.fromkeys(
            name for run in shared(self._differing, pieces, [4 * size for size in sizes]) for name in run
        )
        with torch.inference_mode():
            wrong = {name: self._wrong(name) for name in names}
            for name in names:
                self._require_no_update(name, wrong[name])
            for name in names:
                report += self._act(name, wrong[name])
                self._versions[name] = version_of(self._live[name])
        return report

    def refresh(self) -> None:
        """Sum up the memory anew."""
        with torch.inference_mode():
            for name, segment in self._segments.items():
                sums = self._sums_of(name, 0, len(self._copies[f"{name}#sums1"]))
                for key in ("sums1", "sums2"):
                    self._copies[f"{name}#{key}"].copy_(sums)
                self._remember(name, segment)
        self._versions = {name: version_of(live) for name, live in self._live.items()}

    def _remember(self, name: str, segment: Segment) -> None:
        with torch.inference_mode(False):
            kept = self._fingerprints.setdefault(name, torch.zeros(2, dtype=torch.int32))
        kept.copy_(fingerprint_of(segment.words()))

    def _differing(self, pieces: Sequence[tuple[str, int, int]]) -> list[str]:
        """Storages with a group whose sum is not as both kept ones."""
        with torch.inference_mode():
            found = []
            for name, start, stop in pieces:
                now = self._sums_of(name, start, stop)
                kept = (self._copies[f"{name}#{key}"][start:stop] for key in ("sums1", "sums2"))
                if not all(torch.equal(now, sums) for sums in kept):
                    found.append(name)
            return found

    def _sums_of(self, name: str, start: int, stop: int) -> Tensor:
        """Sums of the top bytes of groups ``start`` to ``stop``, int16."""
        words = self._segments[name].storage_words()[start * self._how.group : stop * self._how.group]
        top = words if words.itemsize == 1 else words >> 8 * (words.itemsize - 1)
        whole = len(top) // self._how.group * self._how.group
        sums = [top[:whole].view(-1, self._how.group).sum(1, dtype=torch.int32)]
        if whole < len(top):
            sums.append(top[whole:].sum(dtype=torch.int32)[None])
        return torch.cat(sums).to(torch.int16)

    def _wrong(self, name: str) -> tuple[Tensor, Tensor]:
        """Return masks of the wrong groups of a storage, and of those with one wrong sum: bool, shape ``(groups,)``."""
        first, second = self._copies[f"{name}#sums1"], self._copies[f"{name}#sums2"]
        now = self._sums_of(name, 0, len(first))
        return (now != first) & (now != second), (now == first) ^ (now == second)

    def _require_no_update(self, name: str, wrong: tuple[Tensor, Tensor]) -> None:
        total = len(self._segments[name])
        written = version_of(self._live[name]) != self._versions[name]
        groups = len(wrong[0])
        if groups > 1:
            differing = total * int(wrong[0].sum()) // groups
            require_no_update(name, differing=differing, total=total, written=written)
        now = fingerprint_of(self._segments[name].words())
        changed, sampled = changed_samples(now, self._fingerprints[name], total)
        if bool(wrong[0].any()):
            require_no_update(name, differing=total * changed // sampled, total=total, written=written)

    def _act(self, name: str, wrong: tuple[Tensor, Tensor]) -> GuardReport:
        first, second = self._copies[f"{name}#sums1"], self._copies[f"{name}#sums2"]
        sums_only, groups = wrong[1], wrong[0].nonzero()[:, 0].tolist()
        if bool(sums_only.any()):
            right = self._sums_of(name, 0, len(first))
            for sums in (first, second):
                sums.copy_(torch.where(sums_only, right, sums))
        mended = int(sums_only.sum())
        report = GuardReport(0, mended + len(groups), mended, 0, (name,))
        if not groups or self._how.action == "flag":
            return report + GuardReport(uncorrectable=len(groups))
        source = None if self._how.action == "zero" else _loaded(self._how.source, name, self._live[name])
        for group in groups:
            self._write(name, group, source)
        if source is None:
            right = self._sums_of(name, 0, len(first))
            for sums in (first, second):
                sums.copy_(torch.where(wrong[0], right, sums))
            self._remember(name, self._segments[name])
            return report + GuardReport(mitigated=len(groups))
        left = int(self._wrong(name)[0].sum())
        return report + GuardReport(corrected=len(groups) - left, uncorrectable=left)

    def _write(self, name: str, group: int, source: Tensor | None) -> None:
        segment, start = self._segments[name], group * self._how.group
        stop = min(start + self._how.group, len(segment))
        places = torch.arange(start, stop)
        words = torch.zeros(len(places), dtype=segment.dtype) if source is None else source[start:stop]
        segment.write(places, words)


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
        except (OSError, SafetensorError) as error:
            raise DataError(f"expected {name} in {source}, got {error}; save the weights there") from error
    if (found.shape, found.dtype) != (live.shape, live.dtype):
        raise DataError(
            f"expected {name} of {live.dtype} and shape {tuple(live.shape)} to load again, got {found.dtype} and "
            f"{tuple(found.shape)}"
        )
    like = torch.empty_like(live, device="cpu")
    integer_view(like).copy_(integer_view(found))
    return segments_of({name: like}, None)[0].words()
