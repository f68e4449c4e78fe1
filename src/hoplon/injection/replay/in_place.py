"""Operators whose result may take the memory of what they read: nobody else reads it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hoplon.program.program import Program, Ref, Step

_aten = torch.ops.aten
_FRESH = frozenset({_aten.conv2d.default, _aten.convolution.default, _aten.linear.default, _aten.add.Tensor})
_NORM = _aten._native_batch_norm_legit_no_training.default


def overwritten(program: Program) -> Mapping[int, int]:
    """By step, the operand whose memory its result may take: ReLU, and the sum of two values.

    The operand is a tensor of its own, no view of another and no output, and no other step reads it.
    """
    outputs = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}

    def free(step: int) -> bool:
        return len(program.readers[step]) == 1 and step not in outputs and _fresh(program, step)

    found = {}
    for step in program.steps:
        if step.op is _aten.relu.default or (step.op is _aten.add.Tensor and step.argument("alpha") == 1):
            operands = [part.step for part in step.args if isinstance(part, Ref)]
            chosen = [operand for operand in operands if free(operand)]
            if chosen and len(set(operands)) == len(operands):
                found[step.index] = chosen[0]
    return found


def run_in_place(step: Step, values: Sequence[Any], target: Tensor) -> Any:
    """The step's result in the memory of one of its operands, with the bits of its own; elsewhere where it cannot."""
    operands = [values[part.step] if isinstance(part, Ref) else part for part in step.args]
    if not all(_same(part, target) for part in operands):
        return step.run(values)
    if step.op is _aten.relu.default:
        return torch.relu_(target)
    return torch.add(operands[0], operands[1], out=target)


def _fresh(program: Program, step: int) -> bool:
    """Whether a step's value has memory of its own."""
    found = program.steps[step]
    if found.op is operator.getitem:
        whole = found.reads[0]
        return program.steps[whole].op is _NORM and found.args[1] == 0 and len(program.readers[whole]) == 1
    return found.op in _FRESH


def _same(part: Any, target: Tensor) -> bool:
    """Whether a value is a tensor laid out like the target."""
    return (
        isinstance(part, Tensor)
        and part.shape == target.shape
        and part.dtype == target.dtype
        and part.stride() == target.stride()
    )
