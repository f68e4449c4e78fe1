"""A private copy of a program's memory, which faults may strike; the user's model is never written to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hoplon.formats import NumberFormat, equal_bits
from hoplon.program import Program
from hoplon.sites import MemorySite


class WorkingMemory:
    """All parameters and buffers once more: names that share a storage share it here too."""

    def __init__(self, program: Program) -> None:
        self._golden = program.memory()
        copies: dict[int, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in self._golden.items():
            key = tensor.data_ptr() if tensor.numel() else id(tensor)
            self.tensors[name] = copies.setdefault(key, tensor.clone())

    def strike(self, site: MemorySite, element: int, *, form: NumberFormat, keep: int, flip: int) -> tuple[int, int]:
        """Change one word; the words before and after come back."""
        flat = self.tensors[site.name]
        index = torch.tensor(element)
        where = tuple(int(i) for i in torch.unravel_index(index, flat.shape))
        form = form.at(index, flat.shape)
        old = flat[where]
        before = int(form.words(old))
        flat[where] = form.strike(old, keep, flip)
        return before, int(form.words(flat[where]))

    def changed(self, names: Iterable[str]) -> list[str]:
        """Which of these tensors differ from the model's in any bit."""
        return [name for name in names if not equal_bits(self.tensors[name], self._golden[name])]

    def restore(self, names: Iterable[str]) -> None:
        """Put the model's bits back."""
        for name in names:
            self.tensors[name].copy_(self._golden[name])

    @property
    def golden(self) -> Mapping[str, Tensor]:
        """The model's own tensors."""
        return self._golden
