"""TMR-sparse: triplication with sparse tensors, as Aspis's paper builds it, to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Fraction, checked
from hoplon.formats.base import integer_view
from hoplon.protections.guards.aspis import ScoredProtection
from hoplon.protections.guards.memory.words import of_turn_by_size
from hoplon.protections.guards.memory.writing import write_differing
from hoplon.protections.guards.voting import unlike_both
from hoplon.protections.memory_guard import Change, GuardReport, StorageGuard, change
from hoplon.registry import register


@register("protection", "tmr-sparse")
@final
@checked
@dataclass(frozen=True)
class TMRSparse(ScoredProtection):
    """The paper's triplication in COO tensors. A baseline: :class:`hoplon.Aspis` protects more for a ninth of it.

    Each storage has two sparse copies of its chosen weights and a sparse mask of their places; a check takes the
    weights under the mask, and votes over whole tensors. A float32 weight with four axes takes 108 bytes: three times
    four int64 indices and a value. Its failures are kept, and belong to the comparison:

    - Weights that are zero are not in the copies: a pruned weight is not protected.
    - Two faults in two tensors of a storage, even in different weights, are uncorrectable.
    - Wrong weights are repaired by subtracting the difference to a copy. That leaves NaN where NaN or Inf was
      (uncorrectable), and rounds elsewhere: what was struck to 1e30 becomes 0 (``mitigated``, not ``corrected``).
    - Weights are compared as numbers: a NaN differs from itself, -0.0 does not differ from 0.0.
    - The mask is not guarded: a wrong place in it makes the repair write to weights that were right.

    A place outside of the storage, which the paper's way would read from foreign memory, is reported as uncorrectable.

    Args:
        scores: of this model.
        fraction: of the scored weights, in (0, 1]; with 1 it is the paper's TMR-sparse, below that its Aspis.
    Raises:
        HoplonError: a fraction outside (0, 1].
    Source:
        Schmedding et al. (Aspis), sections III-B and IV-B. The text leaves open whether the copies' indices are
        compared; here they are.
    """

    kind = "tmr-sparse"
    fraction: Fraction = 1.0

    @property
    def label(self) -> str:
        """Name in reports: "tmr-sparse", with a percentage below 100."""
        return self.kind if self.fraction == 1 else super().label

    guarantee = (
        "a baseline. Repairs for certain: corruption of one sparse copy of a tensor. Known failures: chosen "
        "weights that are zero are unprotected; faults in two tensors of a storage are uncorrectable; repair "
        "by subtraction leaves NaN after NaN or Inf (reported), and rounds other weights (mitigated), up to "
        "losing them; NaN weights are uncorrectable; a wrong place in the unguarded mask makes it write to "
        "right weights (unnoticed)"
    )

    def arm(self, memory: Mapping[str, Tensor]) -> TMRSparseGuard:
        """A guard over the chosen weights of these tensors that are not zero.

        Raises:
            HoplonError: a scored storage is missing or has another shape.
        """
        self.scores.require_shapes(memory)
        chosen = self.scores.top(self.fraction)
        parts = {
            name: _Sparse(name, torch.atleast_1d(memory[name].data), at) for name, at in chosen.items() if at.numel()
        }
        return TMRSparseGuard(memory, parts)


@final
class TMRSparseGuard(StorageGuard["_Sparse"]):
    """The sparse copies and the mask of each storage; slices are of storages."""

    def __init__(self, memory: Mapping[str, Tensor], parts: Mapping[str, _Sparse]) -> None:
        super().__init__(memory, {name: part.live for name, part in parts.items()})
        self._parts = parts

    @property
    def copies(self) -> dict[str, Tensor]:
        """The guard's own memory by name: ``conv1.weight#1.indices``, ``#1.values``, ``#2...`` and ``#mask...``."""
        return {
            f"{name}#{key}.{part}": memory
            for name, sparse in self._parts.items()
            for key, tensor in (("1", sparse.first), ("2", sparse.second), ("mask", sparse.mask))
            for part, memory in (("indices", tensor._indices()), ("values", tensor._values()))
        }

    @property
    @override
    def protected_bytes(self) -> int:
        return sum(part.first._values().nbytes for part in self._parts.values())

    @override
    def _suspects(self, turn: int, turns: int) -> tuple[GuardReport, dict[str, _Sparse]]:
        parts = of_turn_by_size(list(self._parts.values()), len, turn, turns)
        return GuardReport(sum(map(len, parts))), {part.name: part for part in parts if not part.is_intact()}

    @override
    def _changes(self, suspects: Mapping[str, _Sparse]) -> dict[str, Change]:
        return {name: change(part.changed(), len(part)) for name, part in suspects.items()}

    @override
    def _repaired(self, name: str, suspect: _Sparse) -> GuardReport:
        return suspect.mend()

    def refresh(self) -> None:
        """Copy the chosen weights anew: those that are not zero now."""
        with torch.inference_mode(False), torch.no_grad():
            for part in self._parts.values():
                part.copy()
        self._counters.note()


class _Sparse:
    """One storage with its mask and copies."""

    def __init__(self, name: str, live: Tensor, chosen: Tensor) -> None:
        self.name, self.live, self.chosen = name, live, chosen
        with torch.inference_mode(False), torch.no_grad():
            self.copy()

    def __len__(self) -> int:
        return len(self.first._values())

    def copy(self) -> None:
        important = torch.zeros_like(self.live, memory_format=torch.contiguous_format)
        places = self.chosen.to(self.live.device)
        important.view(-1)[places] = self.live.reshape(-1)[places]
        self.first = important.to_sparse().coalesce()
        self.second = self._with_values(self.first._indices().clone(), self.first._values().clone())
        self.mask = self._with_values(self.first._indices().clone(), torch.ones_like(self.first._values()))

    def is_intact(self) -> bool:
        """Return True if the mask and both copies have places in the storage, and the same weights as it."""
        if not all(self._in_range(tensor) for tensor in (self.mask, self.first, self.second)):
            return False
        live = self._masked()
        return _same(live, self.first) and _same(live, self.second)

    def changed(self) -> int:
        """Count the weights that are not what the copies are; places out of range cannot tell, and count as one."""
        if not self._in_range(self.mask):
            return 1
        return unlike_both(self._masked()._values(), self.first._values(), self.second._values())

    def mend(self) -> GuardReport:
        where = (self.name,)
        if not all(self._in_range(tensor) for tensor in (self.mask, self.first, self.second)):
            return GuardReport(0, 1, 0, 1, where)
        live = self._masked()
        if _same(self.first, self.second):
            return self._subtracted(live)
        wrong, right = (self.second, self.first) if _same(live, self.first) else (self.first, self.second)
        if not _same(live, right):
            values = live._values()
            differing = int(((values != self.first._values()) | (values != self.second._values())).sum()) or 1
            return GuardReport(0, differing, 0, differing, where)
        differing = int((wrong._values() != right._values()).sum()) or 1
        wrong._indices().copy_(right._indices())
        wrong._values().copy_(right._values())
        return GuardReport(0, differing, differing, 0, where)

    def _subtracted(self, live: Tensor) -> GuardReport:
        wrong = live._values() != self.first._values()
        places = torch.cat([live._indices(), self.first._indices()], dim=1)
        difference = torch.cat([live._values(), -self.first._values()])
        added_up = torch.sparse_coo_tensor(places, difference, self.live.shape, check_invariants=False)
        write_differing(integer_view(self.live), integer_view(self.live - added_up.to_dense()))
        now, then = self._masked()._values(), self.first._values()
        exact = integer_view(now) == integer_view(then)
        detected = int(wrong.sum()) or 1
        corrected, lost = int((wrong & exact).sum()), int((wrong & ~now.isfinite()).sum())
        return GuardReport(0, detected, corrected, lost, (self.name,), detected - corrected - lost)

    def _masked(self) -> Tensor:
        """The weights under the mask, as a sparse tensor."""
        return self._with_values(self.mask._indices(), self.live[tuple(self.mask._indices())])

    def _in_range(self, tensor: Tensor) -> bool:
        indices = tensor._indices()
        limits = torch.tensor(self.live.shape, device=indices.device)[:, None]
        return bool(((indices >= 0) & (indices < limits)).all())

    def _with_values(self, indices: Tensor, values: Tensor) -> Tensor:
        shape = self.live.shape
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)


def _same(left: Tensor, right: Tensor) -> bool:
    """Return True if two sparse tensors have the same places and, as numbers, the same values."""
    return torch.equal(left._indices(), right._indices()) and torch.equal(left._values(), right._values())
