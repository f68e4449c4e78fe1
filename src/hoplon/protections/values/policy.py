"""Policies for a value outside of its bound."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hoplon.errors import HoplonError, Seed, checked
from hoplon.formats.base import integer_view
from hoplon.protections.base import Unchanged, ValueProtection
from hoplon.protections.ranges.bound import Bound, ChannelBounds
from hoplon.protections.values.clamp import BoundValue, rounded_outwards
from hoplon.registry import register


class Policy(ABC):
    """A policy for values outside of their bound. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name in reports."""

    takes_medians: ClassVar[bool] = False
    """True if it needs bounds with the median of each channel."""

    @abstractmethod
    def effect(self, bound: Bound | ChannelBounds, *, site: str) -> ValueProtection:
        """The protection of one site; the axis of channels is that of the whole value."""


@register("policy", "clamp")
@final
@dataclass(frozen=True)
class Clamp(Policy):
    """It becomes the nearest end of the bound (NaN: an end as well).

    Source:
        Chen et al., DSN 2021 (Ranger), section III-C.
    """

    label = "clamp"

    def effect(self, bound: Bound | ChannelBounds, *, site: str) -> ValueProtection:
        """A clamp."""
        return BoundValue(bound.low, bound.high) if isinstance(bound, Bound) else BoundChannels(bound)


@register("policy", "zero")
@final
@dataclass(frozen=True)
class ToZero(Policy):
    """It becomes 0, or the end nearest to 0 where 0 lies outside of the bound.

    Source:
        Reagen et al., Minerva, ISCA 2016: words with a detected fault are set to zero. Discussed
        for Ranger in section V-B of Chen et al., DSN 2021.
    """

    label = "zero"

    def effect(self, bound: Bound | ChannelBounds, *, site: str) -> ValueProtection:
        """Zero in the place of what lies outside."""
        return Zeroed(bound)


@register("policy", "median")
@final
@dataclass(frozen=True)
class ToMedian(Policy):
    """It becomes the median of its channel's fault-free values; where channels were mixed, 0 as by :class:`ToZero`.

    The median is that of the calibration data (bounds with ``medians=True``, which are bounds per channel): a constant
    costs what zero costs. The median of the other values at run time would be sorted for in every pass, and says
    nothing where a faulty weight has spoilt the whole channel.

    Source:
        hoplon's; beside clamp, zero and random of section V-B of Chen et al., DSN 2021 (Ranger).
    """

    label = "median"
    takes_medians = True

    def effect(self, bound: Bound | ChannelBounds, *, site: str) -> ValueProtection:
        """Medians in the place of what lies outside."""
        return Centred(bound) if isinstance(bound, ChannelBounds) and bound.medians else Zeroed(bound)


@register("policy", "random")
@final
@checked
@dataclass(frozen=True)
class RandomInRange(Policy):
    """It becomes a number from the bound, uniform as the seed varies.

    The number is a hash of ``seed``, the site and the faulty word itself: no state, no order of calls. So the same
    fault gets the same replacement in every batch, in a replay, in the module and after resumption; two equal faulty
    words at one site get equal ones.

    Source:
        Discussed as an alternative in section V-B of Chen et al., DSN 2021 (Ranger).
    """

    seed: Seed = 0

    @property
    def label(self) -> str:
        """With its seed."""
        return f"random{self.seed}"

    def effect(self, bound: Bound | ChannelBounds, *, site: str) -> ValueProtection:
        """Random numbers in the place of what lies outside."""
        key = hashlib.sha256(f"{self.seed} {site}".encode()).digest()
        return Randomised(bound, int.from_bytes(key[:8], "little", signed=True))


@register("policy", "detect")
@final
@checked
@dataclass(frozen=True)
class Detect(Policy):
    """It stays, and the run is repeated: the symptom detector of Li et al.

    A transient fault is gone in the second run. In a campaign of value faults a flagged run is detected and delivers
    the fault-free output; memory faults outlast it, and a campaign of those is as without the detector. A hardened
    module runs once more (:attr:`HardenedModule.alarms` counts). What a fault-free run trips is a false alarm:
    :func:`hoplon.values.exceedances` measures them on held-out data.

    Args:
        margin: share by which each end is moved outwards before anything is flagged. The default is ours.
    Source:
        Li et al., Understanding error propagation in deep learning neural network (DNN) accelerators and applications,
        SC 2017, as section VI of Chen et al., DSN 2021 (Ranger) describes it: spikes of values are symptoms of a fault,
        a detected fault is followed by running again, and its false-positive rate is given as over 30 %.
    """

    margin: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise HoplonError(f"expected a finite margin of at least 0, got {self.margin}")

    label = "detect"

    def effect(self, bound: Bound | ChannelBounds, *, site: str) -> ValueProtection:
        """An alarm."""
        return Alarm(bound.widened(self.margin))


@dataclass(frozen=True)
class _Bounded(ValueProtection):
    """A protection with the ends of one bound, or of one per channel."""

    bound: Bound | ChannelBounds

    @property
    def local(self) -> bool:
        """Yes, unless the channels lie elsewhere than along the second axis."""
        return isinstance(self.bound, Bound) or self.bound.axis == 1

    @property
    def extra_bytes(self) -> int:
        """Two float64 numbers per bound."""
        return 16 * (1 if isinstance(self.bound, Bound) else len(self.bound.channels))

    def outside(self, value: Tensor) -> Tensor:
        """NaN, and what lies beyond the ends."""
        low, high = _ends_for(self.bound, value)
        inside: Tensor = (value >= low) & (value <= high)
        return ~inside


@final
@dataclass(frozen=True)
class BoundChannels(_Bounded):
    """Keeps each channel inside its own bound; -NaN becomes the low end, +NaN the high one, as in `BoundValue`.

    A channel whose bound reaches below 0 sends every NaN to its low end.
    """

    def __call__(self, value: Tensor) -> Tensor:
        """The bounded value as a new tensor."""
        low, high = _ends_for(self.bound, value)
        to_low = torch.signbit(value) | (low < 0)
        return torch.where(value.isnan(), torch.where(to_low, low, high), torch.clamp(value, low, high) + 0.0)


@final
@dataclass(frozen=True)
class Zeroed(_Bounded):
    """Puts 0, or the end nearest to it, in the place of what lies outside."""

    def __call__(self, value: Tensor) -> Tensor:
        """As a new tensor."""
        low, high = _ends_for(self.bound, value)
        return torch.where(self.outside(value), torch.clamp(torch.zeros_like(value), low, high), value)


@final
@dataclass(frozen=True)
class Centred(_Bounded):
    """Puts the median of its channel in the place of what lies outside."""

    bound: ChannelBounds

    @property
    def extra_bytes(self) -> int:
        """Three float64 numbers per channel."""
        return 24 * len(self.bound.channels)

    def __call__(self, value: Tensor) -> Tensor:
        """As a new tensor."""
        low, high = _ends_for(self.bound, value)
        medians = _kept(_channel_medians)(self.bound, value.dtype, value.device).view(low.shape)
        return torch.where(self.outside(value), torch.clamp(medians, low, high), value)


@final
@dataclass(frozen=True)
class Randomised(_Bounded):
    """Puts a number from the bound in the place of what lies outside: a hash of ``key`` and the word that lay there."""

    key: int = 0

    def __call__(self, value: Tensor) -> Tensor:
        """As a new tensor."""
        low, high = _ends_for(self.bound, value)
        share = _uniform(integer_view(value).to(torch.int64), self.key)
        drawn = low * (1 - share) + high * share
        return torch.where(self.outside(value), torch.clamp(drawn.to(value.dtype), low, high), value)


@final
@dataclass(frozen=True)
class Alarm(Unchanged, _Bounded):
    """Leaves every value as it is; :meth:`outside` flags what lies outside of the bound."""

    detects = True


def _uniform(words: Tensor, key: int) -> Tensor:
    """A number in [0, 1) for each word: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    mixed = words ^ key
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _right(mixed, shift)) * factor
    return _right(mixed ^ _right(mixed, 31), 11).double() * 2.0**-53


def _right(words: Tensor, shift: int) -> Tensor:
    """A shift of 64-bit words that fills with zeros."""
    return (words >> shift) & ((1 << (64 - shift)) - 1)


def _ends_for(bound: Bound | ChannelBounds, value: Tensor) -> tuple[Any, Any]:
    """Both ends in the dtype of a value: two numbers, or two tensors shaped to be broadcast over it."""
    if isinstance(bound, Bound):
        return rounded_outwards(bound, value.dtype)
    low, high = _kept(_channel_ends)(bound, value.dtype, value.device)
    shape = [-1 if axis == bound.axis else 1 for axis in range(value.dim())]
    return low.view(shape), high.view(shape)


def _channel_ends(bound: ChannelBounds, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    ends = [rounded_outwards(channel, dtype) for channel in bound.channels]
    lows, highs = ([end[side] for end in ends] for side in (0, 1))
    return torch.tensor(lows, dtype=dtype, device=device), torch.tensor(highs, dtype=dtype, device=device)


def _channel_medians(bound: ChannelBounds, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(bound.medians, dtype=dtype, device=device)


_KEPT = {function: lru_cache(maxsize=None)(function) for function in (_channel_ends, _channel_medians)}


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with what it made before, unless the call is being traced: a trace has tensors of its own."""
    traced = torch.compiler.is_compiling() or torch.compiler.is_exporting() or _get_current_dispatch_mode() is not None
    return function if traced else _KEPT[function]
