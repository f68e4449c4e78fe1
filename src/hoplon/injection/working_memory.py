"""A private copy of a program's memory for faults to change; the user's model is never written to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hoplon.formats.base import NumberFormat, same_bits
from hoplon.program.program import Program
from hoplon.program.words import copies_of, overlapping, place_of, without_repeats

Words = tuple[tuple[Tensor, ...], Tensor]


class WorkingMemory:
    """A copy of all stored tensors; those that share words share them here too.

    Attributes:
        golden: by name, the model's own tensors.
        tensors: by name, to be written to.
        readable: the same storages as the model sees them, with its ``requires_grad``: some operators choose their
            kernel by it.
    """

    def __init__(self, program: Program) -> None:
        self.golden: Mapping[str, Tensor] = program.memory()
        self.tensors: dict[str, Tensor] = copies_of(self.golden)
        self.readable: dict[str, Tensor] = {}
        self._overlapping = overlapping(self.golden)
        by_place: dict[object, list[str]] = {}
        for name, tensor in self.golden.items():
            by_place.setdefault(place_of(tensor), []).append(name)
        self._same = {name: names for names in by_place.values() for name in names}
        with torch.inference_mode(False):  # a tensor made there could not require a gradient
            for name, tensor in self.golden.items():
                self.readable[name] = self.tensors[name].detach().requires_grad_(tensor.requires_grad)

    def changed(self, names: Iterable[str]) -> dict[str, Words]:
        """Return by name the indices and values of the words that differ from the model's in any bit."""
        changed: dict[str, Words] = {}
        for name in self._with_overlapping(names):
            tensor = _indexable(self.tensors[name])
            where = (~same_bits(tensor, _indexable(self.golden[name]))).nonzero(as_tuple=True)
            if len(where[0]):
                changed[name] = where, tensor[where]
        return changed

    @contextmanager
    def holding(self, changed: Mapping[str, Words]) -> Iterator[dict[str, Tensor | None]]:
        """Put changed words in place, and the model's back afterwards.

        Yields:
            By name, of all tensors that they are in, the positions of changed words along the first axis, shape
            ``(n,)``, int64; None for scalars and repeated words.
        """
        try:
            for name, (where, words) in changed.items():
                _indexable(self.tensors[name])[where] = words
            yield {name: self._positions(words, name) for first, words in changed.items() for name in self._same[first]}
        finally:
            for name, (where, _) in changed.items():
                _indexable(self.tensors[name])[where] = _indexable(self.golden[name])[where]

    def restore(self, names: Iterable[str]) -> None:
        """Restore the model's bits."""
        for name in self._with_overlapping(names):
            _indexable(self.tensors[name]).copy_(_indexable(self.golden[name]))

    def _positions(self, words: Words, name: str) -> Tensor | None:
        tensor = self.tensors[name]
        return words[0][0] if tensor.dim() and without_repeats(tensor) is tensor else None

    def _with_overlapping(self, names: Iterable[str]) -> Iterable[str]:
        """Return these names, and one of each other tensor that has some of their words."""
        return dict.fromkeys(other for name in names for other in self._overlapping[name])


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
    """Return a view with at least one axis and each word once, outside autograd, unseen by torch's version counter."""
    words = without_repeats(tensor.data)
    return words.unsqueeze(0) if words.dim() == 0 else words
