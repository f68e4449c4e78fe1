"""Observations of the values of each site: extremes, quantiles, and how they grew with the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor

from hoplon.errors import Fraction, HoplonError, NonNegative, checked
from hoplon.protections.ranges.bound import Bound, ChannelBounds
from hoplon.protections.ranges.histogram import Histogram
from hoplon.protections.ranges.ranges import LAST_BITS, Ranges, read_json, write_json

QuantileOf = Literal["values", "image-maxima"]

Ends = tuple[float, float]


def extremes(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each sample, shape ``(samples,)`` each; NaN where a sample holds one."""
    low, high = torch.aminmax(samples.reshape(len(samples), -1), dim=1)
    return low, high


@final
@dataclass(frozen=True)
class Observed:
    """Exact extremes of some values, and three histograms of them (empty where no quantiles were asked for).

    ``values`` counts every value; ``maxima`` and ``minima`` the largest and smallest of each image. Adding two is
    observing both their data; the order does not matter.
    """

    low: float
    high: float
    values: Histogram = field(default_factory=Histogram.empty)
    maxima: Histogram = field(default_factory=Histogram.empty)
    minima: Histogram = field(default_factory=Histogram.empty)

    @classmethod
    def of(cls, samples: Tensor, *, quantiles: bool) -> Self:
        """Observe finite values of shape ``(samples, ...)``."""
        minima, maxima = extremes(samples)
        ends = float(minima.min()), float(maxima.max())
        if not quantiles:
            return cls(*ends)
        return cls(*ends, Histogram.of(samples), Histogram.of(maxima), Histogram.of(minima))

    @property
    def ends(self) -> Ends:
        """Both extremes."""
        return self.low, self.high

    def __add__(self, other: Observed) -> Observed:
        return Observed(
            *_hull(self.ends, other.ends),
            self.values + other.values,
            self.maxima + other.maxima,
            self.minima + other.minima,
        )

    @property
    def median(self) -> float:
        """The median of all values, as exact as the bins of their histogram; 0 for one that is as good as 0."""
        middle = (self.values.at_most(0.5) + self.values.at_least(0.5)) / 2
        return 0.0 if abs(middle) < torch.finfo(torch.float32).tiny else min(max(middle, self.low), self.high)

    def bound(self, quantile: float, quantile_of: QuantileOf) -> Bound:
        """The range that this share of the values, or of the images, does not exceed; 1: of all."""
        if quantile == 1:
            return Bound(self.low, self.high)
        upper, lower = (self.values, self.values) if quantile_of == "values" else (self.maxima, self.minima)
        low = max(self.low, lower.at_most(quantile))
        high = min(self.high, upper.at_least(quantile))
        return Bound(min(low, high), max(low, high))


@final
@dataclass(frozen=True)
class SiteProfile:
    """Observations at one site: over all its values, and in each channel (empty unless asked for).

    ``axis`` is the axis of the channels among those of one sample, None where it is not known.
    """

    whole: Observed
    axis: int | None = None
    channels: tuple[Observed, ...] = ()

    def __add__(self, other: SiteProfile) -> SiteProfile:
        if (self.axis, len(self.channels)) != (other.axis, len(other.channels)):
            raise HoplonError(
                f"expected profiles with the same channels to merge, got {len(self.channels)} and "
                f"{len(other.channels)}; profile both with the same per_channel"
            )
        both = zip(self.channels, other.channels, strict=True)
        return SiteProfile(self.whole + other.whole, self.axis, tuple(a + b for a, b in both))

    def channel_bounds(
        self, quantile: float, quantile_of: QuantileOf, *, medians: bool = False
    ) -> ChannelBounds | None:
        """A bound per channel, and the medians; None where channels were not observed."""
        if self.axis is None or not self.channels:
            return None
        middle = tuple(channel.median for channel in self.channels) if medians else ()
        bounds = tuple(channel.bound(quantile, quantile_of) for channel in self.channels)
        return ChannelBounds(self.axis, bounds, middle)


@with_config(ConfigDict(extra="forbid"))
@final
@checked
@dataclass(frozen=True)
class Profile:
    """Observations of a program's sites over calibration data, in memory that does not grow with the data.

    Attributes:
        sites: by site name, in execution order.
        history: the extremes by site after a number of samples, at 1, 2, 4, ... samples and at the end.
        program, fingerprint, data, n_samples, versions: where it comes from.
        seconds: time that profiling took, forward passes included; machines' times are added.
    """

    sites: Mapping[str, SiteProfile]
    history: tuple[tuple[int, Mapping[str, Ends]], ...]
    program: str = ""
    fingerprint: str = ""
    data: str = ""
    n_samples: int = 0
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    def ranges(
        self,
        *,
        quantile: Fraction = 1.0,
        quantile_of: QuantileOf = "values",
        per_channel: bool = False,
        medians: bool = False,
    ) -> Ranges:
        """Bounds out of what was observed.

        Args:
            quantile: 1 takes the extremes. Below 1, the bound is what this share does not exceed, towards each side,
                and never less than that share (see :meth:`Histogram.at_least` for how much more).
            quantile_of: the share of all "values" of a site, or the share of images by the largest value of each
                ("image-maxima"; towards the low side, the smallest): what the artifact of Ranger calls a percentile.
            per_channel: a bound for each channel as well.
            medians: those with the median of each channel (:class:`hoplon.values.ToMedian`).
        Raises:
            HoplonError: a quantile outside of (0, 1], an unknown ``quantile_of``, or what was not observed.
        Source:
            Chen et al., DSN 2021 (Ranger), section V-A: bounds at percentiles trade accuracy for resilience.
        """
        per_channel = per_channel or medians
        if per_channel and not any(site.channels for site in self.sites.values()):
            raise HoplonError("expected a profile of channels, got one of whole sites; profile with per_channel=True")
        channels = {}
        if per_channel:
            found = {
                name: site.channel_bounds(quantile, quantile_of, medians=medians) for name, site in self.sites.items()
            }
            channels = {name: bounds for name, bounds in found.items() if bounds is not None}
        chosen = "extremes" if quantile == 1 else f"quantile {quantile} of {quantile_of}"
        return Ranges(
            bounds={name: site.whole.bound(quantile, quantile_of) for name, site in self.sites.items()},
            channels=channels,
            program=self.program,
            fingerprint=self.fingerprint,
            data=self.data,
            n_samples=self.n_samples,
            choice=chosen + (" per channel" if per_channel else ""),
            versions=self.versions,
            slack=LAST_BITS,
        )

    def convergence(self) -> tuple[tuple[int, Mapping[str, float]], ...]:
        """By number of samples, the share of its final range that each site had reached.

        The range is the largest magnitude seen, as in Fig. 5 of the paper; 1 for a site that has only seen zero.
        """
        final = {name: _reach(site.whole.ends) for name, site in self.sites.items()}
        return tuple(
            (count, {name: _reach(ends[name]) / end if end else 1.0 for name, end in final.items() if name in ends})
            for count, ends in self.history
        )

    def unconverged(self, *, tolerance: NonNegative = 0.1) -> dict[str, float]:
        """The sites whose range the last half of the data (or more) widened by more than a share ``tolerance`` of it.

        Returns:
            That share by site name; empty where all converged. Of a single sample nothing is known: each share is 1.
        """
        earlier = [shares for count, shares in self.convergence() if 2 * count <= self.n_samples]
        shares = earlier[-1] if earlier else {}
        return {name: 1 - share for name in self.sites if 1 - (share := shares.get(name, 0.0)) > tolerance}

    def merge(self, other: Profile) -> Profile:
        """The profile of the data of both, this one's first; of one program, on any machines.

        Raises:
            HoplonError: profiles of different programs or sites, or of different detail.
        """
        if self.fingerprint != other.fingerprint or list(self.sites) != list(other.sites):
            raise HoplonError(
                f"expected profiles of the same sites of one program to merge, got {self.program} and {other.program} "
                "with other weights, structure or sites"
            )
        if any(bool(a.whole.values.total) != bool(other.sites[n].whole.values.total) for n, a in self.sites.items()):
            raise HoplonError("expected both profiles with quantiles or both without, got one of each")
        before = {name: site.whole.ends for name, site in self.sites.items()}
        later = tuple(
            (self.n_samples + count, {name: _hull(before[name], ends[name]) for name in before if name in ends})
            for count, ends in other.history
        )
        return replace(
            self,
            sites={name: site + other.sites[name] for name, site in self.sites.items()},
            history=self.history + later,
            data=" + ".join(dict.fromkeys(name for name in (self.data, other.data) if name)),
            n_samples=self.n_samples + other.n_samples,
            seconds=self.seconds + other.seconds,
            versions={**other.versions, **self.versions},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; floats come back exactly. The file appears whole or not at all."""
        names = ("program", "fingerprint", "data", "n_samples", "seconds", "versions", "history", "sites")
        write_json(path, {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: no such file, or not a profile.
        """
        return read_json(path, "a file of a profile", cls)


def _reach(ends: Ends) -> float:
    return max(abs(ends[0]), abs(ends[1]))


def _hull(one: Ends, other: Ends) -> Ends:
    return min(one[0], other[0]), max(one[1], other[1])
