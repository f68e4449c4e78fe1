"""Outputs whose shape differs from run to run, such as the boxes of a detector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Ragged:
    """One tensor per run, each with a first axis of one; rows of it are a tensor where their shapes agree."""

    rows: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor | Ragged:
        chosen = self.rows[index] if isinstance(index, slice) else [self.rows[row] for row in index.tolist()]
        return joined(chosen)

    def is_floating_point(self) -> bool:
        """Tell whether all runs gave floating-point values."""
        return all(row.is_floating_point() for row in self.rows)


def joined(rows: Sequence[Tensor]) -> Tensor | Ragged:
    """Rows of one output along the first axis, as a tensor where their shapes agree."""
    if len({(row.shape[1:], row.dtype) for row in rows}) > 1:
        return Ragged(tuple(single for row in rows for single in row.split(1)))
    return torch.cat(list(rows))


def judged_together(outputs: Sequence[Any]) -> Iterator[slice]:
    """The rows of flat outputs that have one shape: all of them, or each alone where one output is ragged."""
    ragged = next((leaf for leaf in outputs if isinstance(leaf, Ragged)), None)
    if ragged is None:
        yield slice(None)
    else:
        yield from (slice(row, row + 1) for row in range(len(ragged)))
