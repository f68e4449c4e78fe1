"""Which operators cannot leave the range of what they read, and what bound they take over."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce

from hoplon.program import Step
from hoplon.ranges import Bound, ChannelBounds
from hoplon.sites import canonical_kind, is_passive, operator_name

AnyBound = Bound | ChannelBounds

# Operators whose every output value lies between the smallest and the largest value that they read.
_POOLING = frozenset({"max_pool", "adaptive_max_pool"})
_SELECTING = _POOLING | {
    *("amax", "amin", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "flip", "roll", "repeat", "cat", "stack"),
    *("pad", "index_select", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *(f"{way}_pad{n}d" for way in ("reflection", "replication") for n in (1, 2, 3)),
}
_AVERAGE_POOLING = frozenset({"avg_pool", "adaptive_avg_pool"})
_AVERAGING = _AVERAGE_POOLING | {"mean", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"}
# A rounded mean of values that all lie at the bound may exceed it by a few units in the last place.
_ROUNDING = 2.0**-16
_COPIES = frozenset({"clone", "contiguous", "detach", "dropout", "alias"})
# Views and copies whose values are not those that they read.
_REMAKING = frozenset({"fill", "zero", "to", "_neg_view"})


def hull(bound: AnyBound | None) -> Bound | None:
    """One bound for all channels."""
    return bound.hull if isinstance(bound, ChannelBounds) else bound


def taken_over(step: Step, reads: Sequence[Step], sources: Sequence[AnyBound | None]) -> AnyBound | str:
    """The bound that a step takes over from the values it reads, or why it takes none.

    Bounds per channel survive pooling; elsewhere their hull goes on. A reason may have the field ``{unbounded}``.
    """
    kind = canonical_kind(step.op)
    if not _keeps_bounds(step, kind, reads):
        return f"{kind} can leave the range of what it reads"
    bounds = [source for source in sources if source is not None]
    if not bounds or len(bounds) < len(sources):
        return f"{kind} reads {{unbounded}}, which is not bounded"
    only = bounds[0]
    if len(bounds) == 1 and isinstance(only, ChannelBounds) and _keeps_channels(step, kind, only):
        bound: AnyBound = only
    else:
        bound = reduce(Bound.hull, (one.hull if isinstance(one, ChannelBounds) else one for one in bounds))
    padding = _padding(step, kind)
    if padding is not None:
        if not math.isfinite(padding):
            return f"{kind} pads with {padding}"
        constant = Bound(padding, padding)
        bound = bound.hull_with(constant) if isinstance(bound, ChannelBounds) else bound.hull(constant)
    return bound.widened(_ROUNDING) if kind in _AVERAGING else bound


def _keeps_bounds(step: Step, kind: str, reads: Sequence[Step]) -> bool:
    if step.op is operator.getitem:  # only the first output of a max pool holds values, all of a split do
        return step.args[1] == 0 or canonical_kind(reads[0].op) not in _SELECTING
    if operator_name(step.op) == "_to_copy":  # rounding to another format is monotone, and so is rounding the bound
        dtype = step.argument("dtype")
        return dtype is None or bool(dtype.is_floating_point)
    if step.argument("dtype") is not None or step.argument("divisor_override") is not None:
        return False
    if is_passive(step.op):
        return operator_name(step.op) not in _REMAKING
    return kind in _SELECTING or kind in _AVERAGING


def _keeps_channels(step: Step, kind: str, bound: ChannelBounds) -> bool:
    """Whether each channel of the output is made of the same channel of the input."""
    if kind in _POOLING | _AVERAGE_POOLING:  # over the last two axes or three: channels first are not pooled
        return bound.axis == 0 and operator_name(step.op).removesuffix("_with_indices").endswith(("2d", "3d"))
    return step.op is operator.getitem or operator_name(step.op) in _COPIES


def _padding(step: Step, kind: str) -> float | None:
    """The constant that enters beside the values read, if any."""
    if kind == "pad" and step.argument("mode") in (None, "constant"):
        return float(step.argument("value") or 0.0)
    if kind == "avg_pool" and step.argument("count_include_pad"):
        padding = step.argument("padding")
        return 0.0 if any(padding if isinstance(padding, (list, tuple)) else [padding]) else None
    return None
