"""Floating-point operations of a program and of what protects it, counted under a convention that is named."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hoplon.errors import Batch, HoplonError, checked
from hoplon.program.operators import ACTIVATION_KINDS, canonical_kind, is_passive, operator_name
from hoplon.program.program import Program, Ref, Step
from hoplon.program.signature import TensorForm
from hoplon.protections.base import Chain, Protection, ValueProtection, overlay
from hoplon.protections.runtime.lowering import Form
from hoplon.protections.values.clamp import BoundValue

Convention = Literal["tensorflow", "fused"]

CONVENTIONS: Mapping[Convention, str] = {
    "tensorflow": (
        "TensorFlow 1.x profiler: 2 per multiply-accumulate, 1 per element of a bias or of plain arithmetic, k^2 per "
        "output of a pooling, 5 per element of a softmax, 2 per element of batch norm (its multiplication and "
        "addition), 0 for ReLU and other activations; a bound is one minimum and one maximum, 2 per element; "
        "an operator that runs twice counts once more, and 1 comparison per element"
    ),
    "fused": (
        "fused, what runs: 2 per multiply-accumulate, a bias starts the sum and costs 0, 1 per element of any "
        "elementwise operator (ReLU: 1 comparison; clamp, ReLU6: 2), 2 per element of batch norm, k^2 per output of "
        "average pooling, k^2 - 1 comparisons of max pooling, 5 per element of a softmax; a bound is what its "
        "operators come to: 2 comparisons per element where it begins at 0 or above (only 1 more than the ReLU that it "
        "is fused with), 5 where it tests for NaN and infinities first; an operator that runs "
        "twice counts once more, and 1 comparison per element"
    ),
}
"""What each convention counts."""


@final
@dataclass(frozen=True)
class OperatorFlops:
    """One operator call: its site or label, its kind, what it computes, and what its protection adds."""

    name: str
    kind: str
    flops: int
    protection: int = 0


@final
@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward pass.

    ``operators`` are all calls in execution order; ``uncounted`` names those that the convention has no rule for, so
    that ``total`` leaves them out: it is then a lower bound, and says so when printed.
    """

    model: str
    convention: Convention
    batch: int
    operators: tuple[OperatorFlops, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Of the model without protection."""
        return sum(entry.flops for entry in self.operators)

    @property
    def protection(self) -> int:
        """What the protections add."""
        return sum(entry.protection for entry in self.operators)

    @property
    def overhead(self) -> float:
        """What the protections add, over the model without protection; nan for a model without operations."""
        return self.protection / self.total if self.total else math.nan

    def __str__(self) -> str:
        added = f" + {self.protection:,} ({self.overhead:.3%}) for protection" if self.protection else ""
        missing = f"; at least, since {', '.join(self.uncounted)} cannot be counted" if self.uncounted else ""
        return (
            f"{self.model}, batch of {self.batch}: {self.total:,} FLOPs{added}{missing} "
            f"({CONVENTIONS[self.convention]})"
        )


@checked
def count_flops(
    program: Program,
    protections: Iterable[Protection] = (),
    *,
    batch: Batch = 1,
    convention: Convention = "tensorflow",
    form: Form = "separate",
    bound_reshapes: bool = False,
) -> Flops:
    """The floating-point operations of one forward pass, with those that the protections of values add.

    Nothing is computed: shapes alone go through the program's steps, so a large batch costs no more than a small one.
    Guards of memory compare words; they are no floating-point operations and are not counted.

    Args:
        protections: of value sites; resolved as :func:`hoplon.harden` does.
        batch: samples in the pass.
        convention: what counts as an operation; :data:`CONVENTIONS` says it in words.
        form: of the bounds, as in :func:`hoplon.harden`; matters in the fused convention alone.
        bound_reshapes: count a bound after each reshape of a bounded value as well. Ranger's published graph
            rewriting puts one there; hoplon does not, since the values are bounded already.
    Raises:
        HoplonError: an unknown convention or form, a program in the eager form, or a batch that it cannot take.
    Source:
        Chen et al., DSN 2021 (Ranger), Table III, measured with the profiler of TensorFlow 1.14, whose rules are in
        ``tensorflow/python/profiler/internal/flops_registry.py``. The profiler drops in silence an operator whose
        shape it does not know; here all shapes are known, and an operator without a rule is named.
    """
    if not program.has_graph:
        raise HoplonError(
            f"expected an exported program to count, got {program.name} in the eager form, whose operators depend on "
            "the input; count the part that can be exported"
        )
    effects = overlay(program, protections).values
    sites = {_home(program.steps[step]): name for name, step in program.site_steps.items()}
    operators: list[OperatorFlops] = []
    uncounted: dict[str, None] = {}
    bounded: dict[int, ValueProtection] = {}  # by step, views included
    for step, args, result in _shapes(program, batch):
        kind = canonical_kind(step.op)
        flops = _operator(step, kind, args, result, convention)
        if flops is None:
            uncounted[kind] = None
        name, extra = sites.get(step.index, step.label), 0
        if name in effects:
            bounded[step.index] = effects[name]
            fused = form == "fused" and kind == "relu"
            extra = _bound(effects[name], convention, result, fused=fused)
            extra += (flops or 0) + _elements(result) if effects[name].repeats else 0  # once more, and compared
        elif is_passive(step.op) and step.reads and step.reads[0] in bounded:
            bounded[step.index] = bounded[step.reads[0]]
            if bound_reshapes and operator_name(step.op) in _RESHAPES:
                extra = _bound(bounded[step.index], convention, result, fused=False)
        if flops or extra or step.index in sites:
            operators.append(OperatorFlops(name, kind, flops or 0, extra))
    return Flops(program.name, convention, batch, tuple(operators), tuple(uncounted))


@checked
def flops_by_step(program: Program, *, batch: Batch = 1, convention: Convention = "fused") -> dict[int, int]:
    """By step, the floating-point operations of its operator; 0 where the convention has no rule.

    Args:
        batch, convention: as in `count_flops`.
    Raises:
        HoplonError: as `count_flops`.
    """
    shapes = _shapes(program, batch)
    return {
        step.index: _operator(step, canonical_kind(step.op), args, result, convention) or 0
        for step, args, result in shapes
    }


def _home(step: Step) -> int:
    """The step of the operator that a site stands for: the first output of several is its operator's own."""
    return step.reads[0] if step.op is operator.getitem and step.args[1] == 0 else step.index


def _shapes(program: Program, batch: int) -> Iterator[tuple[Step, tuple[Any, ...], Any]]:
    """Each operator with its arguments and result, as tensors that have a shape and no values."""
    fixed = program.signature.fixed_batch
    if batch < 1 or (fixed is not None and batch != fixed):
        raise HoplonError(f"expected a batch of {fixed or 'at least 1'}, got {batch}")
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = [_leaf(form, batch) if isinstance(form, TensorForm) else form for form in program.signature.leaves]
        memory = {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in program.memory().items()}
        leaves = [leaf.to(program.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        values = program.initial_values(leaves, memory)
        for step in program.compute_steps():
            values[step.index] = step.run(values)
            args = pytree.tree_map(lambda leaf: values[leaf.step] if isinstance(leaf, Ref) else leaf, step.args)
            yield step, args, values[step.index]


def _leaf(form: TensorForm, batch: int) -> Tensor:
    shape = [batch if axis == form.axis else size for axis, size in enumerate(form.shape)]
    return torch.empty(shape, dtype=form.dtype)


def _elements(result: Any) -> int:
    """Elements of an operator's first output."""
    first = _first(result)
    return first.numel() if isinstance(first, Tensor) else 0


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _bound(effect: ValueProtection, convention: Convention, result: Any, *, fused: bool) -> int:
    """Operations of a protection of an operator's first output."""
    if isinstance(effect, Chain):
        return sum(_bound(link, convention, result, fused=False) for link in effect.links)
    if effect.repeats:
        return 0
    if convention == "tensorflow":
        return 2 * _elements(result)
    if fused and isinstance(effect, BoundValue) and effect.low == 0:
        return _elements(result)
    value = _first(result)
    with _Elementwise(value.numel()) as seen:
        (effect.outside if effect.detects else effect)(value)
    return int(seen.flops)


class _Elementwise(TorchDispatchMode):
    """Counts operations of elementwise operators over whole values, as the fused convention does."""

    def __init__(self, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._elements = elements
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = canonical_kind(func)
        computes = torch.Tag.pointwise in func.tags and kind not in _MOVING and not is_passive(func)
        if computes and _elements(result) >= self._elements:
            self.flops += _FUSED.get(kind, 1) * _elements(result)
        return result


_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "_unsafe_view"})
# What moves, picks or makes values and computes none.
_MOVING = frozenset(
    {
        *("cat", "stack", "pad", "embedding", "index", "index_select", "gather", "where", "masked_fill", "repeat"),
        *("arange", "full", "full_like", "zeros", "ones", "zeros_like", "ones_like", "empty", "scalar_tensor"),
        *("flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "constant_pad_nd", "tril", "triu"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "index_put"),
        *(f"{way}_pad{n}d" for way in ("reflection", "replication") for n in (1, 2, 3)),
    }
)
# What TensorFlow's profiler has a rule for among elementwise operators, and its operations per element.
_TENSORFLOW = {
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum", "pow", "neg", "reciprocal", "log"), 1),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "rsub"), 1),
    **dict.fromkeys(("rsqrt", "clamp"), 2),
}
# Elementwise operators of more than one operation, where each is counted.
_FUSED = {"clamp": 2, "hardtanh": 2, "nan_to_num": 3}
_MATRIX = frozenset({"conv", "conv_transpose", "linear", "matmul", "baddbmm", "attention"})
_REDUCING = frozenset({"mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "prod"})
_NORMALISING = {"batch_norm": 2, "layer_norm": 7, "group_norm": 7, "instance_norm": 7}


def _operator(step: Step, kind: str, args: tuple[Any, ...], result: Any, convention: Convention) -> int | None:
    """Operations of one call; None where there is no rule."""
    out = _elements(result)
    if not step.carries or kind in _MOVING or is_passive(step.op):
        return 0
    if kind in _MATRIX:
        return _products(step, kind, args, out, convention)
    if kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
        return _pooling(step, kind, args, result, convention)
    if kind in ("softmax", "log_softmax"):
        return 5 * out
    if kind in _NORMALISING:
        return _NORMALISING[kind] * out
    if kind in _REDUCING and isinstance(args[0], Tensor):
        return args[0].numel() - (0 if kind == "mean" else out)
    if kind in ACTIVATION_KINDS or torch.Tag.pointwise in getattr(step.op, "tags", ()):
        return (_FUSED.get(kind, 1) if convention == "fused" else _TENSORFLOW.get(kind, 0)) * out
    return None


def _products(step: Step, kind: str, args: tuple[Any, ...], out: int, convention: Convention) -> int:
    """Convolutions and matrix products: 2 per multiply-accumulate, and the bias where it counts."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if kind == "attention":  # torch has no count of its kernel for the CPU
        query, key, value = tensors[:3]
        scores = query.numel() // query.shape[-1] * key.shape[-2]
        return 2 * scores * (key.shape[-1] + value.shape[-1]) + 6 * scores  # scaling and softmax
    assert step.op is not None, f"{step.label} computes nothing"
    with FlopCounterMode(display=False) as counter:
        step.op(*args)
    biased = len(tensors) > 2 and convention == "tensorflow"
    return int(counter.get_total_flops()) + (out if biased else 0)


def _pooling(step: Step, kind: str, args: tuple[Any, ...], result: Any, convention: Convention) -> int:
    """What the windows of all outputs read, adaptive ones of unequal size included."""
    output: Tensor = _first(result)
    axes = next(int(letter) for letter in operator_name(step.op) if letter.isdigit())
    if kind.startswith("adaptive"):
        sizes = zip(args[0].shape[-axes:], output.shape[-axes:], strict=True)
        windows: list[int] = [sum(-(-(i + 1) * size // n) - i * size // n for i in range(n)) for size, n in sizes]
        read = math.prod(output.shape[:-axes]) * math.prod(windows)
    else:
        kernel = list(args[1]) if isinstance(args[1], (list, tuple)) else [args[1]]
        read = output.numel() * math.prod(kernel * axes if len(kernel) == 1 else kernel)
    return read - (output.numel() if convention == "fused" and "max" in kind else 0)
