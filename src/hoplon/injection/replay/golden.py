"""Arguments and results of a replay: injections, the words they met, golden values, counts of the work done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from hoplon.formats.base import NumberFormat, integer_view
from hoplon.formats.dtypes import native
from hoplon.injection.replay.values import GoldenValues
from hoplon.injection.replay.windows import Ints, StackedPixels, by_batch

Placement = Literal["before", "after"]
"""Place of a fault: before the protection of a value, or after it."""
Arrival = Literal["before", "after"]
"""Time of a memory fault: before the guards' check, or after it."""


@dataclass(frozen=True)
class Injections:
    """Words to change at one value site in one pass.

    ``rows``: shape ``(n,)``, int64, the sample of the batch; ``elements``: shape ``(n,)``, int64, row-major within the
    sample; ``keep``, ``flip``: shape ``(n,)``, int64 words, after = (before & keep) ^ flip.
    """

    rows: Tensor
    elements: Tensor
    keep: Tensor
    flip: Tensor
    format: NumberFormat | None = None

    def strike(self, value: Tensor, where: tuple[Tensor | int, ...], shape: Sequence[int]) -> tuple[Tensor, ...]:
        """Change the words of a value in place.

        Args:
            where: their indices in ``value``.
            shape: of a sample, to which ``elements`` refer.
        Returns:
            The values before, and the words before and after.
        """
        form = (self.format or native(value.dtype)).at(self.elements, shape)
        old = value[where]
        new = form.apply(old, self.keep, self.flip)
        if value.is_quantized:
            integer_view(value)[where] = integer_view(new)
        else:
            value[where] = new
        return old, form.words(old), form.words(new)


@dataclass(frozen=True)
class InjectedWords:
    """Words that :class:`Injections` changed, each of shape ``(n,)``.

    ``before``, ``after``: int64, the words before and after the fault; ``reached``: bool, whether readers got a value
    that differs from the golden one.
    """

    before: Tensor
    after: Tensor
    reached: Tensor


@dataclass(frozen=True)
class Golden:
    """The fault-free values of one input batch that replay needs.

    ``delivered``: by step, as readers get them (after the step's protection); ``produced``: by step, as the operator
    produced them, where the protection changed something; ``outputs``: the flat outputs.
    """

    leaves: Sequence[Any]
    delivered: GoldenValues
    produced: Mapping[int, Tensor]
    outputs: Sequence[Any]

    def tensors(self) -> Iterator[Any]:
        """Iterate over the tensors that are held, and over values that are none."""
        yield from self.delivered.held.values()
        yield from (pixels.data for pixels in self.delivered.pixels.values())
        yield from self.produced.values()


@dataclass(frozen=True)
class GoldenStack:
    """Golden values of some batches, by their numbers; sample ``row`` is one of batch ``row // batch``."""

    batch: int
    batches: Mapping[int, Golden]
    _maps: dict[int, StackedPixels] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def one(self) -> Golden:
        """The values of one batch."""
        return next(iter(self.batches.values()))

    def split(self, rows: Ints) -> Iterator[tuple[int, Ints, Ints]]:
        """Yield numbers of batches, where in ``rows`` theirs are, and these samples in the batch."""
        return ((number, where, rows[where] - number * self.batch) for number, where in by_batch(rows, self.batch))

    def of(self, rows: Ints) -> GoldenStack:
        """Return the batches in which these samples lie."""
        return GoldenStack(self.batch, {number: self.batches[number] for number, _, _ in self.split(rows)})

    def map(self, step: int) -> StackedPixels:
        """Return a feature map as pixels."""
        if step not in self._maps:
            parts = {number: golden.delivered.map(step) for number, golden in self.batches.items()}
            self._maps[step] = StackedPixels(self.batch, parts)
        return self._maps[step]

    def produced(self, step: int, rows: Ints) -> Iterator[tuple[Tensor, Ints, Ints]]:
        """Yield values that a protection changed, as the operator produced them, with places as `split` does."""
        for number, where, local in self.split(rows):
            if step in self.batches[number].produced:
                yield self.batches[number].produced[step], where, local

    def outputs(self, rows: Ints) -> list[Any]:
        """Return the flat outputs of samples, samples first."""
        parts = [[_rows(out, local) for out in self.batches[number].outputs] for number, _, local in self.split(rows)]
        back = np.argsort(np.argsort(rows // self.batch, kind="stable"))
        return [
            torch.cat(column)[torch.from_numpy(back).to(column[0].device)]
            if isinstance(column[0], Tensor)
            else column[0]
            for column in zip(*parts, strict=True)
        ]


def _rows(output: Any, rows: Ints) -> Any:
    return output[torch.from_numpy(rows).to(output.device)] if isinstance(output, Tensor) else output


@final
@dataclass(frozen=True)
class ReplayStatistics:
    """Counts of the work that a replay has done since it was created.

    ``passes``: passes over whole values; ``operators``: operators run in these; ``windows``: windows that the sweeps
    computed; ``left``: runs that left a sweep for whole values; ``carried_bytes``: the most that the runs of one call
    carried from step to step, in bytes.
    """

    passes: int = 0
    operators: int = 0
    windows: int = 0
    left: int = 0
    carried_bytes: int = 0

    def __add__(self, other: ReplayStatistics) -> ReplayStatistics:
        return ReplayStatistics(
            self.passes + other.passes,
            self.operators + other.operators,
            self.windows + other.windows,
            self.left + other.left,
            max(self.carried_bytes, other.carried_bytes),
        )
