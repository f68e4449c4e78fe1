"""All that a memory fault can strike: the working memory, and what the guards that watch it hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hoplon.formats.base import equal_bits, integer_view
from hoplon.formats.named import format_named
from hoplon.injection.working_memory import WorkingMemory, strike_word
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite
from hoplon.protections.base import Overlay
from hoplon.protections.memory_guard import GuardReport, StaleGuardError, check_all


class ArmedMemory:
    """The memory of a program with the guards of an overlay on it.

    Attributes:
        working: parameters and buffers, to be struck.
        guards: by label.
        copies: what the guards hold, live, by the name of its site.
    """

    def __init__(self, program: Program, overlay: Overlay) -> None:
        self.working = WorkingMemory(program)
        self.guards = overlay.labelled_guards(self.working.tensors)
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
        """A site for each tensor that a guard holds."""
        kinds = frozenset(["guard"])
        return tuple(
            MemorySite(name, kinds=kinds, is_buffer=True, shape=tuple(tensor.shape), dtype=tensor.dtype)
            for name, tensor in self.copies.items()
        )

    def corrupt(self, word: dict[str, Any]) -> tuple[str | None, int, int]:
        """Change the word of one row of a fault table.

        Returns:
            The name of the struck parameter or buffer, None for a guard's own memory; the words before and after.
        Raises:
            SiteError: neither a memory site of the program nor one of its guards.
        """
        keep, flip = (int(np.uint64(word[mask]).astype(np.int64)) for mask in ("keep", "flip"))
        form = format_named(word["format"])
        if word["site"] in self.copies:
            found = strike_word(self.copies[word["site"]], word["element"], form=form, keep=keep, flip=flip)
            return None, *found
        site = self._program.memory_site(word["site"])
        found = self.working.corrupt(site, word["element"], form=form, keep=keep, flip=flip)
        return site.name, *found

    def check(self) -> GuardReport:
        """What the guards find; so much wrong that they refuse to repair it is uncorrectable."""
        try:
            return sum(check_all(list(self.guards.values())), GuardReport())
        except StaleGuardError:
            return GuardReport(detected=1, uncorrectable=1, where=tuple(self.working.tensors))

    def restore(self, names: Iterable[str]) -> None:
        """Put the model's bits back into these tensors, and the guards' into all that they hold."""
        self.working.restore(names)
        for name, tensor in self.copies.items():
            if not equal_bits(tensor, self._pristine[name]):
                integer_view(tensor).copy_(integer_view(self._pristine[name]))
