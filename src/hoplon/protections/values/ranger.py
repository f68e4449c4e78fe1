"""Ranger: every activation bounded to the range it has without faults."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch

from hoplon.errors import HoplonError, checked
from hoplon.formats.digest import LATER
from hoplon.program.operators import canonical_kind, operator_name
from hoplon.program.program import Program, Step
from hoplon.program.sites import ValueSite
from hoplon.protections.base import Protection, ValueProtection
from hoplon.protections.ranges.activation_sites import activations
from hoplon.protections.ranges.bound import Bound, ChannelBounds
from hoplon.protections.ranges.channels import axis_in_value
from hoplon.protections.ranges.function_ends import COPIES, inherent_range
from hoplon.protections.ranges.inherent import INHERENT
from hoplon.protections.ranges.ranges import LAST_BITS, Ranges
from hoplon.protections.ranges.saturation import Saturating, saturating_inputs
from hoplon.protections.values.dataflow import AnyBound, filled_with, hull, taken_over, value_reads
from hoplon.protections.values.policy import Clamp, Policy
from hoplon.registry import register

Where = Literal["activations", "algorithm1-literal", "algorithm1", "all"]
Unprofiled = Literal["refuse", "leave"]
Inherent = Literal["one-sided", "both-ends"]

_LINEAR = frozenset({"linear", "conv", "conv_transpose", "matmul", "addbmm", "baddbmm"})
# What the printed algorithm bounds behind an activation, beside reshapes, which are views here.
_NEXT = frozenset({"max_pool", "adaptive_max_pool", "avg_pool", "adaptive_avg_pool", "cat"})


@final
@dataclass(frozen=True)
class Coverage:
    """Bound of a value site, if it has one, and the reason.

    ``bound`` holds all channels' bounds; ``per_channel`` says whether each has its own.
    """

    site: str
    bound: Bound | None
    why: str
    per_channel: bool = False


@register(
    "protection",
    "ranger",
    sentence="Bounds every activation to the range seen on the calibration data. Meant for wrong values in flight;"
    " it also limits what a corrupted weight can do downstream.",
)
@final
@checked
@dataclass(frozen=True)
class Ranger(Protection):
    """Bounds every activation, and the operators after it that cannot leave its bound.

    An activation takes its range from ``ranges``; where its function has an end on one side only, that end is the
    function's (low: 0 for ``relu``, -1 for ``elu``; high: 0 for ``log_softmax``). From there the bound travels along
    the data flow: through views, slices and copies (which are no sites, and are not bounded again), max, average and
    adaptive pooling, means, rearrangements, selections, interpolation, padding (hull with the constant) and
    concatenation (hull over its actual inputs, all of which have to be bounded). It ends at everything else:
    convolution, normalisation, residual addition, and attention that is one operator, its softmax inside.

    An activation that is written out in several operators is bounded at its value, and nowhere inside
    (:func:`hoplon.ranges.activations`). So is the product of a gate and a value without a bound: a gate that closes on
    a huge value masks it, and a bound of the gate would keep it open.

    Args:
        ranges: of this model, from :func:`hoplon.profile_ranges`, or :func:`inherent_ranges` without any data.
        where: "algorithm1" is the above. "algorithm1-literal" is what the paper prints: beside activations only the
            operator right after one, if it is a maximum or average pool, or a concatenation of activations; a pool or
            a concatenation one step further has no bound. "activations" bounds them alone, the ablation of section
            III-C. "all" also bounds every other operator output that was profiled (profile with ``sites=Values()``).
        last_linear: also bound the last linear layer, which has to be profiled. The paper leaves it out since its
            values are the output themselves, and bounding it does not help; :class:`hoplon.values.Duplicate` does.
        policy: what becomes of a value outside of its bound; :class:`Clamp` by default.
        unprofiled: what to do about an activation that ``ranges`` have no bound for. "refuse" takes the range of its
            function where that is bounded on both sides, and raises where it is not. "leave" leaves it unbounded.
            Ranges of the functions alone (:func:`hoplon.ranges.inherent_ranges`) bound what they can.
        inherent: functions whose own ends stand in the place of what was observed. "one-sided": those that end on one
            side, on that side; a ``tanh`` or ``sigmoid`` keeps to the observed range, which is narrower and can clip a
            fault-free value. "both-ends", as in the paper: those that end on both sides too, which so need no
            calibration data, and no fault-free value exceeds their bound.
        saturating: where activations that end on both sides are bounded. "output", as in the paper: a ``relu6`` hides
            how far its input went, since 6 is inside of its bound. "input": what enters them is bounded as well, to
            the range observed there (profile with ``saturating="input"``).
    Raises:
        HoplonError: an unknown ``where``, ``unprofiled``, ``inherent`` or ``saturating``.
    Source:
        Chen et al., DSN 2021 (Ranger), Algorithm 1. Printed, it bounds an activation and the one operator after it:
        max pool, average pool, reshape or concatenation, which takes the hull of the last two bounds. So a reshape
        behind a max pool (LeNet, AlexNet, VGG) and a max pool behind a concatenation (SqueezeNet) stay unbounded
        there, although the published graphs bound them. "algorithm1" bounds both kinds, by the data flow; a reshape is
        a view here, which no fault strikes by itself. Departures of both: a concatenation takes the hull of what it
        really reads; averages get a relative slack of 2^-16, since a rounded mean of values at the bound may exceed
        it; profiled bounds get the slack of their ranges, or four units in the last place of 16 bits, since kernels
        round otherwise at other batch sizes and numbers of threads.
    """

    ranges: Ranges
    where: Where = "algorithm1"
    last_linear: bool = False
    policy: Policy = field(default_factory=Clamp)
    unprofiled: Unprofiled = "refuse"
    inherent: Inherent = field(default="one-sided", metadata=LATER)
    saturating: Saturating = field(default="output", metadata=LATER)

    @property
    def label(self) -> str:
        """Name in reports: "ranger", and what differs from the paper's."""
        where = "" if self.where == "algorithm1" else f"-{self.where}"
        last = "+last" if self.last_linear else ""
        ends = "" if self.inherent == "one-sided" else f"-{self.inherent}"
        policy = "" if self.policy == Clamp() else f"-{self.policy.label}"
        entering = "" if self.saturating == "output" else f"-{self.saturating}"
        return f"ranger{where}{ends}{entering}{last}{policy}"

    @property
    def made_for(self) -> str | None:
        """The model that was profiled; none for ranges of any weights."""
        return self.ranges.fingerprint or None

    def values(self, program: Program) -> Mapping[str, ValueProtection]:
        """The bounds by site name, in execution order.

        Raises:
            HoplonError: ranges of another model, nothing to bound, or an activation whose bound is unknown.
        """
        if self.policy.takes_medians and not any(bounds.medians for bounds in self.ranges.channels.values()):
            raise HoplonError(
                f"expected medians of channels for the policy {self.policy.label}, got ranges without; profile with "
                "medians=True (hoplon profile --medians)"
            )
        walk = _Walk(self, program)
        effects = {
            name: self.policy.effect(_placed(found.bound, program, name), site=name)
            for name, found in walk.found.items()
            if found.bound is not None
        }
        if not effects:
            reasons = Counter(found.why for found in walk.found.values())
            raise HoplonError(
                f"expected an operator of {program.name} to bound, got none of {len(walk.found)}: "
                f"{', '.join(why for why, _ in reasons.most_common(3))}; profile its activations"
            )
        if walk.unknown and self.unprofiled == "refuse" and self.ranges.choice != INHERENT:
            raise HoplonError(
                f"expected a bound of every activation of {program.name}, got none of {', '.join(walk.unknown[:3])} "
                f"({len(walk.unknown)} in all); profile all of them, or leave them unbounded with unprofiled='leave'"
            )
        if walk.unseen and self.unprofiled == "refuse":
            raise HoplonError(
                f"expected a range of all that enters saturating activations of {program.name}, got none of "
                f"{', '.join(walk.unseen[:3])} ({len(walk.unseen)} in all); profile with saturating='input'"
            )
        return effects

    def coverage(self, program: Program) -> tuple[Coverage, ...]:
        """Every value site in execution order: bounded or not, and why.

        Raises:
            HoplonError: ranges of another model.
        """
        return tuple(
            Coverage(name, hull(found.bound), found.why, per_channel=not isinstance(found.bound, Bound | None))
            for name, found in _Walk(self, program).found.items()
        )


@dataclass(frozen=True)
class _Found:
    """Bound of the values of a step, the name of the site that it is of, and the reason."""

    name: str
    bound: AnyBound | None
    why: str


class _Walk:
    """Algorithm 1 as data flow: one pass over the steps; ``found`` has every value site."""

    def __init__(self, ranger: Ranger, program: Program) -> None:
        ranger.ranges.check(program)
        self._ranger, self._program = ranger, program
        self._known = "known" if ranger.ranges.choice == INHERENT else "profiled"
        self._last = last_linear(program)
        if ranger.last_linear and not any(name in ranger.ranges for name in self._last):
            raise HoplonError(
                f"expected a profiled range of the last linear layer ({', '.join(self._last) or 'there is none'}), "
                "got none; profile it too: sites=Values()"
            )
        self._activations = activations(program)
        self._entering = saturating_inputs(program) if ranger.saturating == "input" else {}
        self.found: dict[str, _Found] = {}
        self.unknown: list[str] = []  # activations without a bound
        self.unseen: list[str] = []  # what enters saturating ones, without a bound
        known: dict[int, _Found] = {}  # by step; a view goes by the name of what it views
        sites = {program.site_steps[site.name]: site for site in program.value_sites}
        for step in program.compute_steps():
            site = sites.get(step.index)
            own = self._own(site, step) if site is not None else None
            known[step.index] = own or self._follow(step, site, known)
            if site is not None:
                self.found[site.name] = known[step.index]

    def _own(self, site: ValueSite, step: Step) -> _Found | None:
        """The bound that a site has by itself, or why a site that could have one has none."""
        ranges, name, where = self._ranger.ranges, site.name, self._ranger.where
        if not site.dtype.is_floating_point:
            return _Found(name, None, f"holds {site.dtype}")
        if name in self._last:
            if self._ranger.last_linear and name in ranges:
                return _Found(name, self._chosen(site), f"{self._known}, the last linear layer")
            return _Found(name, None, "the last linear layer, whose values are the output")
        if name in self._activations.sites:
            return self._activation(site, step)
        if name in self._activations.inner:
            return _Found(name, None, f"inside of the activation {self._activations.inner[name]}")
        if name in self._entering and name in ranges:
            return _Found(name, self._chosen(site), f"{self._known}, enters {self._entering[name]}")
        if name in self._entering:
            self.unseen.append(name)
        if where == "all" and name in ranges:
            return _Found(name, self._chosen(site), self._known)
        if where == "activations":
            return _Found(name, None, f"{site.kind} is no activation")
        if where == "algorithm1-literal" and not self._is_next(step):
            return _Found(name, None, f"{site.kind} is no pool or concatenation right after an activation")
        return None

    def _is_next(self, step: Step) -> bool:
        """Return True for a pool or concatenation that reads activations, and through nothing but copies."""
        steps = self._program.steps
        if step.op is operator.getitem:
            step = steps[step.reads[0]]
        if canonical_kind(step.op) not in _NEXT:
            return False
        acting = {self._program.site_steps[name] for name in self._activations.sites}

        def origin(read: int) -> int:
            while read not in acting and (made := steps[read]).op is not None and operator_name(made.op) in COPIES:
                read = made.reads[0]
            return read

        return all(origin(read) in acting for read in value_reads(step))

    def _activation(self, site: ValueSite, step: Step) -> _Found:
        low, high = inherent_range(step)
        ranges, name, two_sided = self._ranger.ranges, site.name, math.isfinite(low) and math.isfinite(high)
        if two_sided and self._ranger.inherent == "both-ends":
            return _Found(name, Bound(low, high), "known")
        if name in ranges:
            bound = self._chosen(site)
            if math.isfinite(low) != math.isfinite(high):
                bound = _with_end(bound, low, high)
            elif two_sided:
                bound = _within(bound, low, high)
            return _Found(name, bound, self._known)
        if self._ranger.unprofiled == "refuse" and two_sided:
            return _Found(name, Bound(low, high), "known")
        self.unknown.append(name)
        return _Found(name, None, f"{site.kind} was not profiled")

    def _chosen(self, site: ValueSite) -> AnyBound:
        """The bound of a site in the ranges, with slack for the last bits of other kernels where it was observed."""
        ranges = self._ranger.ranges
        bound = ranges.channels.get(site.name, ranges[site.name])
        return self._with_slack(bound, site) if ranges.slack else bound

    def _with_slack(self, bound: AnyBound, site: ValueSite) -> AnyBound:
        return bound.loosened(max(LAST_BITS, 4 * torch.finfo(site.dtype).eps))

    def _follow(self, step: Step, site: ValueSite | None, known: Mapping[int, _Found]) -> _Found:
        """Return the bound that a step takes over from the values it reads."""
        reads = [self._program.steps[read] for read in value_reads(step) if self._program.steps[read].carries]
        sources = [known.get(read.index, _Found(read.label, None, "")) for read in reads]
        name = site.name if site is not None else sources[0].name if len(sources) == 1 else step.label
        taken = taken_over(step, reads, [source.bound for source in sources])
        if site is None and (
            filled_with(step) is not None or (isinstance(taken, str) and sources and sources[0].bound)
        ):
            name = step.label  # not what it reads has this bound, or lacks one
        if isinstance(taken, str):
            explained = sources[0].why if step.op is operator.getitem and sources[0].bound is None else ""
            unbounded = ", ".join(source.name for source in sources if source.bound is None) or "nothing"
            return _Found(name, None, explained or taken.format(unbounded=unbounded))
        return _Found(name, taken, f"follows {', '.join(dict.fromkeys(source.name for source in sources)) or name}")


def last_linear(program: Program) -> tuple[str, ...]:
    """The sites of linear layers with no other linear layer after them: those whose values are the output."""
    linear = {program.site_steps[site.name]: site for site in program.value_sites if site.kind in _LINEAR}
    steps = sum(1 << step for step in linear)
    return tuple(site.name for step, site in linear.items() if not program.descendants[step] & steps)


def _within(bound: AnyBound, low: float, high: float) -> AnyBound:
    """A bound without the slack that lies beyond the ends of a function."""
    if isinstance(bound, ChannelBounds):
        return bound.each(lambda channel: _in_ends(channel, low, high))
    return _in_ends(bound, low, high)


def _in_ends(bound: Bound, low: float, high: float) -> Bound:
    return Bound(min(max(bound.low, low), bound.high), max(min(bound.high, high), bound.low))


def _with_end(bound: AnyBound, low: float, high: float) -> AnyBound:
    """A bound with the one finite end of a function in the place of what was seen on that side."""
    if isinstance(bound, ChannelBounds):
        return bound.each(lambda channel: _one_end(channel, low, high))
    return _one_end(bound, low, high)


def _one_end(bound: Bound, low: float, high: float) -> Bound:
    return Bound(low, max(bound.high, low)) if math.isfinite(low) else Bound(min(bound.low, high), high)


def _placed(bound: AnyBound, program: Program, site: str) -> AnyBound:
    """A bound with its channel axis counted in a batch value; one for all channels where they have no axis there."""
    if isinstance(bound, Bound):
        return bound
    shape, axis = program.value_site(site).shape, axis_in_value(program, site, bound.axis)
    if axis is None:
        return bound.hull
    if len(bound.channels) != shape[bound.axis]:
        raise HoplonError(
            f"expected bounds of {shape[bound.axis]} channels for axis {bound.axis} of {site}, got "
            f"{len(bound.channels)}; profile this model with per_channel=True"
        )
    return replace(bound, axis=axis)
