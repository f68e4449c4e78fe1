"""Tensors as sets of words: which names show the same ones, and copies that share them as the originals do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Offsets: TypeAlias = NDArray[np.int64]
_ALIGNED = 64  # bytes: what torch aligns memory to


@dataclass(frozen=True, eq=False)
class WordSet:
    """A set of words in one storage: names that show some of them, and one tensor that shows each once.

    ``names``: first those that show all of them, in the order given; ``tensor``: None where no tensor does, since
    names overlap in part and leave gaps.
    """

    names: tuple[str, ...]
    tensor: Tensor | None


def without_repeats(tensor: Tensor) -> Tensor:
    """One element of every axis along which all elements are the same memory, as ``expand`` makes them."""
    for axis in reversed(range(tensor.dim())):
        if tensor.stride(axis) == 0 and tensor.shape[axis] > 1:
            tensor = tensor.select(axis, 0)
    return tensor


def by_storage(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors that lie in one storage, in the order given; an empty tensor lies alone."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.untyped_storage()._cdata) if tensor.numel() else (name,)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def place_of(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor lies and how it is read: equal for names of one tensor."""
    storage = tensor.untyped_storage()._cdata if tensor.numel() else id(tensor)
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def word_sets(tensors: Mapping[str, Tensor], wanted: Collection[str] | None = None) -> list[WordSet]:
    """The sets of words of tensors, in the order of their first names: names that overlap show one set.

    Args:
        wanted: names whose words count, all by default; others are added to the set that holds all of their words, if
            there is one.
    """
    order = {name: number for number, name in enumerate(tensors)}
    found = []
    for names in by_storage(tensors):
        found += _sets_of_storage(names, tensors, set(names if wanted is None else wanted))
    return sorted(found, key=lambda words: min(order[name] for name in words.names))


def overlapping(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """By name, those of all places that show some of its words, one for each place, its own first."""
    found = {}
    for names in by_storage(tensors):
        firsts = {place_of(tensors[name]): name for name in reversed(names)}
        spans = {place: _Span(tensors[name]) for place, name in firsts.items()} if len(firsts) > 1 else {}
        for name in names:
            own = place_of(tensors[name])
            met = [first for place, first in firsts.items() if place != own and spans[place].meets(spans[own])]
            found[name] = (name, *met)
    return found


def without_covered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name but those all of whose words another one shows otherwise; names of one tensor are all there."""
    covered = set()
    for words in word_sets(tensors):
        first = tensors[words.names[0]]
        if words.tensor is not None and words.tensor.numel() == without_repeats(first).numel():
            covered |= {name for name in words.names if place_of(tensors[name]) != place_of(first)}
    return {name: tensor for name, tensor in tensors.items() if name not in covered}


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies by name, outside of autograd, that share words with each other where the originals do."""
    copies: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():  # a tensor made there could not require a gradient
        for names in by_storage(tensors):
            first = tensors[names[0]].detach()
            if len({place_of(tensors[name]) for name in names}) == 1 and without_repeats(first) is first:
                copies |= dict.fromkeys(names, first.clone())
            else:
                copies |= put_together(*taken_apart({name: tensors[name].detach() for name in names}))
    return copies


Views = dict[str, tuple[int, torch.dtype, int, tuple[int, ...], tuple[int, ...], bool]]
"""By name: the number of its storage, dtype, offset, shape, strides, and whether it requires a gradient."""


def taken_apart(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], Views]:
    """Copies of the bytes that tensors show, from the first to the last of each storage, and how they show them."""
    pieces: list[Tensor] = []
    views: Views = {}
    for number, names in enumerate(by_storage(tensors)):
        spans = [_Span(tensors[name]) for name in names]
        begin = min(span.begin for span in spans) // _ALIGNED * _ALIGNED
        size = max(span.end for span in spans) - begin if tensors[names[0]].numel() else 0
        raw = torch.empty(0, dtype=torch.uint8, device=tensors[names[0]].device)
        pieces.append(raw.set_(tensors[names[0]].untyped_storage(), begin, (size,), (1,)).clone())
        for name in names:
            tensor = tensors[name]
            offset = int(tensor.storage_offset()) - begin // tensor.itemsize
            views[name] = number, tensor.dtype, offset, tuple(tensor.shape), tensor.stride(), tensor.requires_grad
    return pieces, views


def put_together(pieces: Sequence[Tensor], views: Views) -> dict[str, Tensor]:
    """Tensors from what :func:`taken_apart` made of them; they show the bytes of the pieces."""
    found = {}
    for name, (number, dtype, offset, shape, strides, requires_grad) in views.items():
        tensor = torch.empty(0, dtype=dtype, device=pieces[number].device)
        tensor.set_(pieces[number].untyped_storage(), offset, shape, strides)
        found[name] = tensor.requires_grad_(requires_grad)
    return found


class _Span:
    """The bytes of a storage that a tensor shows: from ``begin`` to ``end``, all between where it is dense."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = without_repeats(tensor.detach())
        self.size = tensor.itemsize
        last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.begin = int(tensor.storage_offset()) * self.size
        self.end = self.begin + (last + 1) * self.size
        self._bytes: _Offsets | None = None

    @property
    def is_dense(self) -> bool:
        """Every byte between is shown, once."""
        return self._tensor.numel() * self.size == self.end - self.begin

    @property
    def bytes(self) -> _Offsets:
        """All shown bytes in order."""
        if self._bytes is None:
            starts: _Offsets = np.zeros(1, dtype=np.int64)
            for count, stride in zip(self._tensor.shape, self._tensor.stride(), strict=True):
                starts = (starts[:, None] + np.arange(count) * stride).reshape(-1)
            words: _Offsets = np.unique(starts) * self.size + self.begin
            self._bytes = (words[:, None] + np.arange(self.size)).reshape(-1)
        return self._bytes

    def meets(self, other: _Span) -> bool:
        """Some byte is shown by both."""
        if self.end <= other.begin or other.end <= self.begin:
            return False
        return (self.is_dense and other.is_dense) or bool(len(np.intersect1d(self.bytes, other.bytes)))

    def holds(self, other: _Span) -> bool:
        """All bytes of the other one are shown by this one."""
        if other.begin < self.begin or self.end < other.end:
            return False
        return self.is_dense or len(np.setdiff1d(other.bytes, self.bytes, assume_unique=True)) == 0


def _sets_of_storage(names: Sequence[str], tensors: Mapping[str, Tensor], wanted: set[str]) -> list[WordSet]:
    by_place: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        by_place.setdefault(place_of(tensors[name]), []).append(name)
    groups = list(by_place.values())
    if len(groups) == 1:
        return [WordSet(tuple(names), without_repeats(tensors[names[0]]))] if wanted & set(names) else []
    spans = {group[0]: _Span(tensors[group[0]]) for group in groups}
    counted = [group for group in groups if wanted & set(group)]
    components: list[list[list[str]]] = []
    for group in counted:
        met = [c for c in components if any(spans[other[0]].meets(spans[group[0]]) for other in c)]
        components = [c for c in components if c not in met] + [[group, *(other for c in met for other in c)]]
    sets = [_joined(sorted(component, key=groups.index), spans, tensors) for component in components]
    for group in groups:
        if group not in counted:
            for number, words in enumerate(sets):
                if spans[words.names[0]].holds(spans[group[0]]):
                    sets[number] = WordSet((*words.names, *group), words.tensor)
    return sets


def _joined(groups: Sequence[list[str]], spans: Mapping[str, _Span], tensors: Mapping[str, Tensor]) -> WordSet:
    """One set of words of names that overlap: shown by one of them, or by a row over all of them."""
    covers = [group for group in groups if all(spans[group[0]].holds(spans[other[0]]) for other in groups)]
    names = tuple(name for group in (*covers, *(g for g in groups if g not in covers)) for name in group)
    if covers:
        return WordSet(names, without_repeats(tensors[names[0]]))
    begin, end = min(spans[g[0]].begin for g in groups), max(spans[g[0]].end for g in groups)
    shown = len(np.unique(np.concatenate([spans[g[0]].bytes for g in groups])))
    first = tensors[names[0]].detach()
    if shown < end - begin or len({tensors[g[0]].dtype for g in groups}) > 1:
        return WordSet(names, None)
    return WordSet(names, first.as_strided((shown // first.itemsize,), (1,), begin // first.itemsize))
