"""Faults that a function of the caller makes of the value it meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import HoplonError, checked
from hoplon.faults.model import Places, WordModel
from hoplon.formats.base import NumberFormat
from hoplon.formats.dtypes import native


@final
@checked
@dataclass(frozen=True)
class Function(WordModel):
    """The value becomes ``function(values, generator)`` of the fault-free value.

    The result is computed when the fault is drawn and stored as the word to write, so that the fault table replays
    without the function, also in another arm.

    Args:
        function: values of shape ``(n,)`` to values of the same shape and dtype; randomness from the generator only.
        label: what reports and manifests call it; two functions under one label are taken for the same.
    Raises:
        HoplonError: a format (the function works on the value itself); when drawn: another shape or dtype came back.
    Example:
        >>> Function(lambda values, generator: -values, "negate").name
        "Function('negate')"
    """

    function: Callable[[Tensor, torch.Generator], Tensor]
    label: str

    def __post_init__(self) -> None:
        if self.format is not None:
            raise HoplonError(f"expected no format for {self.name}, which works on the value itself, got {self.format}")

    @property
    @override
    def name(self) -> str:
        return f"Function({self.label!r})"

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Refuse: the change of a word depends on the value."""
        raise HoplonError(f"expected places whose values can be seen for {self.name}, got none; use sample")

    def _draw_at(
        self, anchors: Places, format: NumberFormat, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = anchors.sites[int(anchors.number[0])].dtype
        values = native(dtype).apply(torch.zeros(len(anchors)).to(dtype), 0, anchors.words())
        result: object = self.function(values.clone(), generator)
        if not isinstance(result, Tensor) or result.shape != values.shape or result.dtype != dtype:
            got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise HoplonError(f"expected {self.name} to give {dtype} {tuple(values.shape)}, got {got}")
        flip = format.words(result)
        return torch.zeros_like(flip), flip, torch.ones(len(anchors), dtype=torch.float64)
