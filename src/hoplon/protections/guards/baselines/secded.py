"""Memory with SEC-DED codes in hardware, modelled: what a campaign needs to compare software guards with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.protections.base import Protection
from hoplon.protections.guards.baselines.zero_space import bits_of, bytes_of
from hoplon.protections.guards.memory.words import spanned
from hoplon.protections.guards.memory.writing import write_differing
from hoplon.protections.guards.voting import copy_of, distinct
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, change, pieces_of_turn
from hoplon.registry import register

_WORD_BITS = 64
_POSITIONS = tuple(p for p in range(1, 72) if p & (p - 1))  # of the data bits: powers of 2 are the check bits


@register(
    "protection",
    "sec-ded-memory",
    label="SEC-DED memory",
    sentence="Is memory with an error-correcting code in hardware, modelled. Meant for corrupted weights in memory.",
)
@final
@dataclass(frozen=True)
class SecDedMemory(Protection):
    """Memory whose 64-bit words carry 8 check bits: a single flip in a word vanishes, a double one stops the program.

    The decoder of the extended Hamming (72,64) code is computed bit by bit, also where it errs: three flips in a word
    look like one and are "repaired" at a wrong place or reported, four may pass. It is hardware: it has no software to
    time, cannot be built into a module, and its check bits (one eighth of the memory) are not struck.

    Source:
        Hamming, Bell System Technical Journal 29 (1950), section 4; assumed by Schmedding et al. (Aspis), sections I
        and II-A.
    """

    label = "sec-ded-memory"

    is_hardware = True

    guarantee = (
        "corrects one flipped bit per 64-bit word, reports two for certain; takes three for one (repaired at a "
        "wrong place, or reported), may miss four"
    )

    def arm(self, memory: Mapping[str, Tensor]) -> SecDedGuard:
        """The model of this memory's code, holding what was written to it."""
        return SecDedGuard(memory)


@final
class SecDedGuard(StorageGuard[None]):
    """Words as last written to each storage, to tell which bits are flipped: a device of the model, not of hardware.

    Checks count 64-bit words.
    """

    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        super().__init__(memory, {name: spanned(tensor) for name, tensor in distinct(memory).items()})
        self._written = {name: copy_of(words) for name, words in self._live.items()}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """None: the check bits are part of the hardware."""
        return {}

    @property
    def extra_bytes(self) -> int:
        """Bytes of the check bits, eight bits per 64-bit word."""
        return sum(-(-words.nbytes // 8) for words in self._live.values())

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, None]]:
        names = list(self._live)
        some = [names[number] for number in pieces_of_turn(len(names), turn, turns)]
        checked = GuardReport(sum(-(-self._live[name].nbytes * 8 // _WORD_BITS) for name in some))
        return checked, {name: None for name in some if not torch.equal(self._live[name], self._written[name])}

    @override
    def _changes(self, suspects: Mapping[str, None]) -> dict[str, Change]:
        return {
            name: change(int((self._live[name] != self._written[name]).sum()), self._live[name].numel())
            for name in suspects
        }

    def refresh(self) -> None:
        """Write the memory as it is, with its check bits."""
        for name, words in self._live.items():
            self._written[name].copy_(words)
        self._counters.note()

    @override
    def _repaired(self, name: str, suspect: None) -> GuardReport:
        """Read the words of a storage through the decoder."""
        live, written = self._live[name], self._written[name]
        flipped = _bits(live) ^ _bits(written)  # (64-bit words, 64)
        wrong = flipped.any(1)
        positions = torch.tensor(_POSITIONS, device=live.device)
        syndrome = torch.zeros(len(flipped), dtype=torch.int64, device=live.device)
        for bit in range(_WORD_BITS):
            syndrome ^= torch.where(flipped[:, bit], positions[bit], 0)
        odd = flipped.sum(1) % 2 == 1
        at = (positions == syndrome[:, None]) & odd[:, None]  # where the decoder sees a single flip
        uncorrectable = wrong & torch.where(odd, syndrome > positions[-1], syndrome != 0)
        missed = wrong & ~odd & (syndrome == 0)
        _store(live, _bits(live) ^ at)
        detected = int((wrong & ~missed).sum())
        failed = int(uncorrectable.sum())
        return GuardReport(0, detected, detected - failed, failed, (name,))


def _bits(words: Tensor) -> Tensor:
    """Bool, shape (64-bit words, 64); the last word filled up with zeros."""
    data = words.contiguous().view(torch.uint8)
    return bits_of(torch.nn.functional.pad(data, (0, -len(data) % 8)).view(-1, 8)).bool().flatten(1)


def _store(words: Tensor, bits: Tensor) -> None:
    """Write back what :func:`_bits` read, where it changed."""
    data = bytes_of(bits.view(-1, 8, 8)).flatten()
    write_differing(words, data[: words.nbytes].view(words.dtype))
