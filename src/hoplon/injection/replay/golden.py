"""Arguments and results of a replay: injections, the words they met, golden values, counts of the work done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from hoplon.formats.base import NumberFormat, integer_view
from hoplon.formats.dtypes import native
from hoplon.injection.replay.values import GoldenValues

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
