"""Probes: what becomes of samples when one output channel of a convolution or linear layer is far too large or small.

A flipped exponent bit makes a weight so large that only one thing decides what follows: the channel that the weight
feeds, and the direction in which it is driven. That can be tried for all channels in a few passes over the data, since
every sample of a batch can carry a probe of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion
from hoplon.criteria.outcome import Outcome, classify
from hoplon.importance.damage.deviations import CLOSENESS, LEVELS
from hoplon.program.inputs import Inputs
from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program, Ref, Step

_LOOKS = 256  # samples on which inputs are watched
_RARE = 1e-3  # of a layer's large deviations: what is not worth a probe


@dataclass(eq=False)
class Layer:
    """One operator whose output channels are probed.

    ``typical``: the size of large deviations of its weights in each range, shape ``(LEVELS,)``; 0: none to probe.
    ``nonfinite``: whether NaN is probed. Counts, shape ``(channels, 2, LEVELS + 1)``: probes ``tried``, those that
    ``overflowed`` to an output that is not finite, and those that ``misled``: harmed a finite one; for rises and
    falls; the last range is NaN, which has no direction.
    """

    step: Step
    channels: int
    typical: Tensor
    nonfinite: bool
    overflowed: Tensor = field(init=False)
    misled: Tensor = field(init=False)
    tried: Tensor = field(init=False)
    highest: Tensor = field(init=False)
    lowest: Tensor = field(init=False)
    scale: float = 0.0
    looks: int = 0

    def __post_init__(self) -> None:
        shape = (self.channels, 2, LEVELS + 1)
        self.overflowed, self.misled, self.tried = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.highest, self.lowest = (torch.zeros(1, dtype=torch.float64) for _ in range(2))  # of every input channel

    def axis(self, dims: int) -> int:
        """Return the axis of the channels of input and output, from the end: last, or in front of those of space."""
        return -1 if canonical_kind(self.step.op) == "linear" else 1 - dims

    @property
    def levels(self) -> Tensor:
        """The ranges of large deviations that are probed."""
        return self.typical.nonzero()[:, 0]

    def cells(self) -> Tensor:
        """List what is probed: channel, direction, and 1 where NaN takes its place; int64, shape ``(cells, 3)``."""
        kinds = [(0, 0), (1, 0)] * (len(self.levels) > 0) + [(0, 1)] * self.nonfinite
        pairs = torch.tensor(kinds, dtype=torch.int64).reshape(-1, 2)
        channels = torch.arange(self.channels).repeat_interleave(len(pairs))
        return torch.cat([channels.unsqueeze(1), pairs.repeat(self.channels, 1)], 1)

    def watch(self, value: Tensor, samples: Tensor) -> None:
        """Note on how many samples each input channel goes above and below zero, and how far."""
        axis = self.axis(value.dim())
        inner = samples.movedim(axis, 1).flatten(2) if samples.dim() > 2 else samples.unsqueeze(2)
        above, below = inner.amax(2), inner.amin(2)
        self.highest = self.highest + (above > 0).sum(0).cpu()
        self.lowest = self.lowest + (below < 0).sum(0).cpu()
        self.scale += float(torch.maximum(above, -below).amax(1).double().sum())
        self.looks += len(samples)

    def active(self) -> tuple[Tensor, Tensor]:
        """For each input channel the share of samples in which it goes above zero, and below; float64."""
        return self.highest / self.looks, self.lowest / self.looks


class Probe(NamedTuple):
    """One deviation: where its result is counted (channel, direction, range), and what is added to the channel."""

    layer: Layer
    place: tuple[int, int, int]
    size: float


@final
class Prober:
    """Probes channels of layers on the batches of a stream, all cells equally often, up to one probe."""

    def __init__(
        self,
        program: Program,
        layers: Sequence[Layer],
        criterion: Criterion,
        *,
        passes: int,
        generator: torch.Generator,
    ) -> None:
        self.program, self.layers, self.criterion = program, layers, criterion.parts[0]
        self.passes, self.generator = passes, generator
        parts = [layer.cells() for layer in layers]
        self._layer = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
        self._cells = torch.cat(parts)
        self._queue = torch.zeros(0, dtype=torch.int64)
        self._inputs: dict[int, list[Layer]] = {}
        for layer in layers:
            source = layer.step.args[0]
            assert isinstance(source, Ref)
            self._inputs.setdefault(source.step, []).append(layer)

    def watch(self, step: int, value: Any) -> Any:
        """A hook that notes the inputs of the layers on the first samples."""
        for layer in self._inputs.get(step, ()):
            if layer.looks < _LOOKS:
                layer.watch(value, self.program.layouts[step].samples_first(value.detach()))
        return value

    def probe(self, part: Inputs, golden: Sequence[Any]) -> None:
        """Strike every sample of a batch once per pass, and note which fail."""
        leaves = self.program.leaves(part)
        for step, leaf in zip(self.program.input_steps, leaves, strict=True):
            self.watch(step, leaf)
        if not len(self._cells):
            return
        reference = self.program.samples_first(golden)
        judged = self.criterion.judged(reference)
        self.criterion.check(judged, part.y)
        eligible = self.criterion.eligible(judged, part.y).cpu()
        for _ in range(self.passes):
            probes = self._next(len(part))
            faulty = self.program.samples_first(self.program.run(leaves, hook=self._with(probes)))
            outcome = classify(self.criterion, reference=reference, golden=reference, faulty=faulty, labels=part.y)
            for probe, counts, found in zip(probes, eligible.tolist(), outcome[:, 0].tolist(), strict=True):
                if counts:
                    probe.layer.tried[probe.place] += 1
                    probe.layer.overflowed[probe.place] += found == Outcome.NONFINITE
                    probe.layer.misled[probe.place] += found == Outcome.SDC

    def failures(self) -> dict[int, Tensor]:
        """The failing share of samples by step: channel x direction x range, the last range NaN; float64.

        Overflow, or else harm to a finite output. Each is the layer's mean in that direction; more the nearer a range
        is to overflow, by a slope that all layers share; and moved by what the channel showed beyond that, as far as
        channels differ by more than chance.
        """
        shares = [torch.zeros_like(layer.tried) for layer in self.layers]
        for side in (0, 1):
            counts = [
                [part[:, side, :-1] for part in (layer.tried, layer.overflowed, layer.misled)] for layer in self.layers
            ]
            overflow = _fitted([_Fit(tried, overflowed) for tried, overflowed, _ in counts])
            misled = _fitted([_Fit(tried - overflowed, misled) for tried, overflowed, misled in counts])
            for share, over, finite in zip(shares, overflow, misled, strict=True):
                share[:, side, :-1] = over + (1 - over) * finite
        for share, layer in zip(shares, self.layers, strict=True):
            failed = (layer.overflowed + layer.misled)[:, 0, -1].sum()
            share[:, :, -1] = (failed + 1) / (layer.tried[:, 0, -1].sum() + 1)  # never tried: harm
        return {layer.step.index: share for layer, share in zip(self.layers, shares, strict=True)}

    def _next(self, count: int) -> list[Probe]:
        while len(self._queue) < count:
            self._queue = torch.cat([self._queue, torch.randperm(len(self._cells), generator=self.generator)])
        chosen, self._queue = self._queue[:count], self._queue[count:]
        random = torch.rand(count, generator=self.generator).tolist()
        probes = []
        for cell, unit in zip(chosen.tolist(), random, strict=True):
            layer = self.layers[int(self._layer[cell])]
            channel, side, is_nan = self._cells[cell].tolist()
            level, size = LEVELS, math.nan
            if not is_nan:
                level = int(layer.levels[int(unit * len(layer.levels))])
                size = float(layer.typical[level]) * layer.scale / layer.looks
            probes.append(Probe(layer, (channel, side, level), -size if side else size))
        return probes

    def _with(self, probes: Sequence[Probe]) -> Any:
        rows: dict[int, list[tuple[int, Probe]]] = {}
        for row, probe in enumerate(probes):
            rows.setdefault(probe.layer.step.index, []).append((row, probe))

        def apply(step: int, value: Any) -> Any:
            if step in rows:  # in place: an operator's own output, which nobody has read yet
                samples = self.program.layouts[step].samples_first(value)
                for row, probe in rows[step]:
                    size = torch.tensor(probe.size, dtype=torch.float64).to(value.dtype).to(value.device)
                    samples[row].select(probe.layer.axis(value.dim()), probe.place[0]).add_(size)
            return value

        return apply


@dataclass(frozen=True, eq=False)
class _Fit:
    """Probes of one layer in one direction: trials, and those with some outcome, shape ``(channels, LEVELS)``."""

    tried: Tensor
    hits: Tensor

    @property
    def base(self) -> Tensor:
        """The share of hits among all probes."""
        return (self.hits.sum() + 0.5) / (self.tried.sum() + 1)

    @property
    def variance(self) -> Tensor:
        """Variance of the outcome of one probe."""
        return self.base * (1 - self.base)

    @property
    def centred(self) -> Tensor:
        """The closeness to overflow of each range, less its mean over the probes."""
        return CLOSENESS - (self.tried.sum(0) * CLOSENESS).sum() / self.tried.sum().clamp(min=1)

    def shares(self, slope: Tensor) -> Tensor:
        """The share of hits for every channel and range, given how much closeness adds to its logit."""
        mean = torch.sigmoid(self.base.logit() + slope * self.centred)
        number = self.tried.sum(1)
        surplus = (self.hits - self.tried * mean).sum(1)
        spread = (surplus.square().sum() - self.variance * number.sum()) / number.square().sum().clamp(min=1)
        spread = spread.clamp(min=0)  # the variance between channels, by moments
        own = (surplus * spread / (number * spread + self.variance)).unsqueeze(1)
        room = torch.where(own > 0, (1 - mean) / (1 - self.base), mean / self.base)
        shares: Tensor = mean + own * room
        return shares.clamp(0, 1)


def _fitted(fits: Sequence[_Fit]) -> list[Tensor]:
    """The shares of each layer, with one slope for all."""
    slope = _slope(fits)
    return [fit.shares(slope) for fit in fits]


def _slope(fits: Sequence[_Fit]) -> Tensor:
    """Fit what a decade closer to overflow adds to the logit of the share, at least 0.

    One step of Newton's method for a logistic regression with an intercept per layer.
    """
    moments = [
        torch.stack(
            [
                ((fit.hits - fit.tried * fit.base).sum(0) * fit.centred).sum(),
                (fit.tried.sum(0) * fit.variance * fit.centred**2).sum(),
            ]
        )
        for fit in fits
    ]
    joint, own = torch.stack(moments).sum(0)
    slope: Tensor = joint / own.clamp(min=1e-12)
    return slope.clamp(min=0)


def common(typicals: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The size of large deviations in each range, over several storages, 0 where they are rare.

    Args:
        typicals: for each storage the typical sizes and how likely a weight of it is to deviate so, times its weights.
    """
    mass = torch.stack([m for _, m in typicals]).sum(0)
    logs = torch.stack([m * size.clamp(min=1e-300).log() for size, m in typicals]).sum(0)
    size = (logs / mass.clamp(min=1e-300)).exp()
    return size.where((mass > 0) & (mass > _RARE * mass.sum()), 0.0)
