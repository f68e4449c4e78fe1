"""Aspis over blocks: triplication of the most important runs of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import AspisGuard, Part
from hoplon.protections.guards.memory.words import row_of
from hoplon.protections.guards.replicas import offsets, spanned
from hoplon.protections.guards.scored import require_scored, require_shapes


@final
@dataclass(frozen=True)
class BlockAspis(Protection):
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
        Schmedding et al. (Aspis), section V, for the triplication of important weights; blocks are hoplon's own.
    """

    scores: Scores
    fraction: float
    block: int = 64

    def __post_init__(self) -> None:
        given: object = self.scores
        if not isinstance(given, Scores):
            got = type(given).__name__
            raise HoplonError(f"expected scores from hoplon.importance, got {got}; importance.taylor gives them")
        self.scores.count(self.fraction)  # refuses a fraction outside (0, 1]
        if self.block < 1:
            raise HoplonError(f"expected a block of at least one word, got {self.block}")

    @property
    def label(self) -> str:
        """What reports call it: "block-aspis-1%"."""
        return f"block-aspis-{100 * self.fraction:g}%"

    @property
    def made_for(self) -> str | None:
        """The model that was scored."""
        return self.scores.fingerprint

    @property
    def guarantee(self) -> str:
        """What it repairs for certain, what it only detects, and how probably it misses what lies beyond."""
        return (
            f"for {100 * self.fraction:g} % of the scored weights, in blocks of {self.block}: repairs any "
            "corruption of one of the three copies of a weight, bit for bit, and one wrong entry of 4,096 of the "
            "list of blocks; reports weights whose copies all differ and two wrong entries, and writes through "
            "neither; misses two copies that are wrong in the same way; does not look at other weights"
        )

    def require_made_for(self, memory: Mapping[str, Tensor]) -> None:
        """Refuse memory without the scored storages, and other weights than the scored ones where scores know them."""
        require_scored(self.scores, memory)

    def arm(self, memory: Mapping[str, Tensor]) -> AspisGuard:
        """A guard over the chosen blocks of these tensors.

        Raises:
            HoplonError: a scored storage is missing or has another shape.
        """
        require_shapes(self.scores, memory)
        sizes = {name: _divisor(score.numel(), self.block) for name, score in self.scores.values.items()}
        parts = {}
        for name, chosen in self._chosen({name: memory[name] for name in sizes}, sizes).items():
            if not len(chosen):
                continue
            live = memory[name].detach()
            blocks, row = chosen.to(live.device), row_of(live)
            if row is None:
                words = (blocks[:, None] * sizes[name] + torch.arange(sizes[name], device=live.device)).flatten()
                parts[name] = Part(live, spanned(live), offsets(live, words))
            else:
                parts[name] = Part(live, row.view(-1, sizes[name]), blocks)
        return AspisGuard(parts)

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
