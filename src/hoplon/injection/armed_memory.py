"""Memory that faults can change: the working memory of a program, and the memory of the guards on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hoplon.formats.base import equal_bits, integer_view
from hoplon.formats.named import format_named
from hoplon.injection.working_memory import WorkingMemory, strike_word
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite
from hoplon.program.words import without_covered
from hoplon.protections.base import Overlay
from hoplon.protections.memory_guard import GuardReport, StaleGuardError, check_all


class ArmedMemory:
    """The memory of a program with the guards of an overlay on it.

    Attributes:
        working: parameters and buffers, to be changed by faults.
        guards: by label.
        copies: tensors that the guards hold, live, by the name of their site.
    """

    def __init__(self, program: Program, overlay: Overlay) -> None:
        self.working = WorkingMemory(program)
        self.guards = overlay.labelled_guards(without_covered(self.working.tensors))
        self._program = program
        self.copies = {
            f"{label}/{name}": tensor
            for label, guard in self.guards.items()
            for name, tensor in guard.copies.items()
            if tensor.numel()
        }
        self._pristine = {name: tensor.detach().clone() for name, tensor in self.copies.items()}

    @property
    def guard_sites(self) -> tuple[MemorySite, ...]:
        """Sites of the tensors that guards hold."""
        kinds = frozenset(["guard"])
        return tuple(
            MemorySite(name, kinds=kinds, is_buffer=True, shape=tuple(tensor.shape), dtype=tensor.dtype)
            for name, tensor in self.copies.items()
        )

    def corrupt(self, word: dict[str, Any]) -> tuple[str | None, int, int]:
        """Change the word of one row of a fault table.

        Returns:
            The name of the changed parameter or buffer, None for a guard's own memory; the words before and after.
        Raises:
            SiteError: neither a memory site of the program nor one of its guards.
        """
        keep, flip = (int(np.uint64(word[mask]).astype(np.int64)) for mask in ("keep", "flip"))
        form = format_named(word["format"])
        name, tensor = None, self.copies.get(word["site"])
        if tensor is None:
            site = self._program.memory_site(word["site"])
            name, tensor = site.name, site.of(self.working.tensors)
        return name, *strike_word(tensor, word["element"], form=form, keep=keep, flip=flip)

    def check(self) -> GuardReport:
        """Run the guards' check; damage that is so large that they refuse to repair it counts as uncorrectable."""
        try:
            return sum(check_all(list(self.guards.values())), GuardReport())
        except StaleGuardError:
            return GuardReport(detected=1, uncorrectable=1, where=tuple(self.working.tensors))

    def restore(self, names: Iterable[str]) -> None:
        """Restore the bits of these tensors of the model, and of all memory of the guards."""
        self.working.restore(names)
        for name, tensor in self.copies.items():
            if not equal_bits(tensor, self._pristine[name]):
                integer_view(tensor).copy_(integer_view(self._pristine[name]))
