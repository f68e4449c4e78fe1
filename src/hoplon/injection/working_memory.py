"""A private copy of a program's memory for faults to change; the user's model is never written to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hoplon.formats.base import NumberFormat, same_bits
from hoplon.program.program import Program

Words = tuple[tuple[Tensor, ...], Tensor]


class WorkingMemory:
    """A copy of all parameters and buffers; names that share a storage share it here too.

    Attributes:
        golden: by name, the model's own tensors.
        tensors: by name, to be written to.
        readable: the same storages as the model sees them, with its ``requires_grad``: some operators choose their
            kernel by it.
    """

    def __init__(self, program: Program) -> None:
        self.golden: Mapping[str, Tensor] = program.memory()
        copies: dict[int, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.readable: dict[str, Tensor] = {}
        with torch.inference_mode(False):  # a tensor made there could not require a gradient
            for name, tensor in self.golden.items():
                key = tensor.data_ptr() if tensor.numel() else id(tensor)
                copy = copies.setdefault(key, tensor.detach().clone())
                self.tensors[name] = copy
                self.readable[name] = copy.detach().requires_grad_(tensor.requires_grad)

    def changed(self, names: Iterable[str]) -> dict[str, Words]:
        """Return by name the indices and values of the words that differ from the model's in any bit."""
        changed: dict[str, Words] = {}
        for name in names:
            tensor = _indexable(self.tensors[name])
            where = (~same_bits(tensor, _indexable(self.golden[name]))).nonzero(as_tuple=True)
            if len(where[0]):
                changed[name] = where, tensor[where]
        return changed

    @contextmanager
    def holding(self, changed: Mapping[str, Words]) -> Iterator[list[str]]:
        """Put changed words in place, and the model's back afterwards; yield all names of the tensors they are in."""
        try:
            for name, (where, words) in changed.items():
                _indexable(self.tensors[name])[where] = words
            storages = {self.tensors[name].data_ptr() for name in changed}
            yield [name for name, tensor in self.tensors.items() if tensor.data_ptr() in storages]
        finally:
            for name, (where, _) in changed.items():
                _indexable(self.tensors[name])[where] = _indexable(self.golden[name])[where]

    def restore(self, names: Iterable[str]) -> None:
        """Restore the model's bits."""
        for name in names:
            self.tensors[name].data.copy_(self.golden[name].detach())


def strike_word(tensor: Tensor, element: int, *, form: NumberFormat, keep: int, flip: int) -> tuple[int, int]:
    """Change one word of a tensor, given by its row-major index; return the words before and after.

    Like a soft error, it does not move torch's version counter: guards take what moves it for an update.
    """
    index = torch.tensor(element)
    where = tuple(int(i) for i in torch.unravel_index(index, tensor.shape))
    form = form.at(index, tensor.shape)
    old = tensor[where]
    before = int(form.words(old))
    tensor.data[where] = form.apply(old, keep, flip)
    return before, int(form.words(tensor[where]))


def _indexable(tensor: Tensor) -> Tensor:
    """Return a view with at least one axis, outside autograd and unseen by torch's version counter."""
    return tensor.data.unsqueeze(0) if tensor.dim() == 0 else tensor.data
