"""What a pass strikes, what it met, and the fault-free values that it starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hoplon.formats.base import NumberFormat
from hoplon.injection.replay.values import GoldenValues

Placement = Literal["before", "after"]


@dataclass(frozen=True)
class Injections:
    """Words struck at one value site in one pass.

    ``rows``: shape ``(n,)``, int64, the sample of the batch; ``elements``: shape ``(n,)``, int64, row-major within the
    sample; ``keep``, ``flip``: shape ``(n,)``, int64 words, after = (before & keep) ^ flip.
    """

    rows: Tensor
    elements: Tensor
    keep: Tensor
    flip: Tensor
    format: NumberFormat | None = None


@dataclass(frozen=True)
class InjectedWords:
    """What :class:`Injections` met: words before and after the fault, and whether readers got a value that differs."""

    before: Tensor
    after: Tensor
    reached: Tensor


@dataclass(frozen=True)
class Golden:
    """The fault-free values of one input batch that replay needs.

    ``delivered``: by step, as readers get them (after the step's protection); ``produced``: by step, as the operator
    made them, where the protection changed something; ``outputs``: the flat outputs.
    """

    leaves: Sequence[Any]
    delivered: GoldenValues
    produced: Mapping[int, Tensor]
    outputs: Sequence[Any]

    def tensors(self) -> Iterator[Any]:
        """Iterate over the tensors that are held, and over values that are none."""
        yield from self.delivered.held.values()
        yield from (pixels.flat for pixels in self.delivered.pixels.values())
        yield from self.produced.values()
