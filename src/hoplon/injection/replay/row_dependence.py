"""Properties of a program that golden runs show: shapes of feature maps, steps whose bits depend on the row."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.formats.base import equal_bits
from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.values import Protections, StepValues, delivered, in_rows
from hoplon.program.layout import BatchLayout, Layout
from hoplon.program.program import Program

# Values of a sample; with fewer, chance could hide that they are summed in another order.
_FEW_VALUES = 256
# Errors that an operator may raise for a number of samples that it does not take.
_SHAPE_ERRORS = (RuntimeError, IndexError, ValueError, TypeError)

Shapes = dict[int, tuple[int, ...]]


class Maps:
    """Recorder of the shapes of feature maps ``(batch, channels, height, width)`` whose memory is in this order."""

    def __init__(self, program: Program, batch: int) -> None:
        self._program, self._batch = program, batch
        self.shapes: Shapes = {}

    def note(self, step: int, value: Any) -> None:
        """Record the value of a step, with any number of samples."""
        if isinstance(value, Tensor) and value.dim() == 4 and self._program.layouts.get(step) == BatchLayout(0):
            strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
            if strides == sorted(strides, reverse=True):
                self.shapes[step] = (self._batch, *value.shape[1:])


def maps_of_one(program: Program, leaves: Sequence[Any], batch: int) -> Shapes:
    """Record the shapes of a run of one sample, or of the whole batch where the program takes no other.

    There are none where the run fails: some models take no single sample.
    """
    maps = Maps(program, batch)
    if program.signature.fixed_batch is None:
        layouts = (program.layouts.get(step) for step in program.input_steps)
        leaves = [in_rows(layout, leaf, torch.tensor([0])) for layout, leaf in zip(layouts, leaves, strict=True)]

    def hook(step: int, value: Any) -> Any:
        maps.note(step, value)
        return value

    for step, leaf in zip(program.input_steps, leaves, strict=True):
        maps.note(step, leaf)
    try:
        with torch.inference_mode():
            program.run(leaves, hook=hook)
    except _SHAPE_ERRORS:
        return {}
    return maps.shapes


class RowDependence:
    """Steps whose result for a sample depends, in the last bits, on the row it occupies in the batch.

    (Some kernels vectorise the batch dimension.) A run that reaches such a step must stay in its original row.

    A kernel decides by shape and row, not by value, how it sums; so a step that gives every sample its golden bits with
    all of them one row further is not row-dependent, nor are other steps with the same kernels and shapes. A step that
    computes few values counts as row-dependent. Steps are examined when they are asked for, from the end on.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._program, self._protections, self._rules = plan.program, plan.protections, plan.rules
        self._examined_from = self._step_count = len(plan.program.steps)
        self._dependent: set[int] = set()
        self._by_likeness: dict[tuple[Any, ...], bool] = {}

    def next(self, step: int, golden: Golden) -> int:
        """Return the first step from ``step`` on that needs a sample in its own row; the number of steps if none does.

        An operator with several results that are read there or later counts too: a run cannot change rows between it
        and its readers.
        """
        if step < self._examined_from:
            self._examine(step, golden)
        boundary = min((dependent for dependent in self._dependent if dependent >= step), default=self._step_count)
        while (source := self._source_of_several(step, boundary)) is not None:
            boundary = source
        return boundary

    def _examine(self, first: int, golden: Golden) -> None:
        values = golden.delivered.computed()
        with torch.inference_mode():
            for step in self._program.steps[first : self._examined_from]:
                if step.op is not None and self._is_dependent(step.index, values):
                    self._dependent.add(step.index)
                values.forget(self._program.last_reads[step.index])
        self._examined_from = first

    def _is_dependent(self, index: int, values: StepValues) -> bool:
        rule = self._rules.get(index)
        if rule is None:
            return self._differs(index, values)
        if rule.rounds == "never":
            return False
        key = (*rule.likeness, rule.axes)
        if key not in self._by_likeness:
            self._by_likeness[key] = self._differs(index, values)
        return self._by_likeness[key]

    def _differs(self, index: int, values: StepValues) -> bool:
        """True if the step gives other bits with its samples in other rows."""
        layout, golden = self._program.layouts.get(index), values[index]
        if isinstance(golden, tuple) and index in self._rules:
            layout, golden = BatchLayout(0), golden[0]
        if not isinstance(golden, Tensor):
            return False
        result = _Moved(self._program, self._protections, values).result(index)
        result = result[0] if isinstance(result, tuple) else result
        expected = moved(layout, golden)
        few = layout is not None and golden.numel() < _FEW_VALUES * len(golden)
        return few or expected.shape != result.shape or not equal_bits(expected, result)

    def _source_of_several(self, first: int, step: int) -> int | None:
        """Return a step with several results, from ``first`` to before ``step``, that ``step`` or later ones read."""
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
        return delivered(self._protections, step, self.program.steps[step].run(self))


def moved(layout: Layout | None, value: Any) -> Any:
    """Return a value with every sample one row further, the last one in the first row."""
    count = layout.samples_first(value).shape[0] if layout is not None and isinstance(value, Tensor) else 1
    return in_rows(layout, value, torch.arange(count).roll(1))
