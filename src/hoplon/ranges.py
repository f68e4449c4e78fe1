"""The range of every activation, observed on calibration data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from hoplon.data import Inputs, as_inputs
from hoplon.errors import DataError, HoplonError, SiteError, no_match
from hoplon.program import Program
from hoplon.sites import Values, ValueSite

ACTIVATION_KINDS = frozenset(
    {
        *("relu", "leaky_relu", "rrelu", "prelu", "elu", "gelu", "silu", "mish", "softplus", "softsign", "glu"),
        *("sigmoid", "log_sigmoid", "tanh", "tanhshrink", "softmax", "log_softmax"),
        *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "threshold"),
    }
)
"""The operator kinds that count as activations; ``relu6`` is a ``hardtanh``, ``selu`` and ``celu`` are ``elu``."""


@final
@dataclass(frozen=True)
class Bound:
    """A closed range of values, both ends finite.

    Raises:
        HoplonError: ends that are not finite, or the lower one above the upper.
    Example:
        >>> Bound(0.0, 2.5).hull(Bound(-1.0, 1.0))
        Bound(low=-1.0, high=2.5)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise HoplonError(f"expected finite bounds with low <= high, got ({self.low}, {self.high})")
        object.__setattr__(self, "low", self.low + 0.0)  # -0.0 becomes +0.0
        object.__setattr__(self, "high", self.high + 0.0)

    def hull(self, other: Bound) -> Bound:
        """The smallest bound that holds both."""
        return Bound(min(self.low, other.low), max(self.high, other.high))


@final
@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of each profiled site, and where they come from.

    ``bounds`` are exact values of the site's dtype, by site name in execution order. ``fingerprint`` is that of the
    profiled program, ``n_samples`` how many samples were seen, ``versions`` what computed them.
    """

    bounds: Mapping[str, Bound]
    program: str = ""
    fingerprint: str = ""
    data: str = ""
    n_samples: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Bound:
        if site not in self.bounds:
            raise no_match("profiled site", site, list(self.bounds))
        return self.bounds[site]

    def __contains__(self, site: object) -> bool:
        return site in self.bounds

    def __len__(self) -> int:
        return len(self.bounds)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; floats come back exactly. The file appears whole or not at all."""
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: no such file, or not a file of ranges.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            content["bounds"] = {name: Bound(**bound) for name, bound in content["bounds"].items()}
            return cls(**content)
        except OSError as error:
            raise DataError(f"expected a file of ranges, got {error}; Ranges.save writes one") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"expected a file of ranges in {path}, got content it cannot hold: {error}") from error


def profile_ranges(
    program: Program,
    calibration: Inputs | Tensor | tuple[Any, ...],
    *,
    sites: Values | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """The smallest and largest fault-free value of each site over calibration data.

    Args:
        program: fault-free; run one batch at a time, nothing is kept but two numbers per site.
        calibration: samples, best drawn from the training data (Ranger takes a random fifth of it); labels unused.
        sites: which outputs to profile; all activations by default (:data:`ACTIVATION_KINDS`).
        batch: samples per forward pass.
        progress: called after each batch with the samples done and the samples in all.
    Raises:
        SiteError: the program has no such site.
        DataError: a fault-free value is NaN or infinite; names the site.
    Source:
        Chen et al., DSN 2021 (Ranger), section III-C, step 1: the conservative bound, the largest value seen.
    """
    data = as_inputs(calibration)
    chosen = {program.site_steps[site.name]: site for site in _profiled(program, sites)}
    low = dict.fromkeys(chosen, math.inf)
    high = dict.fromkeys(chosen, -math.inf)

    def observe(step: int, value: Any) -> Any:
        if step in chosen and value.numel():
            least, largest = (float(end) for end in torch.aminmax(value))
            if not (math.isfinite(least) and math.isfinite(largest)):
                raise DataError(
                    f"expected finite fault-free values, got NaN or infinity in {chosen[step].name}; "
                    "leave the site or the sample out"
                )
            low[step], high[step] = min(low[step], least), max(high[step], largest)
        return value

    done = 0
    with torch.inference_mode():
        for part in data.batches(program.signature.fixed_batch or batch):
            program.run(program.leaves(part), hook=observe)
            done += len(part)
            if progress is not None:
                progress(done, len(data))
    return Ranges(
        bounds={site.name: Bound(low[step], high[step]) for step, site in chosen.items()},
        program=program.name,
        fingerprint=program.fingerprint(),
        data=data.name,
        n_samples=len(data),
        versions={"torch": torch.__version__},
    )


def _profiled(program: Program, sites: Values | None) -> tuple[ValueSite, ...]:
    if sites is not None:
        chosen = sites.select(program)
        inputs = [site.name for site in chosen if site not in program.value_sites]
        if inputs:
            raise SiteError(f"expected operator outputs to profile, got {inputs[0]}, an input of {program.name}")
        return chosen
    found = tuple(s for s in program.value_sites if s.kind in ACTIVATION_KINDS and s.dtype.is_floating_point)
    if not found:
        kinds = ", ".join(sorted({site.kind for site in program.value_sites}))
        raise SiteError(
            f"expected an activation to profile in {program.name}, got kinds {kinds}; name the sites: sites=Values(...)"
        )
    return found
