"""What one fault-free run shows: shapes of values, and which steps compute a sample to other bits in another row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hoplon.formats import equal_bits
from hoplon.layout import BatchLayout
from hoplon.program import Program

# Of a sample, at least; with fewer, chance could hide that they are summed in another order.
_FEW_VALUES = 256


@dataclass(frozen=True)
class Survey:
    """Found by a run of a batch beside a run of the same batch with every sample one row further.

    ``maps``: shapes of the feature maps ``(batch, channels, height, width)`` that lie channel by channel; ``tied``:
    the steps whose results differ in some bit between the two rows of a sample. A kernel decides by shape and row, not
    by value, how it sums; so a step that is not tied computes a sample to the same bits in every row. A step that makes
    few values counts as tied.
    """

    maps: Mapping[int, tuple[int, ...]]
    tied: frozenset[int]


def survey(program: Program, protections: Mapping[int, Any], leaves: Sequence[Any]) -> Survey:
    """Run the batch twice, in step."""
    memory = program.memory()
    rows = {step: program.layouts.get(step) for step in range(len(program.steps))}
    plain = program.initial_values(leaves, memory)
    moved = program.initial_values(leaves, memory)
    maps: dict[int, tuple[int, ...]] = {}
    tied: set[int] = set()
    for given in program.input_steps:
        moved[given] = _moved(rows[given], plain[given])
        _note(maps, program, given, plain[given])
    with torch.inference_mode():
        for step in program.compute_steps():
            index = step.index
            plain[index], moved[index] = step.run(plain), step.run(moved)
            if (protection := protections.get(index)) is not None:
                plain[index], moved[index] = protection(plain[index]), protection(moved[index])
            expected = _moved(rows[index], plain[index])
            if isinstance(expected, Tensor) and isinstance(moved[index], Tensor):
                few = rows[index] is not None and plain[index].numel() < _FEW_VALUES * len(moved[index])
                if few or not equal_bits(expected, moved[index]):
                    tied.add(index)
                moved[index] = expected if rows[index] is not None else moved[index]
            _note(maps, program, index, plain[index])
            for dead in program.last_reads[index]:
                plain[dead] = moved[dead] = None
    return Survey(maps, frozenset(tied))


def _moved(layout: Any, value: Any) -> Any:
    """The value with every sample one row further."""
    if layout is None or not isinstance(value, Tensor):
        return value
    count = layout.samples_first(value).shape[0]
    return layout.take(value, (torch.arange(count) - 1).to(value.device) % count)


def _note(maps: dict[int, tuple[int, ...]], program: Program, step: int, value: Any) -> None:
    if not isinstance(value, Tensor) or value.dim() != 4 or program.layouts.get(step) != BatchLayout(0):
        return
    strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    if strides == sorted(strides, reverse=True):
        maps[step] = tuple(value.shape)
