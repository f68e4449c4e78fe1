"""The ends of functions: what their values cannot leave, whatever goes in."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable

from hoplon.errors import checked
from hoplon.program.operators import canonical_kind, operator_name
from hoplon.program.program import Program, Ref, Step

ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "neg"})
COPIES = frozenset({"clone", "contiguous", "detach", "dropout", "alias", "to", "_to_copy"})
_INF = math.inf
# Minima of the smooth functions, moved outwards so that no rounding of any kernel crosses them.
_RANGES = {
    "relu": (0.0, _INF),
    "gelu": (-0.1701, _INF),  # -0.16997 near -0.7518 (tanh form: -0.17004)
    "silu": (-0.27848, _INF),  # -0.278465 near -1.2785
    "mish": (-0.3089, _INF),  # -0.308842 near -1.1924
    "hardswish": (-0.375, _INF),  # at -1.5
    "softplus": (0.0, _INF),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "log_softmax": (-_INF, 0.0),
    "log_sigmoid": (-_INF, 0.0),
    "tanh": (-1.0, 1.0),
    "atan": (-1.5708, 1.5708),
}
_ROUNDING = 2.0**-16
_SELU_LOW = -1.0507009873554805 * 1.6732632423543772


@checked
def inherent_range(step: Step) -> tuple[float, float]:
    """The ends of the range of an activation function; an end is infinite where it has none.

    Args:
        step: a call of the operator; the arguments of the call (``alpha``, ``min_val``) count.
    Returns:
        Low and high; both infinite for operators that are no such function.
    """
    kind = canonical_kind(step.op)
    if kind == "hardtanh":
        if operator_name(step.op) == "relu6":
            return 0.0, 6.0
        return float(step.argument("min_val")), float(step.argument("max_val"))
    if kind == "elu":
        low = _SELU_LOW if operator_name(step.op) == "selu" else -float(step.argument("alpha"))
        low *= float(step.argument("scale") or 1.0)
        return low - abs(low) * _ROUNDING, _INF
    if kind in ("clamp", "clamp_min", "clamp_max"):
        low, high = step.argument("min"), step.argument("max")
        return (float(low) if _is_number(low) else -_INF), (float(high) if _is_number(high) else _INF)
    return _RANGES.get(kind, (-_INF, _INF))


def written_range(program: Program, number: int) -> tuple[float, float]:
    """The ends of the range of a step that is a function, or arithmetic with numbers on one.

    So ``relu6(x + 3) / 6`` and ``1 / (1 + exp(-x))`` have the ends 0 and 1. An end is infinite where none is known.
    """
    step = program.steps[number]
    kind = "" if step.op is None else canonical_kind(step.op)
    if kind == "exp":
        return 0.0, _INF
    combine = _copied if kind in COPIES else _COMBINED.get(kind)
    if combine is None or (step.kwargs and kind not in COPIES):
        return inherent_range(step) if kind else (-_INF, _INF)
    arguments = step.args[:1] if kind in COPIES else step.args[:2]
    ranges = [written_range(program, a.step) if isinstance(a, Ref) else (a, a) for a in arguments]
    divisor = ranges[-1] if kind in ("div", "reciprocal") else (1.0, 1.0)
    if not all(isinstance(end, int | float) for ends in ranges for end in ends) or divisor[0] <= 0 <= divisor[1]:
        return -_INF, _INF
    ends = [combine(*chosen) for chosen in itertools.product(*ranges)]
    return (-_INF, _INF) if any(map(math.isnan, ends)) else (min(ends), max(ends))


def _copied(value: float) -> float:
    return value


_COMBINED: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "rsub": lambda one, other: other - one,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "reciprocal": lambda value: 1 / value,
}


def _is_number(end: object) -> bool:
    """An end of a clamp may be a tensor, or left out."""
    return isinstance(end, int | float) and math.isfinite(end)
