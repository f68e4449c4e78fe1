"""Properties of a program that golden runs show: shapes of feature maps, steps whose bits depend on the row."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.formats.base import equal_bits
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.values import StepValues, delivered, in_rows
from hoplon.program.layout import BatchLayout, Layout, channels_last, in_order
from hoplon.program.program import Program, Ref

# Values of a sample, random ones included; with fewer, chance could hide that they are summed in another order.
_FEW_VALUES = 256
_MOST_PROBES = 64
# Errors that an operator may raise for a number of samples that it does not take.
_SHAPE_ERRORS = (RuntimeError, IndexError, ValueError, TypeError)

Shapes = dict[int, tuple[int, ...]]


class Maps:
    """Recorder of the shapes of feature maps ``(batch, channels, height, width)`` whose memory is in this order.

    In a program with packed weights, which computes with channels last, also of those whose memory is so.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self._program, self._batch = program, batch
        self._packed = any(step.kernel is not None for step in program.steps)
        self.shapes: Shapes = {}

    def note(self, step: int, value: Any) -> None:
        """Record the value of a step, with any number of samples."""
        maps = isinstance(value, Tensor) and value.dim() == 4 and self._program.layouts.get(step) == BatchLayout(0)
        if maps and (in_order(value) or (self._packed and channels_last(value))):
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
    """Steps whose result for a sample depends, in the last bits, on its row or on how many samples there are.

    (Some kernels vectorise the batch dimension.)

    A kernel decides by shapes and row, not by value, how it sums; so a step that gives samples their golden bits in
    other rows of a pass of so many samples does so for all, as do other steps with the same kernels and shapes. A step
    that computes few values is examined on random operands too. Steps are examined when they are asked for.

    Args:
        known: what is known by likeness of steps, and what becomes known.
    """

    def __init__(self, plan: Plan, known: dict[tuple[Any, ...], bool]) -> None:
        self.plan, self._by_likeness = plan, known
        self._by_step: dict[tuple[int, int], bool] = {}

    def free(self, step: int, size: int, golden: StepValues) -> bool:
        """True if a pass of ``size`` samples in any rows gives all of them, at this step, the bits of the golden batch.

        Args:
            golden: golden values of a batch.
        """
        if (step, size) not in self._by_step:
            rule = self.plan.rules.get(step)
            selects = self.plan.program.steps[step].op is operator.getitem  # what made it may be gone
            if selects or (rule is not None and rule.rounds == "never"):
                self._by_step[step, size] = True
            else:
                key = (size, *self._likeness(step, golden))
                if key not in self._by_likeness:
                    self._by_likeness[key] = not self._differs(step, size, golden)
                self._by_step[step, size] = self._by_likeness[key]
        return self._by_step[step, size]

    def _likeness(self, index: int, golden: StepValues) -> tuple[Any, ...]:
        """Return what decides the kernels of a step: operator, arguments, and of values their shapes and strides."""
        step, protection = self.plan.program.steps[index], self.plan.protections.get(index)
        given, called = _form((step.args, dict(step.kwargs)), golden), step.kernel or step.op
        return str(called), given, protection and id(protection)

    def _differs(self, index: int, size: int, golden: StepValues) -> bool:
        """True if the step gives other bits with samples in other rows of a pass, or too few values to tell."""
        layouts = part_layouts(self.plan.program, index)
        value = golden[index]
        tensors = [pair for pair in zip(layouts, _parts(value), strict=False) if isinstance(pair[1], Tensor)]
        batch = self._batch(tensors)
        if not tensors or batch is None:
            return True
        probes = -(-_FEW_VALUES * batch // max(tensors[0][1].numel(), 1)) - 1
        drawn = self._drawn(index, golden)
        if probes > _MOST_PROBES or (probes and not drawn):
            return True
        sources = self._sources(index, golden, drawn, probes)
        return not all(self._agrees(index, size, batch, values, layouts) for values in sources)

    def _drawn(self, index: int, golden: StepValues) -> list[int]:
        """Return the operands of a step that random numbers can stand in for: floating-point ones that hold samples."""
        program = self.plan.program
        operands = [read for read in dict.fromkeys(program.steps[index].reads) if program.layouts.get(read) is not None]
        return [read for read in operands if isinstance(golden[read], Tensor) and golden[read].is_floating_point()]

    def _sources(self, index: int, golden: StepValues, drawn: Sequence[int], probes: int) -> Iterator[StepValues]:
        """Yield golden values, and such with random operands in the place of those of the step."""
        yield golden
        generator = torch.Generator().manual_seed(index)
        for _ in range(probes):
            random = {read: _random_like(golden[read], generator) for read in drawn}
            values = golden.replaced(random)
            result = delivered(self.plan.protections, index, self.plan.program.steps[index].run(values))
            yield golden.replaced({**random, index: result})

    def _agrees(self, index: int, size: int, batch: int, values: StepValues, layouts: Sequence[Layout | None]) -> bool:
        """True if samples have, in other rows of a pass, the bits that they have among ``values``."""
        for rows in _other_rows(size, batch):
            try:
                got = _parts(RowsOf(self.plan, values, rows).computed(index))
            except _SHAPE_ERRORS:
                return False
            for (layout, part), other in zip(zip(layouts, _parts(values[index]), strict=False), got, strict=False):
                known = layout is not None and isinstance(part, Tensor)
                if known and not _same(in_rows(layout, part, rows), other):
                    return False
        return True

    @staticmethod
    def _batch(tensors: Sequence[tuple[Layout | None, Tensor]]) -> int | None:
        return next((len(layout.samples_first(part)) for layout, part in tensors if layout is not None), None)


def _parts(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _random_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return random numbers in a tensor of this shape, dtype, device and strides."""
    return torch.empty_like(value).copy_(torch.randn(value.shape, generator=generator))


def _same(expected: Tensor, result: Any) -> bool:
    return isinstance(result, Tensor) and expected.shape == result.shape and equal_bits(expected, result)


def _other_rows(size: int, batch: int) -> list[Tensor]:
    """Return choices of samples, the first and the last of the batch among them, none in the row that it has there."""
    first = (torch.arange(size) + 1) % batch
    return [first] if size == batch else [first, (torch.arange(size) + 1 - size) % batch]


def _form(template: Any, values: StepValues) -> Any:
    """Return arguments with the shape, strides and dtype of each tensor in its place."""
    if isinstance(template, Ref):
        return _form(values[template.step], values)
    if isinstance(template, Tensor):
        return tuple(template.shape), template.stride() if not template.is_sparse else (), str(template.dtype)
    if isinstance(template, tuple | list):
        return tuple(_form(item, values) for item in template)
    if isinstance(template, dict):
        return tuple((key, _form(item, values)) for key, item in template.items())
    return str(template)


def part_layouts(program: Program, step: int) -> tuple[Layout | None, ...]:
    """Return the layout of a step's value, or of each of its results as far as they are read."""
    if step in program.layouts:
        return (program.layouts[step],)
    read = {
        program.steps[reader].args[1]: program.layouts.get(reader)
        for reader in program.readers[step]
        if program.steps[reader].op is operator.getitem
    }
    return tuple(read.get(number) for number in range(max(read, default=-1) + 1))


class RowsOf(StepValues):
    """Values of a pass that holds some samples of the golden batch, a sample for each entry of ``rows``.

    ``rows``: shape ``(n,)``, int64.
    """

    source: StepValues

    def __init__(self, plan: Plan, golden: StepValues, rows: Tensor) -> None:
        super().__init__(plan.program, golden)
        self.plan, self.rows = plan, rows.to(plan.program.device)

    @override
    def resolve(self, step: int) -> Any:
        layout = self.program.layouts.get(step)
        if layout is not None or self.program.steps[step].op is None:
            return in_rows(layout, self.source[step], self.rows)
        value = self.source[step]
        # a count of samples, or several results
        return value if isinstance(value, Tensor) else self.computed(step)

    def computed(self, step: int) -> Any:
        """Run the operator of a step on these values; its protection follows."""
        return delivered(self.plan.protections, step, self.program.steps[step].run(self))


class WithinBatch(StepValues):
    """Golden values of a whole batch, with samples of a pass, those at ``places``, in the rows of theirs."""

    source: StepValues

    def __init__(self, values: RowsOf, golden: StepValues, places: Tensor, rows: Tensor) -> None:
        super().__init__(values.program, golden)
        self._values, self._places, self._rows = values, places.to(values.rows.device), rows.to(values.rows.device)

    @override
    def resolve(self, step: int) -> Any:
        golden, own = self.source[step], self._values.own.get(step)
        layout = self.program.layouts.get(step)
        if own is None or layout is None or not isinstance(own, Tensor):
            return golden
        whole = golden.clone()
        samples = layout.samples_first(whole)
        samples[self._rows] = layout.samples_first(own)[self._places]
        return whole

    def computed(self, step: int) -> Any:
        """Run the operator of a step on these values; its protection follows."""
        return delivered(self._values.plan.protections, step, self.program.steps[step].run(self))
