"""Aspis: triplication of the most important weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats import integer_view
from hoplon.harden.scored import require_scored, require_shapes
from hoplon.harden.vote import agree, copy_of, vote_
from hoplon.importance.scores import Scores
from hoplon.memory_guard import Guard, GuardReport, of_turn, require_no_update, version_of
from hoplon.overlay import Protection


@final
@dataclass(frozen=True)
class Aspis(Protection):
    """Keeps two more copies of the weights with the highest scores and repairs all three by majority, bit for bit.

    Args:
        scores: of this model, from :func:`hoplon.importance.taylor` or another score.
        fraction: of the scored weights, in (0, 1]; weights that are zero are protected like any other.
    Raises:
        HoplonError: a fraction outside (0, 1].
    Source:
        Schmedding et al. (Aspis), section V. hoplon departs: one flat index and two dense copies per storage (12 bytes
        per float32 weight where three sparse tensors take 108), a vote per weight and not per tensor, repair by copying
        words and not by subtraction (which cannot undo NaN), and an index that is guarded itself.
    """

    scores: Scores
    fraction: float

    def __post_init__(self) -> None:
        given: object = self.scores
        if not isinstance(given, Scores):
            got = type(given).__name__
            raise HoplonError(f"expected scores from hoplon.importance, got {got}; importance.taylor gives them")
        self.scores.count(self.fraction)  # refuses a fraction outside (0, 1]

    @property
    def label(self) -> str:
        """What reports call it: "aspis-1%"."""
        return f"aspis-{100 * self.fraction:g}%"

    @property
    def made_for(self) -> str | None:
        """The model that was scored."""
        return self.scores.fingerprint

    def require_made_for(self, memory: Mapping[str, Tensor]) -> None:
        """Refuse memory without the scored storages, and other weights than the scored ones where scores know them."""
        require_scored(self.scores, memory)

    def arm(self, memory: Mapping[str, Tensor]) -> AspisGuard:
        """A guard over the chosen weights of these tensors.

        Raises:
            HoplonError: a scored storage is missing or has another shape.
        """
        require_shapes(self.scores, memory)
        chosen = self.scores.top(self.fraction)
        parts = {name: _Part(memory[name].detach(), indices) for name, indices in chosen.items() if indices.numel()}
        return AspisGuard(parts)


@final
class AspisGuard(Guard):
    """The chosen weights of each storage: where they are, and two copies of them."""

    def __init__(self, parts: Mapping[str, _Part]) -> None:
        self._parts = parts

    @property
    def copies(self) -> dict[str, Tensor]:
        """The guard's own memory by name (``conv1.weight#1``, ``#2``, ``#index``, ``#sums``): it can be hit as well."""
        return {
            f"{name}#{key}": tensor
            for name, part in self._parts.items()
            for key, tensor in (("1", part.first), ("2", part.second), ("index", part.index), ("sums", part.sums))
        }

    @property
    def protected_bytes(self) -> int:
        """The chosen weights."""
        return sum(part.first.nbytes for part in self._parts.values())

    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Compare and repair; counts weights, a corrupted copy or index entry counting as its weight.

        Slices are of storages.
        """
        names = list(self._parts)
        report = GuardReport()
        with torch.inference_mode():
            slice_ = [names[number] for number in of_turn(len(names), turn, turns)]
            suspects = {name: self._parts[name] for name in slice_ if self._parts[name].is_suspect()}
            for name, part in suspects.items():
                part.require_no_update(name)
            for name in slice_:
                detected, uncorrectable = suspects[name].mend() if name in suspects else (0, 0)
                where = (name,) if detected else ()
                count = self._parts[name].index.numel()
                report += GuardReport(count, detected, detected - uncorrectable, uncorrectable, where)
        return report

    def refresh(self) -> None:
        """Copy the chosen weights anew."""
        with torch.inference_mode():
            for part in self._parts.values():
                part.refresh()


class _Part:
    """The chosen weights of one storage.

    ``index`` holds places in ``words``, the storage as one row of integers, whatever its strides. It is guarded by
    three sums over its entries e at positions p = 1, 2, ...: of e, p e and p^2 e. A single wrong entry, off by d, moves
    them by d, p d and p^2 d, which tells p and d; two wrong entries never look like one; a single wrong sum is alone in
    being off.
    """

    def __init__(self, tensor: Tensor, indices: Tensor) -> None:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        small = extent <= torch.iinfo(torch.int32).max
        self.words = integer_view(tensor).as_strided((extent,), (1,))
        self.index = copy_of(_places(tensor, indices.to(tensor.device)).to(torch.int32 if small else torch.int64))
        self.first, self.second = (copy_of(self.words[self.index]) for _ in range(2))
        self.sums = copy_of(_power_sums(self.index))
        self.version = version_of(self.words)

    def refresh(self) -> None:
        live = self.words[self.index]
        self.first.copy_(live)
        self.second.copy_(live)
        self.version = version_of(self.words)

    def is_suspect(self) -> bool:
        """Whether anything is amiss: index, weights or copies."""
        return self._index_is_suspect() or not agree(self.words[self.index], self.first, self.second)

    def require_no_update(self, name: str) -> None:
        """Refuse weights that were updated, which leaves index and copies as they were."""
        if torch.equal(_power_sums(self.index), self.sums) and torch.equal(self.first, self.second):
            differing, written = int((self.words[self.index] != self.first).sum()), version_of(self.words)
            require_no_update(name, differing=differing, total=len(self.first), written=written != self.version)

    def mend(self) -> tuple[int, int]:
        """Weights found wrong, and those among them that could not be repaired.

        The index comes first: nothing is ever written through a wrong one.
        """
        mended = 0
        if not torch.equal(_power_sums(self.index), self.sums):
            if not _mend_index(self.index, self.sums, len(self.words)):
                return self.index.numel(), self.index.numel()
            mended = 1
        live = self.words[self.index]
        detected, uncorrectable = vote_(live, self.first, self.second)
        self.words[self.index] = live
        self.version = version_of(self.words)
        return detected + mended, uncorrectable

    def _index_is_suspect(self) -> bool:
        """The cheap part of the check: the plain sum, and whether every entry is a place at all."""
        low, high = self.index.aminmax()
        return bool((self.index.sum(dtype=torch.int64) != self.sums[0]) | (low < 0) | (high >= len(self.words)))


def _places(tensor: Tensor, indices: Tensor) -> Tensor:
    """Row-major logical indices as offsets from the first element, in elements of the storage."""
    coordinates = torch.unravel_index(indices, tensor.shape) if tensor.dim() else ()
    offset = torch.zeros_like(indices)
    for coordinate, stride in zip(coordinates, tensor.stride(), strict=True):
        offset += coordinate * stride
    return offset


def _power_sums(index: Tensor) -> Tensor:
    """Sums of e, p e and p^2 e over entries e at positions p = 1, 2, ..., int64 modulo 2^64."""
    entries = index.to(torch.int64)
    positions = torch.arange(1, len(entries) + 1, device=index.device)
    first = positions * entries
    return torch.stack([entries.sum(), first.sum(), (positions * first).sum()])


def _mend_index(index: Tensor, sums: Tensor, extent: int) -> bool:
    """Repair a single wrong entry, or a single wrong sum; False if it is neither."""
    off = [_signed(int(now) - int(then)) for now, then in zip(_power_sums(index), sums, strict=True)]
    if sum(gap != 0 for gap in off) == 1:
        sums.copy_(_power_sums(index))
        return bool(index.min() >= 0) and bool(index.max() < extent)
    if not off[0] or off[1] % off[0]:
        return False
    position = off[1] // off[0]
    if not 1 <= position <= len(index) or _signed(position * off[1]) != off[2]:
        return False
    entry = int(index[position - 1]) - off[0]
    if not 0 <= entry < extent:
        return False
    index[position - 1] = entry
    return True


def _signed(value: int) -> int:
    """An integer modulo 2^64, in the range of int64."""
    return (value + 2**63) % 2**64 - 2**63
