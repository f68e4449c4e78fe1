"""Structural coding: redundant kernels, from which wrong ones are computed, to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, HoplonError, checked
from hoplon.formats.base import integer_view
from hoplon.protections.base import Protection
from hoplon.protections.guards.baselines.cauchy import ORDER, combined, factors, solved
from hoplon.protections.guards.memory.words import of_turn_by_size, without_repeats
from hoplon.protections.guards.memory.writing import write_differing
from hoplon.protections.guards.voting import copy_of, distinct
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, change
from hoplon.registry import register

Wide = NDArray[np.int64]

_LINE_BYTES = 64


@register("protection", "structural-coding", label="Structural Coding")
@final
@checked
@dataclass(frozen=True)
class StructuralCoding(Protection):
    """Codes kernels: up to 32 wrong ones of 256 are computed from the others and from redundant ones, bit for bit.

    A kernel is all weights of one output channel or neuron; up to 256 of a layer form a block with 32 redundant
    kernels. The first redundant kernel is the plain sum of a block, and a check compares it with the kernels; a sum of
    each kernel locates wrong ones. Whatever happens inside a kernel, it is one erasure, and any 32 are corrected.

    What is hoplon's here, not the paper's:

    - Sums of float32 round, and a NaN spoils all that it is added to; so kernels are coded as words, 16 bits as one
      element of GF(2^16): a Cauchy code, of which *every* choice of 32 erasures is solved, exactly. Theirs has random
      real factors and a pseudo-inverse, and gives back weights to about their rounding.
    - Kernels with a wrong sum are erased, and no others; theirs erases the 32 that deviate most. What is solved has to
      fit the redundant kernels that are left over and the sums, or nothing is written.
    - A check looks at all sums, held twice, and at those of redundant kernels. The model's weights stay in place.
    - A layer with fewer kernels than redundant ones gets as many as it has. Biases and batch norm, which theirs leaves
      out, are coded in lines of 64 bytes, which count as kernels.

    Args:
        kernels: of a block, at most.
        redundant: kernels of each block.
    Raises:
        HoplonError: kernels and redundant ones together exceed 65,535.
    Source:
        Asgari Khoshouyeh et al., Structural Coding: A Low-Cost Scheme to Protect CNNs from Large-Granularity Memory
        Faults, SC 2023: its abstract, what Schmedding et al. (Aspis), section V-E, say of it, and the code that its
        authors published (DependableSystemsLab/structural-coding: 256 kernels, 32 redundant); not the paper's text.
    """

    label = "structural-coding"
    kernels: Count = 256
    redundant: Count = 32

    def __post_init__(self) -> None:
        if self.kernels + self.redundant > ORDER:
            raise HoplonError(
                f"expected at most {ORDER:,} kernels in a code, got {self.kernels:,} and {self.redundant:,} redundant"
            )

    @property
    @override
    def guarantee(self) -> str:
        return (
            f"repairs whatever is wrong in up to {self.redundant} kernels of a block of up to {self.kernels}, bit for "
            "bit, in as many as a block has where it has fewer; detects any change of one to three bits for certain; "
            "reports more kernels, and two opposite flips of one bit lane inside a kernel"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> StructuralCodingGuard:
        """A guard over these tensors; names that share a storage are guarded once."""
        return StructuralCodingGuard(memory, self)


@final
class StructuralCodingGuard(StorageGuard["list[_Finding]"]):
    """Redundant kernels of every storage, and two sums of every kernel."""

    def __init__(self, memory: Mapping[str, Tensor], how: StructuralCoding) -> None:
        super().__init__(memory, {name: without_repeats(tensor) for name, tensor in distinct(memory).items()})
        self._copies: dict[str, Tensor] = {}
        self._blocks: list[_Block] = []
        for name, live in self._live.items():
            words = integer_view(live) if live.dim() else integer_view(live).view(1)
            per = _LINE_BYTES // words.itemsize if words.dim() == 1 else 1
            parts = words.split(how.kernels * per)
            sizes = [-(-len(part) // per) for part in parts]
            spare = [min(how.redundant, size) for size in sizes]
            symbols = 4 * -(-(_LINE_BYTES if words.dim() == 1 else words[0].nbytes) // 8)
            coded = [size + more for size, more in zip(sizes, spare, strict=True)]
            redundant = copy_of(torch.zeros(sum(spare), symbols, dtype=torch.int16))
            sums = copy_of(torch.zeros(2, sum(coded), dtype=torch.int64))
            self._copies |= {f"{name}#redundant": redundant, f"{name}#sums": sums}
            self._blocks += map(
                _Block, [name] * len(parts), parts, sizes, redundant.split(spare), sums.split(coded, dim=1)
            )
        self.refresh()

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name: ``conv1.weight#redundant`` and ``#sums``, twice."""
        return self._copies

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, list[_Finding]]]:
        blocks = of_turn_by_size(self._blocks, lambda block: block.words.nbytes, turn, turns)
        suspects: dict[str, list[_Finding]] = {}
        for block in (one for one in blocks if not one.is_right()):
            suspects.setdefault(block.name, []).append(_Finding(block))
        return GuardReport(sum(block.sums.shape[1] for block in blocks)), suspects

    @override
    def _changes(self, suspects: Mapping[str, list[_Finding]]) -> dict[str, Change]:
        counts = {
            name: (sum(one.changed() for one in found), self._live[name].numel()) for name, found in suspects.items()
        }
        return {name: change(*count) for name, count in counts.items()}

    @override
    def _repaired(self, name: str, suspect: list[_Finding]) -> GuardReport:
        return sum((one.mended() for one in suspect), GuardReport(where=(name,)))

    def refresh(self) -> None:
        """Code the memory as it is."""
        for block in self._blocks:
            block.code()
        self._counters.note()


@dataclass(frozen=True, eq=False)
class _Block:
    """Kernels that are coded together.

    Attributes:
        words: their memory as integers, the first axis that of kernels; a row of words where they are lines of those.
        size: how many kernels.
        redundant: int16, shape ``(redundant kernels, symbols)``.
        sums: int64, those of kernels and redundant kernels, twice, shape ``(2, kernels)``.
    """

    name: str
    words: Tensor
    size: int
    redundant: Tensor
    sums: Tensor

    def read(self) -> Wide:
        """The kernels, filled up with zeros to whole 64-bit words: shape ``(kernels, words)``."""
        row = self.words.cpu().contiguous().view(-1).numpy().view(np.uint8)
        width, used = 2 * self.redundant.shape[1], len(row) // self.size
        if used == width:
            return row.view(np.int64).reshape(self.size, -1)
        wide = np.zeros((self.size, width), np.uint8)
        if self.words.dim() > 1:
            wide[:, :used] = row.reshape(self.size, used)
        else:
            wide.reshape(-1)[: len(row)] = row
        return wide.view(np.int64)

    def write(self, kernels: Wide) -> None:
        """Put back what :meth:`read` gives, where it differs.

        Raises:
            ReadOnlyMemory: it cannot be written.
        """
        wide = np.ascontiguousarray(kernels).view(np.uint8)
        if self.words.dim() > 1:
            wide = np.ascontiguousarray(wide[:, : self.words.nbytes // self.size])
        row = torch.from_numpy(wide.reshape(-1)[: self.words.nbytes].copy()).view(self.words.dtype)
        write_differing(self.words, row.view(self.words.shape).to(self.words.device))

    def held(self) -> Wide:
        """The redundant kernels in 64-bit words, live."""
        return np.asarray(self.redundant.numpy().view(np.int64))

    def sums_of(self, kernels: Wide) -> Tensor:
        """The sums of kernels and redundant kernels as they are, modulo 2^64: shape ``(kernels,)``."""
        return torch.from_numpy(np.concatenate([kernels.sum(1), self.held().sum(1)]))

    def is_right(self) -> bool:
        """Return True if all sums are what they were, and the first redundant kernel is the sum of the kernels."""
        kernels = self.read()
        sums_fit = bool((self.sums_of(kernels) == self.sums).all())
        return sums_fit and np.array_equal(np.bitwise_xor.reduce(kernels, axis=0), self.held()[0])

    def code(self) -> None:
        """Compute redundant kernels and sums anew."""
        kernels = self.read()
        self.held().view(np.uint16)[:] = combined(kernels.view(np.uint16), factors(self.size, len(self.redundant)))
        self.sums.copy_(self.sums_of(kernels))


@final
class _Finding:
    """What is wrong in a block: kernels by number, and what they were, where the code tells."""

    def __init__(self, block: _Block) -> None:
        self._block, self._kernels = block, block.read()
        unlike = block.sums_of(self._kernels) != block.sums
        wrong, self._sums_only = unlike.all(0), unlike[0] ^ unlike[1]
        self._wrong = wrong[: block.size].numpy().nonzero()[0]
        self._spoilt = wrong[block.size :].numpy()  # redundant kernels
        self._were = self._solution()

    def _solution(self) -> Wide | None:
        """The wrong kernels as they were; None if they are too many, or if not all that is known fits them."""
        block, wrong, right = self._block, self._wrong, np.flatnonzero(~self._spoilt)
        if len(wrong) > len(right):
            return None
        matrix = factors(block.size, len(block.redundant))
        rest = self._kernels.copy()
        rest[wrong] = 0
        left = (block.held().view(np.uint16) ^ combined(rest.view(np.uint16), matrix))[right]
        found = solved(matrix[np.ix_(wrong, right[: len(wrong)])].T, left[: len(wrong)])
        were = found.view(np.int64)
        as_known = (torch.from_numpy(were.sum(1)) == block.sums[:, wrong]).any(0)
        spare = np.array_equal(combined(found, matrix[np.ix_(wrong, right)]), left)
        return were if spare and as_known.all() else None

    def changed(self) -> int:
        """Count the words that differ; all of a kernel's where nobody knows."""
        if self._were is None:
            return max(1, len(self._wrong) * self._block.words.numel() // self._block.size)
        width = f"u{self._block.words.itemsize}"
        return int((self._kernels[self._wrong].view(width) != self._were.view(width)).sum())

    def mended(self) -> GuardReport:
        """Write back what is known; counts are of kernels."""
        block, spoilt, sums = self._block, int(self._spoilt.sum()), int(self._sums_only.sum())
        if self._were is None:
            left = max(1, len(self._wrong)) + spoilt
            return GuardReport(detected=left, uncorrectable=left)
        kernels = self._kernels.copy()
        kernels[self._wrong] = self._were
        block.write(kernels)
        if spoilt or sums:
            block.code()
        mended = len(self._wrong) + spoilt + sums
        return GuardReport(detected=mended, corrected=mended)
