"""Profiling: running calibration data through a program, batch by batch."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hoplon.errors import Count, DataError, Fraction, HoplonError, HoplonWarning, NonNegative, SiteError, checked
from hoplon.program.inputs import Inputs, Stream, is_sized, stream
from hoplon.program.program import Program
from hoplon.program.sites import Values, ValueSite
from hoplon.protections.ranges.activation_sites import activations
from hoplon.protections.ranges.channels import (
    ChannelAxis,
    axis_in_samples,
    channel_axis as axis_of_channels,
    require_known,
)
from hoplon.protections.ranges.profile import Ends, Observed, Profile, QuantileOf, SiteProfile, extremes
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.ranges.saturation import Saturating, saturating_inputs

Progress = Callable[[int, int], None]


@checked
def profile_ranges(
    program: Program,
    calibration: Stream,
    *,
    sites: Values | None = None,
    saturating: Saturating = "output",
    quantile: Fraction = 1.0,
    quantile_of: QuantileOf = "values",
    per_channel: bool = False,
    medians: bool = False,
    channel_axis: ChannelAxis | None = None,
    batch: Count = 64,
    progress: Progress | None = None,
) -> Ranges:
    """The range of each site's fault-free values over calibration data; by default its extremes.

    Short for :func:`profile_activations` and :meth:`Profile.ranges`, which have these arguments. To choose several
    bounds of one profile, call those.

    Source:
        Chen et al., DSN 2021 (Ranger), section III-C, step 1: the conservative bound, the largest value seen.
    """
    profile = profile_activations(
        program,
        calibration,
        sites=sites,
        saturating=saturating,
        quantiles=quantile != 1 or medians,
        per_channel=per_channel or medians,
        channel_axis=channel_axis,
        batch=batch,
        progress=progress,
    )
    return profile.ranges(quantile=quantile, quantile_of=quantile_of, per_channel=per_channel, medians=medians)


@checked
def profile_activations(
    program: Program,
    calibration: Stream,
    *,
    sites: Values | None = None,
    saturating: Saturating = "output",
    quantiles: bool = True,
    per_channel: bool = False,
    channel_axis: ChannelAxis | None = None,
    batch: Count = 64,
    tolerance: NonNegative = 0.1,
    progress: Progress | None = None,
) -> Profile:
    """Observe the fault-free values of each site over calibration data, in constant memory.

    Args:
        program: fault-free; run one batch at a time.
        calibration: samples, best drawn from the training data (Ranger takes a random fifth of it); labels unused. Also
            a map-style data set, read a batch at a time, or any iterable of batches: ``x`` or ``(x, y)`` each.
        sites: which outputs to profile; all activations by default, also those written out in several operators.
        saturating: "input" observes what enters activations that saturate too (:func:`saturating_inputs`).
        quantiles: keep histograms too: of all values, of the largest and of the smallest value of each image.
        per_channel: observe each channel as well.
        channel_axis: where the channels are among the axes of one sample: an axis for all sites, or axes by pattern on
            names, ``{"head.*": -1}``. By default the first axis of three or more and the last of one or two, as in
            PyTorch's own convention: a model that holds its pictures as (rows, columns, channels) needs -1 here.
        batch: samples per forward pass; an iterable's own batches stay as they are.
        tolerance: what :meth:`Profile.unconverged` may find before a warning says so.
        progress: called after each batch with the samples done and the samples in all (those done, where the data does
            not say).
    Warns:
        HoplonWarning: the last half of the data widened a range by more than ``tolerance``.
    Raises:
        SiteError: the program has no such site.
        HoplonError: channels on an axis that a site does not have, or that its operator folds with the batch.
        DataError: no samples, or a fault-free value that is NaN or infinite; names the site.
    """
    chosen = {program.site_steps[site.name]: site for site in _profiled(program, sites, saturating)}
    axes = _channel_axes(program, tuple(chosen.values()), channel_axis, per_channel=per_channel)
    found: dict[str, SiteProfile] = {}
    history: dict[int, dict[str, Ends]] = {}
    started, done = time.perf_counter(), 0
    total = len(calibration) if is_sized(calibration) else None  # type: ignore[arg-type]
    with torch.inference_mode():
        for part in stream(calibration, batch=batch, fixed=program.signature.fixed_batch):
            looks = [1 << power for power in range((done + len(part)).bit_length()) if 1 << power > done]

            def observe(step: int, value: Any, done: int = done, part: Inputs = part, looks: Any = looks) -> Any:
                if (site := chosen.get(step)) is not None and value.numel():
                    samples = program.layouts[step].samples_first(value)[: len(part)]  # a fixed batch may be filled up
                    ends = _looks(site.name, samples, found.get(site.name), [look - done for look in looks])
                    for look, pair in zip(looks, ends, strict=True):
                        history.setdefault(look, {})[site.name] = pair
                    seen = _observe(samples, *axes[site.name], quantiles=quantiles)
                    found[site.name] = found[site.name] + seen if site.name in found else seen
                return value

            program.run(program.leaves(part), hook=observe)
            done += len(part)
            if progress is not None:
                progress(done, total or done)
    if not done:
        raise DataError("expected at least one batch to profile, got none")
    history[done] = {name: site.whole.ends for name, site in found.items()}
    name = getattr(calibration, "name", "")
    profile = Profile(
        sites={site.name: found[site.name] for site in chosen.values() if site.name in found},
        history=tuple(history.items()),
        program=program.name,
        fingerprint=program.fingerprint(),
        data=name if isinstance(name, str) else "",
        n_samples=done,
        seconds=time.perf_counter() - started,
        versions={"torch": torch.__version__},
    )
    _warn(profile, tolerance)
    return profile


def _looks(name: str, samples: Tensor, before: SiteProfile | None, counts: Sequence[int]) -> list[Ends]:
    """The extremes after so many of these samples, earlier ones included.

    Raises:
        DataError: a value that is not finite.
    """
    minima, maxima = extremes(samples)
    bad = (~(minima.isfinite() & maxima.isfinite())).nonzero()
    if len(bad):
        raise DataError(
            f"expected finite fault-free values, got NaN or infinity in {name}; leave the site or the sample out"
        )
    low, high = (math.inf, -math.inf) if before is None else before.whole.ends
    return [(min(low, float(minima[:count].min())), max(high, float(maxima[:count].max()))) for count in counts]


def _observe(samples: Tensor, axis: int | None, placed: int | None, *, quantiles: bool) -> SiteProfile:
    """Observe these samples; ``placed`` is the axis of channels in them, ``axis`` in one sample of the site."""
    whole = Observed.of(samples, quantiles=quantiles)
    if axis is None or placed is None:
        return SiteProfile(whole)
    channels = samples.movedim(placed, 1).unbind(1)
    return SiteProfile(whole, axis, tuple(Observed.of(channel, quantiles=quantiles) for channel in channels))


def _warn(profile: Profile, tolerance: float) -> None:
    late = profile.unconverged(tolerance=tolerance)
    if late:
        widest = max(late, key=late.__getitem__)
        warnings.warn(
            f"ranges not converged: the last half of {profile.n_samples} samples widened {len(late)} of "
            f"{len(profile.sites)} ranges by more than {100 * tolerance:g} % ({widest} by {100 * late[widest]:.0f} %); "
            "fault-free values may exceed such bounds: profile more data",
            HoplonWarning,
            stacklevel=4,
        )


def _channel_axes(
    program: Program, sites: Sequence[ValueSite], wanted: ChannelAxis | None, *, per_channel: bool
) -> dict[str, tuple[int | None, int | None]]:
    """By site, the axis of its channels in one sample, and with the samples put first."""
    if not per_channel:
        if wanted is not None:
            raise HoplonError(f"expected per_channel=True beside channel_axis, got channel_axis={wanted} alone")
        return dict.fromkeys((site.name for site in sites), (None, None))
    require_known(wanted, sites)
    found = {site.name: axis_of_channels(program, site, wanted) for site in sites}
    return {n: (axis, None if axis is None else axis_in_samples(program, n, axis)) for n, axis in found.items()}


def _profiled(program: Program, sites: Values | None, saturating: Saturating) -> tuple[ValueSite, ...]:
    own = activations(program).sites if sites is None else {site.name: site for site in sites.select(program)}
    entering = saturating_inputs(program) if saturating == "input" else {}
    found = tuple(site for site in program.value_sites if site.name in own or site.name in entering)
    inputs = own.keys() - {site.name for site in found}
    if inputs:
        raise SiteError(f"expected operator outputs to profile, got {min(inputs)}, an input of {program.name}")
    if not found:
        kinds = ", ".join(sorted({site.kind for site in program.value_sites}))
        raise SiteError(
            f"expected an activation to profile in {program.name}, got kinds {kinds}; name the sites: sites=Values(...)"
        )
    return found
