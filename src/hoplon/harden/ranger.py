"""Ranger: every activation bounded to the range it has without faults."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, final

from hoplon.errors import HoplonError
from hoplon.harden.bound import BoundValue
from hoplon.overlay import Protection
from hoplon.program import Program, Step
from hoplon.ranges import ACTIVATION_KINDS, Bound, Ranges
from hoplon.sites import canonical_kind, is_passive, operator_name

# Operators whose every output value lies between the smallest and the largest value that they read.
_SELECTING = frozenset(
    {
        *("max_pool", "adaptive_max_pool", "amax", "amin"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "flip", "roll", "repeat", "cat", "stack", "pad"),
        *(f"{way}_pad{n}d" for way in ("reflection", "replication") for n in (1, 2, 3)),
    }
)
_AVERAGING = frozenset({"avg_pool", "adaptive_avg_pool", "mean"})
# A rounded mean of values that all lie at the bound may exceed it by a few units in the last place.
_ROUNDING = 2.0**-16
# Views and copies whose values are not those that they read.
_REMAKING = frozenset({"fill", "zero", "to", "_neg_view"})


@final
@dataclass(frozen=True)
class Coverage:
    """Whether a value site is bounded, to what, and why or why not."""

    site: str
    bound: Bound | None
    why: str


@final
@dataclass(frozen=True)
class Ranger(Protection):
    """Bounds every profiled activation, and the operators after it that cannot leave its bound.

    The bound travels along the data flow: through views and copies (which are no sites, and are not bounded again),
    max, average and adaptive pooling, means, rearrangements, constant padding (hull with the constant) and
    concatenation (hull over its actual inputs, all of which have to be bounded). It ends at everything else:
    convolution, normalisation, residual addition. A profiled site takes its own range; ``relu`` has the lower bound 0,
    that of the function.

    Args:
        ranges: of this model, from :func:`hoplon.profile_ranges`.
    Source:
        Chen et al., DSN 2021 (Ranger), Algorithm 1. There the operator *listed* next is the one that follows, and a
        concatenation takes the last two bounds; the data flow gives the same for the paper's networks, and the right
        thing for others. Departure: averages get a relative slack of 2^-16, since a rounded mean of values at the bound
        may exceed it.
    """

    ranges: Ranges

    @property
    def label(self) -> str:
        """What reports call it."""
        return "ranger"

    @property
    def made_for(self) -> str | None:
        """The model that was profiled."""
        return self.ranges.fingerprint

    def values(self, program: Program) -> Mapping[str, BoundValue]:
        """The bounds by site name, in execution order.

        Raises:
            HoplonError: ranges of another model: a profiled site that the program lacks.
        """
        bounds = {entry.site: entry.bound for entry in self.coverage(program)}
        return {site: BoundValue(bound.low, bound.high) for site, bound in bounds.items() if bound is not None}

    def coverage(self, program: Program) -> tuple[Coverage, ...]:
        """Every value site in execution order: bounded or not, and why.

        Raises:
            HoplonError: ranges of another model: a profiled site that the program lacks.
        """
        outputs = {site.name for site in program.value_sites}
        foreign = [name for name in self.ranges.bounds if name not in outputs]
        if foreign:
            raise HoplonError(
                f"expected ranges of operator outputs of {program.name}, got site {foreign[0]!r} profiled on "
                f"{self.ranges.program or 'another model'}; profile this model"
            )
        return tuple(self._walk(program))

    def _walk(self, program: Program) -> Iterator[Coverage]:
        sites = {program.site_steps[site.name]: site for site in program.value_sites}
        known: dict[int, Coverage] = {}  # by step; a view goes by the name of what it views
        for step in program.compute_steps():
            site = sites.get(step.index)
            if site is None or (site.name not in self.ranges and site.kind not in ACTIVATION_KINDS):
                known[step.index] = _follow(program, step, site.name if site else None, known)
            elif site.name in self.ranges:
                known[step.index] = Coverage(site.name, _own(self.ranges[site.name], site.kind), "profiled")
            else:
                known[step.index] = Coverage(site.name, None, f"{site.kind} was not profiled")
            if site is not None:
                yield known[step.index]


def _own(bound: Bound, kind: str) -> Bound:
    return Bound(0.0, max(bound.high, 0.0)) if kind == "relu" else bound


def _follow(program: Program, step: Step, site: str | None, known: Mapping[int, Coverage]) -> Coverage:
    """What a step takes over from the values it reads."""
    kind = canonical_kind(step.op)
    reads = [program.steps[read] for read in step.reads if program.steps[read].carries]
    sources = [known.get(read.index, Coverage(read.label, None, "")) for read in reads]
    viewed = len(sources) == 1 and (is_passive(step.op) or site is None)
    name = site or (sources[0].site if viewed else step.label)
    if step.op is operator.getitem and sources[0].bound is None:
        return Coverage(name, None, sources[0].why)  # one output of an operator that explained itself
    if not _keeps_bounds(step, kind, reads):
        return Coverage(name, None, f"{kind} can leave the range of what it reads")
    unbounded = [source.site for source in sources if source.bound is None]
    if unbounded or not sources:
        return Coverage(name, None, f"{kind} reads {', '.join(unbounded) or 'nothing'}, which is not bounded")
    bound = reduce(Bound.hull, (source.bound for source in sources if source.bound is not None))
    padding = _padding(step, kind)
    if padding is not None and not math.isfinite(padding):
        return Coverage(name, None, f"{kind} pads with {padding}")
    if padding is not None:
        bound = bound.hull(Bound(padding, padding))
    if kind in _AVERAGING:
        bound = Bound(bound.low - abs(bound.low) * _ROUNDING, bound.high + abs(bound.high) * _ROUNDING)
    return Coverage(name, bound, f"follows {', '.join(dict.fromkeys(source.site for source in sources))}")


def _keeps_bounds(step: Step, kind: str, reads: list[Step]) -> bool:
    if step.op is operator.getitem:  # only the first output of a max pool holds values, all of a split do
        return step.args[1] == 0 or canonical_kind(reads[0].op) not in _SELECTING
    if _argument(step, "dtype") is not None or _argument(step, "divisor_override") is not None:
        return False
    if is_passive(step.op):
        return operator_name(step.op) not in _REMAKING
    return kind in _SELECTING or kind in _AVERAGING


def _padding(step: Step, kind: str) -> float | None:
    """The constant that enters beside the values read, if any."""
    if kind == "pad" and _argument(step, "mode") in (None, "constant"):
        return float(_argument(step, "value") or 0.0)
    if kind == "avg_pool" and _argument(step, "count_include_pad"):
        padding = _argument(step, "padding")
        return 0.0 if any(padding if isinstance(padding, (list, tuple)) else [padding]) else None
    return None


def _argument(step: Step, name: str) -> Any:
    """An operator's argument by name, its default if it was not given, None if there is no such argument."""
    schema = getattr(step.op, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name == name:
            given = step.args[position] if position < len(step.args) else step.kwargs.get(name)
            return argument.default_value if given is None else given
    return None
