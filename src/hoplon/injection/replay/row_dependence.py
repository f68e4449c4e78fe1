"""What fault-free runs show: shapes of values, and which steps compute a sample to other bits in another row."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.formats.base import equal_bits
from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.rules import Rule
from hoplon.injection.replay.values import Protections, StepValues
from hoplon.program.layout import BatchLayout, Layout
from hoplon.program.program import Program

# Of a sample, at least; with fewer, chance could hide that they are summed in another order.
_FEW_VALUES = 256
# What an operator may raise for a number of samples that it does not take.
SHAPE_ERRORS = (RuntimeError, IndexError, ValueError, TypeError)

Shapes = dict[int, tuple[int, ...]]


class Maps:
    """Notes shapes ``(batch, channels, height, width)`` of the feature maps that lie channel by channel, by step."""

    def __init__(self, program: Program, batch: int) -> None:
        self._program, self._batch = program, batch
        self.shapes: Shapes = {}

    def note(self, step: int, value: Any) -> None:
        """A value of a run, with any number of samples."""
        if isinstance(value, Tensor) and value.dim() == 4 and self._program.layouts.get(step) == BatchLayout(0):
            strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
            if strides == sorted(strides, reverse=True):
                self.shapes[step] = (self._batch, *value.shape[1:])


def maps_of_one(program: Program, leaves: Sequence[Any], batch: int) -> Shapes:
    """The shapes that one sample of a batch shows, or the whole batch where the program takes no other."""
    maps = Maps(program, batch)
    if program.signature.fixed_batch is None:
        layouts = (program.layouts.get(step) for step in program.input_steps)
        leaves = [_rows(layout, leaf, [0]) for layout, leaf in zip(layouts, leaves, strict=True)]

    def hook(step: int, value: Any) -> Any:
        maps.note(step, value)
        return value

    for step, leaf in zip(program.input_steps, leaves, strict=True):
        maps.note(step, leaf)
    with torch.inference_mode():
        program.run(leaves, hook=hook)
    return maps.shapes


class RowDependence:
    """The *tied* steps: those that compute a sample to other bits in another row of the batch.

    A kernel decides by shape and row, not by value, how it sums; so a step that gives every sample its golden bits with
    all of them one row further is not tied, nor are others of its likeness. A step that makes few values counts as
    tied.
    Steps are looked at when somebody asks, from the end on.
    """

    def __init__(self, program: Program, protections: Protections, rules: Mapping[int, Rule]) -> None:
        self._program, self._protections, self._rules = program, protections, rules
        self._from = len(program.steps)
        self._tied: set[int] = set()
        self._like: dict[tuple[Any, ...], bool] = {}

    def next(self, step: int, golden: Golden) -> int:
        """The first step from this one on at which a sample has to be in its own row; the number of steps if none.

        Where an operator gives several results, they are taken apart in the same rows in which it ran.
        """
        if step < self._from:
            self._look(step, golden)
        found = min((tied for tied in self._tied if tied >= step), default=len(self._program.steps))
        while (source := self._parted(step, found)) is not None:
            found = source
        return found

    def _look(self, first: int, golden: Golden) -> None:
        values = golden.delivered.computed()
        with torch.inference_mode():
            for step in self._program.steps[first : self._from]:
                if step.op is not None and self._is_tied(step.index, values):
                    self._tied.add(step.index)
                values.forget(self._program.last_reads[step.index])
        self._from = first

    def _is_tied(self, index: int, values: StepValues) -> bool:
        rule = self._rules.get(index)
        if rule is None:
            return self._differs(index, values)
        if rule.rounds == "never":
            return False
        key = (*rule.likeness, rule.axes)
        if key not in self._like:
            self._like[key] = self._differs(index, values)
        return self._like[key]

    def _differs(self, index: int, values: StepValues) -> bool:
        """Whether the step gives other bits with its samples in other rows."""
        layout, plain = self._program.layouts.get(index), values[index]
        if isinstance(plain, tuple) and index in self._rules:
            layout, plain = BatchLayout(0), plain[0]
        if not isinstance(plain, Tensor):
            return False
        found = _Moved(self._program, self._protections, values).result(index)
        found = found[0] if isinstance(found, tuple) else found
        expected = moved(layout, plain)
        few = layout is not None and plain.numel() < _FEW_VALUES * len(plain)
        return few or expected.shape != found.shape or not equal_bits(expected, found)

    def _parted(self, first: int, step: int) -> int | None:
        """An operator with several results, from ``first`` on, that runs before a step but is read there or later."""
        program = self._program
        return next(
            (
                index
                for index in range(first, min(step, len(program.steps)))
                if index not in program.layouts and program.steps[index].op is not None
                if any(program.steps[reader].op is operator.getitem for reader in program.readers[index])
                if program.readers[index][-1] >= step
            ),
            None,
        )


class _Moved(StepValues):
    """Golden values with every sample one row further."""

    source: StepValues

    def __init__(self, program: Program, protections: Protections, golden: StepValues) -> None:
        super().__init__(program, golden)
        self._protections = protections

    @override
    def resolve(self, step: int) -> Any:
        value = self.source[step]
        return self.result(step) if isinstance(value, tuple) else moved(self.program.layouts.get(step), value)

    def result(self, step: int) -> Any:
        """Return what the operator gives when it reads these values."""
        value = self.program.steps[step].run(self)
        protection = self._protections.get(step)
        return value if protection is None else protection(value)


def moved(layout: Layout | None, value: Any) -> Any:
    """Return a value with every sample one row further, the last one in the first row."""
    if layout is None or not isinstance(value, Tensor):
        return value
    count = layout.samples_first(value).shape[0]
    return layout.take(value, ((torch.arange(count) - 1) % count).to(value.device))


def _rows(layout: Any, value: Any, rows: Sequence[int]) -> Any:
    if layout is None or not isinstance(value, Tensor):
        return value
    return layout.take(value, torch.tensor(rows, device=value.device))
