"""Formats by the names that fault tables store, and several formats in one call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import NumberFormat
from hoplon.formats.dtypes import NATIVE_DTYPES, Native, native
from hoplon.formats.fixed import FixedPoint
from hoplon.formats.quantized import Quantized

_FAMILIES: tuple[type[NumberFormat], ...] = (Native, FixedPoint, Quantized)


@checked
@functools.cache
def format_named(name: str) -> NumberFormat:
    """The format that carries this name, as stored in a fault table.

    Raises:
        HoplonError: no format has the name.
    Example:
        >>> format_named("float32") == native(torch.float32)
        True
        >>> format_named("fixed(21,10)").bits
        31
    """
    for family in _FAMILIES:
        found = family.parse(name)
        if found is not None:
            return found
    known = ", ".join(native(dtype).name for dtype in NATIVE_DTYPES)
    raise HoplonError(
        f"expected the name of a number format ({known}, fixed(21,10), quantized(int8,0.05,0)), got {name!r}"
    )


@checked
def one_per_word(names: Sequence[str]) -> NumberFormat:
    """The format of values that each have their own, in the order of `names`; at least one.

    Example:
        >>> mixed = one_per_word(["float32", "fixed(14,2)"])
        >>> mixed.words(torch.tensor([1.0, 1.0])).tolist()
        [1065353216, 4]
    """
    found = tuple(dict.fromkeys(names))
    if len(found) == 1:
        return format_named(found[0])
    number = {name: index for index, name in enumerate(found)}
    index = torch.tensor([number[name] for name in names])
    return _OnePerWord(tuple(format_named(name) for name in found), index)


@final
@dataclass(frozen=True, eq=False)
class _OnePerWord(NumberFormat):
    """Value i is held in ``formats[index[i]]``; `index`: int64, shape ``(n,)``."""

    formats: tuple[NumberFormat, ...]
    index: Tensor

    @property
    def name(self) -> str:
        return " and ".join(form.name for form in self.formats)

    @property
    def bits(self) -> int:
        return max(form.bits for form in self.formats)

    @classmethod
    def parse(cls, name: str) -> None:
        return None

    def words(self, values: Tensor) -> Tensor:
        found = torch.empty_like(values, dtype=torch.int64)
        for form, rows in self._parts(values):
            found[rows] = form.words(values[rows])
        return found

    def apply(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        keep, flip = (torch.as_tensor(mask, device=values.device).expand(values.shape) for mask in (keep, flip))
        after = values.clone()
        for form, rows in self._parts(values):
            after[rows] = form.apply(values[rows], keep[rows], flip[rows])
        return after

    def at(self, elements: Tensor, shape: Sequence[int]) -> NumberFormat:
        index = self.index.to(elements.device)
        placed = (form.at(elements[index == number], shape) for number, form in enumerate(self.formats))
        return _OnePerWord(tuple(placed), self.index)

    def only(self, which: Tensor) -> NumberFormat:
        return _OnePerWord(self.formats, self.index[which])

    def _parts(self, values: Tensor) -> list[tuple[NumberFormat, Tensor]]:
        index = self.index.to(values.device)
        return [(form, index == number) for number, form in enumerate(self.formats)]
