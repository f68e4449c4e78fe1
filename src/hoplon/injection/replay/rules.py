"""Rules of operators on feature maps: the input pixels that an output pixel depends on, and how to run on windows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hoplon.injection.replay.values import StepValues
from hoplon.injection.replay.windows import Ints
from hoplon.program.operators import has
from hoplon.program.program import Program, Ref, Step

Shapes = Mapping[int, tuple[int, ...]]
Local = Callable[[list[Tensor], StepValues], Tensor]
_Pair = tuple[int, int]
_aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Axis:
    """One spatial axis: output position o depends on the ``extent`` input positions from ``o * stride - pad`` on."""

    extent: int = 1
    stride: int = 1
    pad: int = 0

    def first(self, outputs: Ints) -> Ints:
        """Return the first input position of each output position."""
        return outputs * self.stride - self.pad

    def size(self, outputs: int) -> int:
        """Return the number of input positions that so many neighbouring output positions depend on."""
        return (outputs - 1) * self.stride + self.extent

    def reached(self, first: Ints, last: Ints, size: int) -> tuple[Ints, Ints]:
        """Return the first and last of ``size`` outputs that depend on inputs in a range; first > last: none."""
        low = -((self.extent - 1 - self.pad - first) // self.stride)  # rounded up
        return np.maximum(low, 0), np.minimum((last + self.pad) // self.stride, size - 1)


def _unknown(windows: list[Tensor], values: StepValues) -> Tensor:
    raise AssertionError("the bits of this operator do not depend on shapes")


@dataclass(frozen=True)
class Rule:
    """A step whose result is a feature map, each pixel of which depends on nearby pixels of other maps.

    ``operands``: the steps whose maps it reads, one window of each in that order; ``axes``: lines and columns;
    ``fill``: the value outside of a map; ``run``: the operator on windows without padding; ``rounds``: how the bits of
    a result can depend on the shape of the windows: "never", "by step" (on the kernel, settled by one comparison) or
    "by shape". ``settles``: whether a comparison of the result with golden pays. ``pointwise``: a pixel depends on the
    same pixel alone, by products with weights (a 1 x 1 convolution). ``likeness``: steps of one likeness run the same
    kernels on windows of one shape. ``products``: number of products for one pixel of the result. ``whole``: the
    operator on whole maps, unless ``rounds`` is "never".
    """

    operands: tuple[int, ...]
    run: Local
    axes: tuple[Axis, Axis] = (Axis(), Axis())
    fill: float = 0.0
    rounds: str = "never"
    settles: bool = False
    pointwise: bool = False
    likeness: tuple[Any, ...] = ()
    products: int = 0
    whole: Local = _unknown

    @property
    def grows(self) -> bool:
        """True if pixels move or spread."""
        return self.axes != (Axis(), Axis())


def rules_of(program: Program, shapes: Shapes) -> dict[int, Rule]:
    """Return the rules of a program's steps; steps without one need whole values.

    Args:
        shapes: by step, of all values that are contiguous feature maps with the samples along the first axis.
    """
    maker = _Maker(program, shapes)
    rules: dict[int, Rule] = {}
    for step in program.compute_steps():
        if step.op is operator.getitem:
            # the windows of an operator with several results are those of the first
            source = step.args[0].step
            if source in rules and step.args[1] == 0 and step.index in shapes:
                rules[step.index] = Rule((source,), lambda windows, values: windows[0])
        elif (rule := _rule(maker, step)) is not None:
            rules[step.index] = rule
    return rules


def _rule(maker: _Maker, step: Step) -> Rule | None:
    if has(step.op, "exact"):
        return maker.pointwise(step)
    make = _MAKERS.get(step.op)
    return None if make is None else make(maker, step)


@dataclass(frozen=True)
class _Maker:
    """Makes the rules of steps; each method returns None where there is none."""

    program: Program
    shapes: Shapes

    def _maps(self, *steps: int) -> tuple[tuple[int, ...], ...]:
        return tuple(self.shapes[step] for step in steps)

    def pointwise(self, step: Step) -> Rule | None:
        """Return the rule of an operator that treats every element alike and is rounded correctly (IEEE 754)."""
        operands = tuple(dict.fromkeys(read for read in step.reads if read in self.shapes))
        given = (*step.args, *step.kwargs.values())
        if step.index not in self.shapes or not operands or step.argument("alpha") not in (None, 1):
            return None
        if any(self.shapes[operand] != self.shapes[step.index] for operand in operands):
            return None
        if any(isinstance(argument, Ref) and argument.step not in self.shapes for argument in given):
            return None
        return Rule(operands, _with_windows(step, operands), settles=has(step.op, "settles"))

    def batch_norm(self, step: Step) -> Rule | None:
        """Return the rule of a batch norm: one product and one sum per element."""
        operand = step.args[0].step
        if operand not in self.shapes:
            return None
        first = _with_windows(step, (operand,), result=0)
        like = ("batch_norm", self._maps(operand))
        return Rule((operand,), first, rounds="by step", likeness=like, whole=first)

    def conv(self, step: Step) -> Rule | None:
        """Return the rule of a convolution that is not transposed and has its padding given in numbers."""
        given, weight, bias = step.args[0].step, step.args[1], step.argument("bias")
        stride, padding, dilation = (_pair(step.argument(name)) for name in ("stride", "padding", "dilation"))
        known = given in self.shapes and step.index in self.shapes and isinstance(weight, Ref)
        if not known or stride is None or padding is None or dilation is None or step.argument("transposed"):
            return None
        if weight.step not in self.program.memory_steps:
            return None
        tensor = self.program.memory()[self.program.memory_steps[weight.step]]
        shape = tensor.shape
        groups, convolve = step.argument("groups"), step.kernel or torch.conv2d

        def run(windows: list[Tensor], values: StepValues) -> Tensor:
            offset = values[bias.step] if isinstance(bias, Ref) else bias
            return convolve(windows[0], values[weight.step], offset, stride, (0, 0), dilation, groups)

        axes = _axes(shape[2:], stride, padding, dilation)
        alone = axes == (Axis(), Axis())
        form = tensor.dtype, tuple(shape), stride, dilation, groups, bias is None
        like = (str(convolve), *form, self._maps(given, step.index))
        rule = Rule((given,), run, axes, rounds="by shape", settles=True, pointwise=alone, likeness=like)
        return replace(rule, whole=_with_windows(step, (given,)), products=shape.numel())

    def max_pool(self, step: Step) -> Rule | None:
        """Return the rule of the largest value of each neighbourhood."""
        if (pooling := self._pooling(step)) is None:
            return None
        axes, kernel, stride, dilation = pooling

        def run(windows: list[Tensor], values: StepValues) -> Tensor:
            return F.max_pool2d(windows[0], kernel, stride, 0, dilation)

        return Rule((step.args[0].step,), run, axes, fill=float("-inf"), settles=True)

    def avg_pool(self, step: Step) -> Rule | None:
        """Return the rule of the mean of each neighbourhood, where all have one size."""
        pooling = self._pooling(step)
        if pooling is None or step.argument("ceil_mode"):
            return None
        axes, kernel, stride, _ = pooling
        if any(axis.pad for axis in axes) and not step.argument("count_include_pad"):
            return None
        divisor = step.argument("divisor_override")

        def run(windows: list[Tensor], values: StepValues) -> Tensor:
            return F.avg_pool2d(windows[0], kernel, stride, 0, divisor_override=divisor)

        like = ("avg_pool", kernel, stride, divisor, self._maps(step.args[0].step, step.index))
        given = (step.args[0].step,)
        whole = _with_windows(step, given)
        return Rule(given, run, axes, rounds="by shape", settles=True, likeness=like, whole=whole)

    def _pooling(self, step: Step) -> tuple[tuple[Axis, Axis], _Pair, _Pair, _Pair] | None:
        """Return the axes of a pooling operator, its kernel, stride and dilation."""
        kernel, stride, padding = (_pair(step.argument(name)) for name in ("kernel_size", "stride", "padding"))
        dilation = _pair(step.argument("dilation")) or (1, 1)
        if step.args[0].step not in self.shapes or step.index not in self.shapes or kernel is None or padding is None:
            return None
        stride = stride or kernel
        return _axes(kernel, stride, padding, dilation), kernel, stride, dilation

    def cat(self, step: Step) -> Rule | None:
        """Return the rule of a concatenation of channels."""
        tensors, axis = step.args[0], step.argument("dim")
        operands = tuple(part.step for part in tensors if isinstance(part, Ref))
        whole = len(operands) == len(tensors) and len(set(operands)) == len(operands)
        if axis not in (1, -3) or not whole or any(operand not in self.shapes for operand in operands):
            return None
        return Rule(operands, lambda windows, values: torch.cat(windows, 1)) if step.index in self.shapes else None

    def cut(self, step: Step) -> Rule | None:
        """Return the rule of a slice of lines, columns or channels."""
        given, axis, start, pace = (step.argument(name) for name in ("self", "dim", "start", "step"))
        if given.step not in self.shapes or step.index not in self.shapes or not isinstance(start or 0, int):
            return None
        axis, size = axis % 4, self.shapes[given.step][axis]
        begin = min((start or 0) if (start or 0) >= 0 else max(0, size + start), size)
        if axis == 1:
            end = begin + (self.shapes[step.index][1] - 1) * pace + 1
            return Rule((given.step,), lambda windows, values: windows[0][:, begin:end:pace])
        if axis == 0:
            return None
        moved = Axis(1, pace, -begin)
        axes = (moved, Axis()) if axis == 2 else (Axis(), moved)
        paces = [axes[0].stride, axes[1].stride]
        return Rule((given.step,), lambda windows, values: windows[0][:, :, :: paces[0], :: paces[1]], axes)

    def pad(self, step: Step) -> Rule | None:
        """Return the rule of zeros around the map, or channels of zeros."""
        given, amounts = step.args[0], step.argument("pad")
        constant = step.argument("mode") in (None, "constant") and not step.argument("value")
        if given.step not in self.shapes or step.index not in self.shapes or not constant:
            return None
        if not all(isinstance(amount, int) for amount in amounts) or len(amounts) > 6:
            return None
        left, right, top, bottom, before, after = (*amounts, 0, 0, 0, 0, 0, 0)[:6]
        if min(right, bottom, before, after) < 0:
            return None
        axes = (Axis(1, 1, top), Axis(1, 1, left))
        return Rule((given.step,), lambda windows, values: F.pad(windows[0], (0, 0, 0, 0, before, after)), axes)


def _axes(kernel: Sequence[int], stride: _Pair, padding: _Pair, dilation: _Pair) -> tuple[Axis, Axis]:
    extents = [(kernel[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    return Axis(extents[0], stride[0], padding[0]), Axis(extents[1], stride[1], padding[1])


def _pair(value: Any) -> _Pair | None:
    """Return one number per spatial axis; None where there are none, or they are no integers."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and value and all(isinstance(part, int) for part in value):
        return (value[0], value[-1]) if len(value) in (1, 2) else None
    return None


def _with_windows(step: Step, operands: Sequence[int], result: int | None = None) -> Local:
    """Return the operator itself, with windows in the place of maps; one of its results where it has several."""

    def run(windows: list[Tensor], values: StepValues) -> Tensor:
        output: Any = step.run(values.replaced(dict(zip(operands, windows, strict=True))))
        return output if result is None else output[result]  # type: ignore[no-any-return]

    return run


_MAKERS: Mapping[Any, Callable[[_Maker, Step], Rule | None]] = {
    _aten._native_batch_norm_legit_no_training.default: _Maker.batch_norm,
    _aten.conv2d.default: _Maker.conv,
    _aten.convolution.default: _Maker.conv,
    _aten.max_pool2d.default: _Maker.max_pool,
    _aten.avg_pool2d.default: _Maker.avg_pool,
    _aten.cat.default: _Maker.cat,
    _aten.slice.Tensor: _Maker.cut,
    _aten.pad.default: _Maker.pad,
    _aten.constant_pad_nd.default: _Maker.pad,
}
