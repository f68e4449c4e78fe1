"""Operators that cannot leave the range of what they read, and the bound that they take over."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce

import torch
from torch.utils import _pytree as pytree

from hoplon.program.operators import canonical_kind, has, is_passive, operator_name
from hoplon.program.program import Ref, Step
from hoplon.protections.ranges.bound import Bound, ChannelBounds

AnyBound = Bound | ChannelBounds

_POOLING = frozenset({"max_pool", "adaptive_max_pool", "avg_pool", "adaptive_avg_pool"})
# Arguments that say where, how often or in which dtype, none of whose values are in the output.
_SAYING = {
    **dict.fromkeys(("index_select", "gather"), "index"),
    **dict.fromkeys(("index", "take_along_dim"), "indices"),
    "where": "condition",
    "masked_fill": "mask",
    "repeat_interleave": "repeats",
    "type_as": "other",
}
# A rounded mean of values that all lie at the bound may exceed it by a few units in the last place.
_ROUNDING = 2.0**-16
_COPIES = frozenset({"clone", "contiguous", "detach", "dropout", "alias"})
# Views and copies whose values are not those that they read.
_REMAKING = frozenset({"fill", "zero", "_neg_view"})
_MADE_OF = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
_FULL = frozenset({"full", "full_like", "new_full"})


def hull(bound: AnyBound | None) -> Bound | None:
    """One bound for all channels."""
    return bound.hull if isinstance(bound, ChannelBounds) else bound


def value_reads(step: Step) -> tuple[int, ...]:
    """The steps that a step reads for their values, not for an index, a mask or a dtype."""
    name = _SAYING.get(canonical_kind(step.op))
    if name is None:
        return step.reads
    said = _refs(step.argument(name))
    arguments = (*step.args, *step.kwargs.values())
    others = _refs([value for value in arguments if value is not step.argument(name)])
    return tuple(read for read in step.reads if read not in said or read in others)


def _refs(arguments: object) -> frozenset[int]:
    return frozenset(leaf.step for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Ref))


def filled_with(step: Step) -> float | None:
    """The number that a step fills a new tensor with, None if it does something else."""
    name = operator_name(step.op)
    if name in _FULL:
        value = step.argument("fill_value")
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    return _MADE_OF.get(name)


def taken_over(step: Step, reads: Sequence[Step], sources: Sequence[AnyBound | None]) -> AnyBound | str:
    """The bound that a step takes over from the values it reads, or why it takes none.

    Bounds per channel survive pooling; elsewhere their hull goes on. A reason may have the field ``{unbounded}``.
    """
    kind = canonical_kind(step.op)
    if (number := filled_with(step)) is not None:
        return Bound(number, number)
    if kind == "attention":
        return 'attention has its softmax inside, out of reach; capture with decompose=["attention"]'
    if not _keeps_bounds(step, reads):
        return f"{kind} is not known to keep the range of what it reads"
    bounds = [source for source in sources if source is not None]
    if not bounds or len(bounds) < len(sources):
        return f"{kind} reads {{unbounded}}, which is not bounded"
    only = bounds[0]
    if len(bounds) == 1 and isinstance(only, ChannelBounds) and _keeps_channels(step, kind, only):
        bound: AnyBound = only
    else:
        bound = reduce(Bound.hull, (one.hull if isinstance(one, ChannelBounds) else one for one in bounds))
    for padding in _constants(step, kind):
        if not math.isfinite(padding):
            return f"{kind} pads with {padding}"
        constant = Bound(padding, padding)
        bound = bound.hull_with(constant) if isinstance(bound, ChannelBounds) else bound.hull(constant)
    return bound.widened(_ROUNDING) if has(step.op, "averages") else bound


def _keeps_bounds(step: Step, reads: Sequence[Step]) -> bool:
    if step.op is operator.getitem:  # only the first output of a max pool holds values, all of a split do
        return step.args[1] == 0 or not has(reads[0].op, "selects")
    if operator_name(step.op) in ("_to_copy", "to"):  # rounding to another format is monotone, so is that of the bound
        dtype = step.argument("dtype")
        known = dtype is None or isinstance(dtype, torch.dtype)
        return known and step.argument("other") is None and (dtype is None or bool(dtype.is_floating_point))
    if step.argument("dtype") is not None or step.argument("divisor_override") is not None:
        return False
    if is_passive(step.op):
        return operator_name(step.op) not in _REMAKING
    return has(step.op, "selects") or has(step.op, "averages")


def _keeps_channels(step: Step, kind: str, bound: ChannelBounds) -> bool:
    """Return True if each channel of the output is made of the same channel of the input."""
    if kind in _POOLING:  # over the last two axes or three: channels first are not pooled
        return bound.axis == 0 and operator_name(step.op).removesuffix("_with_indices").endswith(("2d", "3d"))
    return step.op is operator.getitem or operator_name(step.op) in _COPIES


def _constants(step: Step, kind: str) -> list[float]:
    """The numbers that enter beside the values read."""
    if kind == "pad" and step.argument("mode") in (None, "constant"):
        return [float(step.argument("value") or 0.0)]
    if kind == "avg_pool" and step.argument("count_include_pad"):
        padding = step.argument("padding")
        return [0.0] if any(padding if isinstance(padding, (list, tuple)) else [padding]) else []
    names = {"where": ("self", "other"), "masked_fill": ("value",)}.get(kind, ())
    return [float(number) for name in names if isinstance(number := step.argument(name), int | float)]
