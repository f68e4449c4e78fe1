"""Packed kernels: convolutions with weights in oneDNN's own layout, channels last, for golden and faulty runs alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hoplon.criteria.outcome import Outcome
from hoplon.errors import HoplonError
from hoplon.injection.golden_run import GoldenRun
from hoplon.program.eager import EagerProgram
from hoplon.program.program import Program, Ref, Step

Kernels = Literal["exact", "packed"]
"""What computes a campaign: the model's own operators, bit for bit, or packed ones, which round otherwise."""

TOLERANCE = 1e-4
"""The most by which packed kernels may change an output, relative to the largest of its samples."""

_aten: Any = torch.ops.aten
# Operators on maps whose last bits can depend on how these lie in memory.
_BY_SHAPE = (_aten._native_batch_norm_legit_no_training.default, _aten.avg_pool2d.default)


class PackedConvolution:
    """A two-dimensional convolution that turns its weight into the layout of oneDNN's kernel once, not in every call.

    Called as ``torch.conv2d``; the result has its channels last in memory. The packed weight stays as long as the same
    tensor is given; it must not change meanwhile. Where gradients are recorded, which packed weights have none of, it
    is ``torch.conv2d``. Pickled without the packed weight.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._packed: Any = None

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """Convolve ``(batch, channels, height, width)``."""
        if torch.is_grad_enabled() or x.dim() != 4:
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
        pixels, ops = x.contiguous(memory_format=torch.channels_last), torch.ops.mkldnn
        place = (_pair(padding), _pair(stride), _pair(dilation), groups)
        if self._weight is not weight:
            self._weight, shape = weight, list(x.shape)
            self._packed = ops._reorder_convolution_weight(weight.detach(), *place, shape)
        return ops._convolution_pointwise(pixels, self._packed, bias, *place, "none", [], "")  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return "packed conv2d"

    def __reduce__(self) -> tuple[type[PackedConvolution], tuple[()]]:
        return PackedConvolution, ()


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class ChannelsLast:
    """An operator on feature maps that gets them with channels last, so that one kernel computes all of its calls."""

    op: Callable[..., Any]

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the operator."""
        return self.op(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, *args, **kwargs)


def packed(program: Program) -> Program:
    """Return the program with packed convolutions; weights are packed when they are used first.

    Raises:
        HoplonError: nothing in it can be packed: no graph, not on a CPU, no two-dimensional convolution in float32.
    """
    known = () if isinstance(program, EagerProgram) or not torch.backends.mkldnn.is_available() else program.steps
    steps = tuple(replace(step, kernel=_kernel(program, step)) for step in known)
    if not any(isinstance(step.kernel, PackedConvolution) for step in steps):
        raise HoplonError(
            "expected, for packed kernels, a model with a graph and two-dimensional float32 convolutions on a CPU with "
            f"oneDNN, got {program.name}; use kernels='exact'"
        )
    return replace(program, steps=steps)


def _kernel(program: Program, step: Step) -> Callable[..., Any] | None:
    """Return what takes the place of a step's operator, None for the operator itself."""
    if step.op is _aten.conv2d.default:
        weight = step.args[1]
        name = program.memory_steps.get(weight.step) if isinstance(weight, Ref) else None
        tensor = None if name is None else program.tensors[name]
        fits = tensor is not None and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        return PackedConvolution() if fits else None
    if step.op is not None and step.op in _BY_SHAPE:
        return ChannelsLast(step.op)
    return _aten.reshape.default if step.op is _aten.view.default else None


def proof(program: Program, reference: GoldenRun) -> dict[str, Any]:
    """Compare the golden run with packed kernels with the program itself, on its first batch of eligible inputs.

    Args:
        program: with its own operators.
        reference: with packed kernels.
    Returns:
        For a manifest: ``samples``; ``difference``, the largest of an output, relative to the largest of its samples;
        ``tolerance``, which it is within.
    Raises:
        HoplonError: the difference is larger, or the criterion sees harm in it.
    """
    leaves, count = reference.leaves(0)
    samples = slice(count)
    with torch.inference_mode():
        plain = program.samples_first(program.run(leaves))
    outputs = zip(reference.criterion.judged_rows(plain, samples), reference.golden, strict=True)
    pairs = [(own, golden[samples]) for own, golden in outputs if isinstance(golden, Tensor)]
    difference = max((_difference(own.double(), golden.double()) for own, golden in pairs), default=math.inf)
    found, _ = reference.judge(samples, samples, golden=reference.golden, faulty=plain)
    masked = (found == Outcome.IDENTICAL) | (found == Outcome.BENIGN)
    if difference > TOLERANCE or not masked.all():
        harmed = int((~masked.all(1)).sum())
        raise HoplonError(
            f"expected outputs of {program.name} within {TOLERANCE:g} with packed kernels, got {difference:.1e} and "
            f"{harmed} of {count} samples in which the criterion sees harm; use kernels='exact'"
        )
    return {"form": "packed", "samples": count, "difference": difference, "tolerance": TOLERANCE}


def _difference(own: Tensor, golden: Tensor) -> float:
    return float((own - golden).abs().max() / own.abs().max().clamp(min=torch.finfo(own.dtype).tiny))
