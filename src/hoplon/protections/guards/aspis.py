"""Aspis: triplication of the most important weights, one by one or in blocks, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, Fraction, HoplonError, checked
from hoplon.formats.digest import digest_of
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.memory.words import joint_words, of_turn_by_size, row_of, spanned
from hoplon.protections.guards.replicas import (
    Chunk,
    ChunkBatch,
    chunk_batches,
    kind_of,
    offsets,
    triplicated,
)
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, change, nothing_found
from hoplon.registry import register


@dataclass(frozen=True)
class ScoredProtection(Protection):
    """A protection of the weights with the highest scores: it belongs to the model that was scored.

    Raises:
        HoplonError: scores that are none, or a fraction outside (0, 1].
    """

    kind: ClassVar[str]
    scores: Scores
    fraction: Fraction

    @property
    def label(self) -> str:
        """Name in reports, e.g. "aspis-1%"."""
        return f"{self.kind}-{100 * self.fraction:g}%"

    @property
    def made_for(self) -> str | None:
        """Fingerprint of the model that was scored."""
        return self.scores.fingerprint

    def require_made_for(self, memory: Mapping[str, Tensor]) -> None:
        """Refuse memory that is not what was scored: other names, shapes, or weights where scores know their digest.

        Raises:
            HoplonError: says what differs.
        """
        scores = self.scores
        scores.require_shapes(memory)
        if scores.weights and digest_of({name: memory[name] for name in scores.values}) != scores.weights:
            raise HoplonError(
                f"expected the weights that were scored ({scores.score or 'scores'}), got others under the same names; "
                "score this model, or load the scored weights"
            )


@register(
    "protection",
    "aspis",
    sentence="Keeps two more copies of the weights with the highest Taylor scores and repairs them by majority "
    "before each batch. Meant for corrupted weights in memory.",
)
@final
@checked
@dataclass(frozen=True)
class Aspis(ScoredProtection):
    """Keeps two more copies of the weights with the highest scores and repairs all three by majority, bit for bit.

    Args:
        scores: of this model, from :func:`hoplon.importance._taylor` or another score.
        fraction: of the scored weights, in (0, 1]; weights that are zero are protected like any other.
    Raises:
        HoplonError: a fraction outside (0, 1].
    Source:
        Schmedding et al. (Aspis), section IV-B. hoplon departs: one flat index and two dense copies per storage (12
        bytes per float32 weight where three sparse tensors take 108), a vote per weight and not per tensor, repair by
        copying words and not by subtraction (which cannot undo NaN), and an index that is guarded itself.
    """

    kind = "aspis"

    @property
    @override
    def guarantee(self) -> str:
        return (
            f"for {100 * self.fraction:g} % of the scored weights: repairs any corruption of one of the three "
            "copies of a weight, bit for bit, and one wrong index entry of 4,096; reports weights whose copies "
            "all differ and two wrong entries, and writes through neither; misses two copies that are wrong in "
            "the same way, which 1 in 32 of independent pairs of single-bit faults in two copies of one float32 "
            "weight are, and wrong entries that cancel in sum while they lead to the same words; does not look at "
            "other weights"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> AspisGuard:
        """Arm a guard on the chosen weights of these tensors.

        Raises:
            HoplonError: a scored storage is missing or has another shape.
        """
        self.scores.require_shapes(memory)
        chosen = self.scores.top(self.fraction)
        live = {name: memory[name].data for name, indices in chosen.items() if indices.numel()}
        parts = {}
        for name, tensor in live.items():
            words, start = joint_words(tensor)
            parts[name] = Part(tensor, words, start + offsets(tensor, chosen[name].to(tensor.device)))
        return AspisGuard(memory, parts)


@register("protection", "block-aspis")
@final
@checked
@dataclass(frozen=True)
class BlockAspis(ScoredProtection):
    """Keeps two more copies of the blocks of memory with the highest mean scores; repairs all three by majority.

    The vote is per word, bit for bit, as in :class:`hoplon.Aspis`, and so is what it guarantees; the list of blocks is
    guarded like the index there. A check reads whole runs of memory where scattered weights take a cache line each, and
    the list costs 4 bytes a block: 8 bytes and a little per protected float32 weight. Important weights outside of
    important blocks are not protected.

    Args:
        scores: of this model, from :mod:`hoplon.importance`.
        fraction: of the scored weights, in (0, 1]; the best blocks that fit, at least one.
        block: words of a block. Storages that it does not divide have blocks of their largest divisor below it.
    Raises:
        HoplonError: a fraction outside (0, 1], or a block of less than one word.
    Source:
        Schmedding et al. (Aspis), section IV-B, for the triplication of important weights; blocks are hoplon's own.
    """

    block: Count = 64

    kind = "block-aspis"

    @property
    @override
    def guarantee(self) -> str:
        return (
            f"for {100 * self.fraction:g} % of the scored weights, in blocks of {self.block}: repairs any "
            "corruption of one of the three copies of a weight, bit for bit, and one wrong entry of 4,096 of the "
            "list of blocks; reports weights whose copies all differ and two wrong entries, and writes through "
            "neither; misses two copies that are wrong in the same way; does not look at other weights"
        )

    def arm(self, memory: Mapping[str, Tensor]) -> AspisGuard:
        """Arm a guard on the chosen blocks of these tensors.

        Raises:
            HoplonError: a scored storage is missing or has another shape.
        """
        self.scores.require_shapes(memory)
        sizes = {name: _divisor(score.numel(), self.block) for name, score in self.scores.values.items()}
        parts = {}
        for name, chosen in self._chosen({name: memory[name] for name in sizes}, sizes).items():
            if not len(chosen):
                continue
            live = memory[name].data
            blocks, row = chosen.to(live.device), row_of(live)
            if row is None:
                words = (blocks[:, None] * sizes[name] + torch.arange(sizes[name], device=live.device)).flatten()
                parts[name] = Part(live, spanned(live), offsets(live, words))
            else:
                parts[name] = Part(live, row.view(-1, sizes[name]), blocks)
        return AspisGuard(memory, parts)

    def _chosen(self, memory: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """By storage, the numbers of its blocks with the highest mean scores of all, ascending."""
        means = {name: _in_memory(self.scores[name], memory[name]).view(-1, sizes[name]).mean(1) for name in sizes}
        counts = [len(mean) for mean in means.values()]
        words = torch.cat([torch.full((count,), sizes[name]) for name, count in zip(sizes, counts, strict=True)])
        order = torch.cat(list(means.values())).argsort(descending=True, stable=True)
        fits = words[order].cumsum(0) <= self.scores.count(self.fraction)
        fits[0] = True
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order[fits]] = True
        return {name: part.nonzero()[:, 0] for name, part in zip(sizes, chosen.split(counts), strict=True)}


class Part(NamedTuple):
    """Chosen places of a storage in its words, which are one row, or cut into blocks."""

    live: Tensor
    words: Tensor
    places: Tensor


@final
class AspisGuard(StorageGuard[list[Chunk]]):
    """The chosen weights: where they are, and two copies of them.

    Checks count weights, a corrupted copy or index entry as its weight.
    """

    def __init__(self, memory: Mapping[str, Tensor], parts: Mapping[str, Part]) -> None:
        super().__init__(memory, {name: part.live for name, part in parts.items()})
        kinds: dict[tuple[object, ...], dict[str, tuple[Tensor, Tensor]]] = {}
        for name, part in parts.items():
            kinds.setdefault(kind_of(part.words), {})[name] = part.words, part.places
        self._copies: dict[str, Tensor] = {}
        self._chunks: list[Chunk] = []
        for chosen in kinds.values():
            chunks, copies = triplicated(chosen)
            self._chunks += chunks
            self._copies |= copies
        self._batches: dict[tuple[int, int], tuple[list[ChunkBatch], int]] = {}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name (``conv1.weight#1``, ``#2``, ``#index``, ``#sums``): it can be hit as well."""
        return self._copies

    @property
    @override
    def protected_bytes(self) -> int:
        return sum(chunk.first.nbytes for chunk in self._chunks)

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, list[Chunk]]]:
        if (turn, turns) not in self._batches:
            batches = chunk_batches(of_turn_by_size(self._chunks, len, turn, turns))
            self._batches[turn, turns] = batches, sum(map(len, batches))
        batches, words = self._batches[turn, turns]
        suspects: dict[str, list[Chunk]] = {}
        for batch in batches:
            if not batch.is_intact():
                chunks = [chunk for chunk in batch.chunks if chunk.is_suspect()]
                for chunk in chunks:
                    suspects.setdefault(chunk.name, []).append(chunk)
                if not chunks:
                    batch.take_for_right()
        return nothing_found(words), suspects

    @override
    def _changes(self, suspects: Mapping[str, list[Chunk]]) -> dict[str, Change]:
        totals = Counter[str]()
        for chunk in self._chunks:
            totals[chunk.name] += len(chunk)
        return {name: change(sum(map(Chunk.changed, suspect)), totals[name]) for name, suspect in suspects.items()}

    @override
    def _repaired(self, name: str, suspect: list[Chunk]) -> GuardReport:
        detected, uncorrectable = map(sum, zip(*(chunk.mend() for chunk in suspect), strict=True))
        return GuardReport(0, detected, detected - uncorrectable, uncorrectable, (name,) if detected else ())

    def refresh(self) -> None:
        """Copy the chosen weights anew.

        Raises:
            HoplonError: the index is damaged beyond repair.
        """
        with torch.inference_mode():
            for chunk in self._chunks:
                chunk.refresh()
        self._counters.note()


def _in_memory(score: Tensor, tensor: Tensor) -> Tensor:
    """Scores as one row, in the order in which memory holds their weights; row-major where that has gaps."""
    flat = score.detach().double().cpu().reshape(-1)
    if tensor.is_contiguous() or row_of(tensor) is None or not len(flat):
        return flat
    ordered = torch.empty_like(flat)
    ordered[offsets(tensor.detach(), torch.arange(len(flat), device=tensor.device)).cpu()] = flat
    return ordered


def _divisor(count: int, limit: int) -> int:
    """The largest divisor of a count up to a limit."""
    return next((size for size in range(min(limit, count), 1, -1) if count % size == 0), 1)
