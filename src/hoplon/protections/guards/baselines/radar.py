"""RADAR: signatures of two bits of interleaved groups; a wrong group is set to zero. To compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, HoplonError, checked
from hoplon.protections.base import Protection
from hoplon.protections.guards.known_bits.fingerprint import changed_samples, fingerprint_of
from hoplon.protections.guards.known_bits.segments import Segment, segments_of
from hoplon.protections.guards.memory.words import of_turn_by_size
from hoplon.protections.guards.voting import copy_of, distinct
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard
from hoplon.registry import register

_KEY = 0b1101_1110_1011_0111
_SIGNS = torch.tensor([2.0 * (_KEY >> number & 1) - 1 for number in range(16)])
_PIECE_WORDS = 1 << 16
_MOST = 1 << 16  # words of a group: their sum stays exact in float32


@register("protection", "radar", label="RADAR")
@final
@checked
@dataclass(frozen=True)
class Radar(Protection):
    """Signs interleaved groups of weights with two bits each, and sets a group whose signature is wrong to zero.

    The words of a group lie as far apart in their storage as it has groups. Their values of eight bits are added up,
    some of them negative as a key of 16 bits says, and the signature is the two bits of that sum at 128 and 256. So
    every single flip of a value's highest bit is found, and every two in one direction; two that cancel are not, flips
    of the bit below in half of the cases, others rarely. **Recovery loses weights**: all words of the group become
    zero, those that were right as well (``mitigated``, never ``corrected``).

    What is hoplon's here, not the paper's:

    - A value of a float is the byte below its sign, so that its highest bit is the highest of the exponent (bit 30 of a
      float32), whose flips do most of the harm; sign and mantissa are not looked at. Of integers and one-byte words
      it is the top byte: for int8, the paper's.
    - The key is no secret, since chance does not guess; and signatures lie in memory, where the paper has them on chip.
      They are taken for right: a flip in one sets a right group to zero.
    - All memory is signed, biases and batch norm too.

    Checks count groups. Slices of a check are of storages.

    Args:
        group: words of a group, at most 65,536.
        bits: of a signature; with 3 of them the bit below the highest is certain as well.
    Raises:
        HoplonError: larger groups.
    Source:
        Li et al., RADAR: Run-time Adversarial Weight Attack Detection and Accuracy Recovery, DATE 2021 (arXiv
        2101.08254), sections IV and V; int8 weights, 512 in a group for ResNet-18.
    """

    label = "radar"
    group: Count = 512
    bits: Literal[2, 3] = 2

    def __post_init__(self) -> None:
        if self.group > _MOST:
            raise HoplonError(f"expected groups of at most {_MOST:,} words, got {self.group:,}")

    @property
    @override
    def guarantee(self) -> str:
        certain = "highest bit" if self.bits == 2 else "highest or second highest bit"
        return (
            f"detects one flip of the {certain} below the sign of floats, of integers with it, in a group of "
            f"{self.group} words, and sets all of the group to 0 (mitigated): right weights are lost with the wrong "
            "one; misses two flips that cancel, and most flips of other bits; a flip in its signatures sets a right "
            "group to 0"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> RadarGuard:
        """A guard over these tensors; names that share a storage are guarded once."""
        return RadarGuard(memory, self)


@final
class RadarGuard(StorageGuard[Tensor]):
    """A signature for every group of words, packed; suspects are masks of wrong groups."""

    compares_all = False

    def __init__(self, memory: Mapping[str, Tensor], how: Radar) -> None:
        super().__init__(memory, distinct(memory))
        self._how = how
        self._segments = {segment.name: segment for segment in segments_of(self._live, None)}
        self._copies = {
            key: copy_of(tensor)
            for name, segment in self._segments.items()
            for key, tensor in (
                (f"{name}#signatures", self._signatures(segment)),
                (f"{name}#evidence", fingerprint_of(segment.words())),
            )
        }

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name: ``conv1.weight#signatures``, and ``#evidence`` of each storage."""
        return self._copies

    def _groups(self, segment: Segment) -> int:
        return -(-len(segment) // self._how.group)

    def _signatures(self, segment: Segment) -> Tensor:
        """Signatures of a storage as it is, packed: uint8."""
        groups, bits = self._groups(segment), self._how.bits
        words, floating = segment.storage_words(), self._live[segment.name].is_floating_point()
        signs = _SIGNS.to(words.device).repeat(-(-_PIECE_WORDS // (len(_SIGNS) * groups)))
        sums = torch.zeros(groups, device=words.device)
        for piece in words.split(len(signs) * groups):
            values = _values(piece, floating).float()
            if len(values) % groups:
                values = torch.nn.functional.pad(values, (0, -len(values) % groups))
            values = values.view(-1, groups)
            sums += signs[: len(values)] @ values
        signed = sums.to(torch.int32).cpu()[:, None] >> 9 - bits + torch.arange(bits) & 1
        return torch.from_numpy(np.packbits(signed.numpy().astype(bool)))

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, Tensor]]:
        segments = of_turn_by_size(list(self._segments.values()), len, turn, turns)
        suspects = {}
        for segment in segments:
            differing = self._signatures(segment) ^ self._copies[f"{segment.name}#signatures"]
            if differing.any():
                bits = np.unpackbits(differing.numpy())[: self._groups(segment) * self._how.bits]
                suspects[segment.name] = torch.from_numpy(bits).view(-1, self._how.bits).any(1)
        return GuardReport(sum(map(self._groups, segments))), suspects

    @override
    def _changes(self, suspects: Mapping[str, Tensor]) -> dict[str, Change]:
        found = {}
        for name, segment in self._segments.items():
            wrong = suspects.get(name, torch.zeros(1, dtype=torch.bool))
            changed, sampled = changed_samples(segment.words(), self._copies[f"{name}#evidence"])
            found[name] = Change(int(wrong.sum()), len(segment), 2 * changed > sampled)
        return found

    @override
    def _repaired(self, name: str, suspect: Tensor) -> GuardReport:
        segment, count = self._segments[name], int(suspect.sum())
        places = suspect[torch.arange(len(segment)) % len(suspect)].nonzero()[:, 0]
        segment.write(places, torch.zeros(len(places), dtype=segment.dtype))
        self._learn(segment)
        return GuardReport(detected=count, where=(name,), mitigated=count)

    def _learn(self, segment: Segment) -> None:
        self._copies[f"{segment.name}#signatures"].copy_(self._signatures(segment))
        self._copies[f"{segment.name}#evidence"].copy_(fingerprint_of(segment.words()))

    def refresh(self) -> None:
        """Sign the memory as it is."""
        for segment in self._segments.values():
            self._learn(segment)
        self._counters.note()


def _values(words: Tensor, floating: bool) -> Tensor:
    """Eight bits of each word, int8: of floats those below the sign, of integers the highest."""
    if words.itemsize == 1:
        return words.view(torch.int8)
    return (words >> 8 * words.itemsize - 8 - floating).to(torch.int8)
