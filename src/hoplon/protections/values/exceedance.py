"""Fault-free values outside of their bounds: false alarms of a detector, clamps of sound values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hoplon.errors import Count, HoplonError, Share, checked
from hoplon.program.inputs import Inputs, as_inputs
from hoplon.program.program import Program
from hoplon.protections.base import Protection, overlay
from hoplon.protections.values.duplicate import Repeated
from hoplon.stats.intervals import Interval, wilson


@final
@dataclass(frozen=True)
class SiteExceedance:
    """Fault-free values of one site outside of its bound, and the images that have one."""

    values: int
    n_values: int
    images: int


@final
@dataclass(frozen=True)
class Exceedances:
    """Effect of bounds on fault-free values of data that they were not made from.

    ``images`` of ``n_images`` have a value outside of its bound at some site: they are false alarms of a detector, and
    what a clamp changes. ``exceeding`` are their numbers in the data, to look at what a policy makes of just those. If
    held-out and calibration images come from one source, an image exceeds the extremes of n others at one end of one
    site with a probability of 1 / (n + 1).
    """

    sites: Mapping[str, SiteExceedance]
    images: int
    n_images: int
    confidence: float = 0.95
    exceeding: tuple[int, ...] = ()

    @property
    def exceeding_sites(self) -> dict[str, SiteExceedance]:
        """The sites that have a value outside of their bound, those in most images first."""
        found = {name: site for name, site in self.sites.items() if site.values}
        return dict(sorted(found.items(), key=lambda entry: -entry[1].images))

    @property
    def image_rate(self) -> Interval:
        """The share of images with a value outside of its bound: the rate of false alarms."""
        return wilson(self.images, self.n_images, confidence=self.confidence)

    def __str__(self) -> str:
        return (
            f"fault-free values outside of their bounds in {self.images} of {self.n_images} images: {self.image_rate} "
            f"({len(self.exceeding_sites)} of {len(self.sites)} sites)"
        )


@checked
def exceedances(
    program: Program, protections: Iterable[Protection], data: Any, *, batch: Count = 64, confidence: Share = 0.95
) -> Exceedances:
    """Count the fault-free values that protections take for wrong, on an unprotected run of held-out data.

    Args:
        protections: bounds (:class:`hoplon.Ranger` under any policy); others count nothing.
        data: held-out samples; labels unused.
    Raises:
        HoplonError: no protection that bounds a value.
    """
    resolved = overlay(program, protections).values
    effects = {program.site_steps[name]: e for name, e in resolved.items() if not isinstance(e, Repeated)}
    if not effects:
        raise HoplonError("expected a protection that bounds values, got none; Ranger does")
    names = {program.site_steps[site.name]: site.name for site in program.value_sites}
    inputs = as_inputs(data)
    counts = {step: np.zeros(3, dtype=np.int64) for step in effects}  # values outside, all values, images
    done, exceeding = 0, list[int]()
    with torch.inference_mode():
        for part in inputs.batches(program.signature.fixed_batch or batch):
            anywhere = torch.zeros(len(part), dtype=torch.bool)

            def count(step: int, value: Any, part: Inputs = part, anywhere: Tensor = anywhere) -> Any:
                if step in effects and (wrong := effects[step].outside(value)) is not None:
                    rows = program.layouts[step].samples_first(wrong)[: len(part)].flatten(1)
                    images = rows.any(1)
                    counts[step] += (int(rows.sum()), rows.numel(), int(images.sum()))
                    anywhere |= images.cpu()
                return value

            program.run(program.leaves(part), hook=count)
            exceeding += (done + anywhere.nonzero().flatten()).tolist()
            done += len(part)
    found = {names[step]: SiteExceedance(*count.tolist()) for step, count in counts.items()}
    return Exceedances(found, len(exceeding), len(inputs), confidence, tuple(exceeding))
