"""The expected damage: a forecast of the share of inputs that fail when a fault changes a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.errors import Count, Seed, checked
from hoplon.faults.model import FaultModel
from hoplon.faults.single_word import BitFlip
from hoplon.importance._fisher import SignedLosses
from hoplon.importance.damage.deviations import LEVELS, Deviations
from hoplon.importance.damage.probing import Layer, Prober, common
from hoplon.importance.damage.readers import readers_of
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, Progress, described, totals_of
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.program import Program, Ref, Step
from hoplon.program.sites import Memory, MemorySite
from hoplon.registry import register

_HARM = math.log(2)
"""A change of the loss that counts: the probability of the right class halves."""


@register("score", "expected-damage")
@checked
def expected_damage(
    program: Program,
    data: Stream,
    *,
    loss: Loss,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
    fault_model: FaultModel | None = None,
    criterion: Criterion | None = None,
    passes: Count = 3,
    seed: Seed = 0,
) -> Scores:
    """Score weights by the share of inputs expected to fail when a fault strikes them: the mean over all its changes.

    Sensitivity alone says little about flipped bits: a weight of 0.1 becomes 3e37, far beyond any linear neighbourhood.
    So the score starts from the deviation that every change makes of this very weight, and treats three kinds apart.

    - *Small* (up to 8 times the largest weight of the storage): the share of inputs whose loss changes by more than
      ln 2 to first order, at most F d^2 / ln(2)^2 by Markov's inequality, and at most 1; F: see ``fisher``.
    - *Large*: what counts is which output channel is driven up or down, and whether the input is there to drive it.
      Every channel of every layer is *probed* in both directions, at the size of deviations that occur there, in
      ``passes`` forward passes over the data; every sample carries a probe of its own. The damage is the failing share
      of the channel's probes (shrunk towards its layer's, and higher the nearer to overflow), times the share of
      samples in which the weight's input is positive; or negative, for the other direction.
    - *NaN or infinity*, e.g. bit 30 of a weight in [1, 2): probed likewise.

    Args:
        fault_model: of one word; a single flipped bit by default. More than 512 possible changes are sampled.
        criterion: what counts as failing, its first column; the first class by default. Inputs that the model gets
            wrong do not count.
        passes: forward passes for probes.
        seed: of probes, signs and sampled changes.
    Other arguments, result and errors as :func:`hoplon.importance._taylor`; the loss is called with one sample.
    Returns:
        Scores in float32: an estimate of the failing share, for each weight, so at most 1.
    Raises:
        HoplonError: a model without a graph, a fault model of several words, ``passes`` below 1; SiteError: storages
            that are no weights or biases of convolutions and linear layers.
    """
    model = fault_model or BitFlip()
    generator = torch.Generator().manual_seed(seed)
    chosen = sites.select(program)
    memory = program.memory()
    readers = readers_of(program, chosen, "expected_damage")
    deviations = {site.name: Deviations.of(memory[site.name], site, model, generator=generator) for site in chosen}
    layers = _layers(program, chosen, readers, deviations)
    prober = Prober(program, list(layers.values()), criterion or TopK(), passes=passes, generator=generator)
    signs = torch.Generator().manual_seed(seed)
    squares, seen = totals_of(
        program,
        data,
        sites=chosen,
        objective=SignedLosses(loss, signs),
        batch=batch,
        term=lambda gradient, weight: gradient.square_(),
        visit=torch.inference_mode()(prober.probe),
        hook=prober.watch,
        progress=progress,
    )
    failures = prober.failures()
    values = {}
    for site in chosen:
        fisher = (squares[site.name] / seen.samples).reshape(-1).double().cpu()
        small = _small(deviations[site.name], fisher).reshape(site.shape)
        large = [
            _large(deviations[site.name], site, layers[step.index], failures[step.index]) for step in readers[site.name]
        ]
        values[site.name] = (small + torch.stack(large).amax(0)).clamp(max=1).float()
    return described(values, score=f"expected_damage, {model.name}", program=program, seen=seen, loss=loss)


def _layers(
    program: Program,
    sites: Sequence[MemorySite],
    readers: Mapping[str, Sequence[Step]],
    deviations: Mapping[str, Deviations],
) -> dict[int, Layer]:
    """The operators that read the storages, by step, with what of them is to be probed."""
    read: dict[int, list[MemorySite]] = {}
    for site in sites:
        for step in readers[site.name]:
            read.setdefault(step.index, []).append(site)
    layers = {}
    for number, weights in read.items():
        parts = [deviations[site.name] for site in weights]
        masses = [(part.large.sum(1) * part.classes.bincount().double().unsqueeze(1)).sum(0) for part in parts]
        typical = common([(part.typical, mass) for part, mass in zip(parts, masses, strict=True)])
        nonfinite = any(bool(part.nonfinite.any()) for part in parts)
        layers[number] = Layer(program.steps[number], weights[-1].shape[0], typical, nonfinite)
    return layers


def _small(found: Deviations, fisher: Tensor) -> Tensor:
    """The damage of small deviations, float64, shape ``(weights,)``."""
    total = torch.zeros_like(fisher)
    for likely, square in zip(found.small.unbind(1), found.square.unbind(1), strict=True):
        if bool(square.any()):
            total += torch.minimum(likely[found.classes], fisher * square[found.classes] / _HARM**2)
    return total


def _large(found: Deviations, site: MemorySite, layer: Layer, failure: Tensor) -> Tensor:
    """The damage of large deviations and of NaN, float64, of the storage's shape."""
    above, below = _driven(site, layer)
    rest = (1,) * (len(site.shape) - 2)
    total = torch.zeros(site.shape, dtype=torch.float64)
    for level in range(LEVELS):
        up, down = (failure[:, side, level].unsqueeze(1) for side in (0, 1))
        for side, (same, other) in enumerate(((up, down), (down, up))):
            likely = found.large[:, side, level]
            if bool(likely.any()):
                harm = 1 - (1 - above * same) * (1 - below * other)
                total += likely[found.classes].reshape(site.shape) * _shaped(harm, site, rest)
    nonfinite = found.nonfinite[found.classes].reshape(site.shape)
    return total + nonfinite * _shaped(failure[:, 0, LEVELS].unsqueeze(1), site, rest)


def _driven(site: MemorySite, layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the shares of samples whose input is positive, and negative: ``(channels or 1, inputs)``; 1 for a bias."""
    if len(site.shape) == 1 and isinstance(layer.step.argument("bias"), Ref):  # a bias
        return torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    inputs = site.shape[1]
    above, below = layer.active()
    groups = len(above) // inputs
    if groups == 1:
        return above.unsqueeze(0), below.unsqueeze(0)
    each = layer.channels // groups
    grouped = (part.reshape(groups, inputs).repeat_interleave(each, 0) for part in (above, below))
    return tuple(grouped)  # type: ignore[return-value]


def _shaped(harm: Tensor, site: MemorySite, rest: tuple[int, ...]) -> Tensor:
    """By channel and input, as the storage is shaped."""
    return harm[:, 0] if len(site.shape) == 1 else harm.reshape(*harm.shape, *rest)
