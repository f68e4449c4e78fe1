"""Aspis: triplication of the most important weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.memory.words import of_turn_by_size
from hoplon.protections.guards.replicas import Chunk, ChunkBatch, bites_of, joint_words, kind_of, offsets, triplicated
from hoplon.protections.guards.scored import require_scored, require_shapes
from hoplon.protections.memory_guard import Guard, GuardReport, version_of


@final
@dataclass(frozen=True)
class Aspis(Protection):
    """Keeps two more copies of the weights with the highest scores and repairs all three by majority, bit for bit.

    Args:
        scores: of this model, from :func:`hoplon.importance._taylor` or another score.
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

    @property
    def guarantee(self) -> str:
        """What it repairs for certain, what it only detects, and how probably it misses what lies beyond."""
        return (
            f"for {100 * self.fraction:g} % of the scored weights: repairs any corruption of one of the three "
            "copies of a weight, bit for bit, and one wrong index entry of 4,096; reports weights whose copies "
            "all differ and two wrong entries, and writes through neither; misses two copies that are wrong in "
            "the same way, which 1 in 32 of independent pairs of single-bit faults in two copies of one float32 "
            "weight are, and wrong entries that cancel in sum while they lead to the same words; does not look at "
            "other weights"
        )

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
        live = {name: memory[name].detach() for name, indices in chosen.items() if indices.numel()}
        parts = {}
        for name, tensor in live.items():
            words, start = joint_words(tensor)
            parts[name] = Part(tensor, words, start + offsets(tensor, chosen[name].to(tensor.device)))
        return AspisGuard(parts)


class Part(NamedTuple):
    """What is chosen of a storage: places in its words, which are one row, or cut into blocks."""

    live: Tensor
    words: Tensor
    places: Tensor


@final
class AspisGuard(Guard):
    """The chosen weights: where they are, and two copies of them."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._live = {name: part.live for name, part in parts.items()}
        kinds: dict[tuple[object, ...], dict[str, tuple[Tensor, Tensor]]] = {}
        for name, part in parts.items():
            kinds.setdefault(kind_of(part.words), {})[name] = part.words, part.places
        self._copies: dict[str, Tensor] = {}
        self._pieces: list[Chunk] = []
        for chosen in kinds.values():
            pieces, copies = triplicated(chosen)
            self._pieces += pieces
            self._copies |= copies
        self._sizes = [len(piece) for piece in self._pieces]
        self._bites: dict[tuple[int, int], list[ChunkBatch]] = {}
        self._versions = {name: version_of(tensor) for name, tensor in self._live.items()}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        """The guard's own memory by name (``conv1.weight#1``, ``#2``, ``#index``, ``#sums``): it can be hit as well."""
        return self._copies

    @property
    def protected_bytes(self) -> int:
        """The chosen weights."""
        return sum(piece.first.nbytes for piece in self._pieces)

    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        """Compare and repair; counts weights, a corrupted copy or index entry counting as its weight."""
        if (turn, turns) not in self._bites:
            numbers = of_turn_by_size(self._sizes, turn, turns)
            self._bites[turn, turns] = bites_of(self._pieces[numbers.start : numbers.stop])
        bites = self._bites[turn, turns]
        report = GuardReport(sum(len(bite) for bite in bites))
        if not bites:
            return report
        with torch.inference_mode():
            suspects = [bite for bite in bites if not bite.is_intact()]
            pieces = [piece for bite in suspects for piece in bite.pieces if piece.is_suspect()]
            for piece in pieces:
                piece.require_no_update(version_of(self._live[piece.name]) != self._versions[piece.name])
            for piece in pieces:
                detected, uncorrectable = piece.mend()
                self._versions[piece.name] = version_of(self._live[piece.name])
                where = (piece.name,) if detected else ()
                report += GuardReport(0, detected, detected - uncorrectable, uncorrectable, where)
            for bite in suspects:
                bite.take_for_right()
        return report

    def refresh(self) -> None:
        """Copy the chosen weights anew.

        Raises:
            HoplonError: the index is damaged beyond repair.
        """
        with torch.inference_mode():
            for piece in self._pieces:
                piece.refresh()
        self._versions = {name: version_of(tensor) for name, tensor in self._live.items()}
