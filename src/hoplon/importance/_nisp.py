"""Neuron importance score propagation, per weight: what flows back from the outputs through absolute weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from hoplon.errors import Count, HoplonError, checked
from hoplon.importance._layerwise import layerwise
from hoplon.importance.damage.readers import readers_of
from hoplon.importance.gradients import CONVOLUTIONS_AND_LINEAR, Loss, Progress, StreamSummary, batches_of, described
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Stream
from hoplon.program.operators import ACTIVATION_KINDS, canonical_kind
from hoplon.program.program import Program, Ref
from hoplon.program.sites import Memory
from hoplon.registry import register

_MIX = 0.5  # of spread against unlikeness, in the ranking of the outputs
_DAMPING = 0.9  # of long paths; below 1, so that their sum exists


@register("score", "nisp")
@checked
def nisp(
    program: Program,
    data: Stream,
    *,
    loss: Loss | None = None,
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: Count = 64,
    progress: Progress | None = None,
) -> Scores:
    """Score weights by the importance of the neurons they feed, propagated from the outputs, times their magnitude.

    The outputs are ranked by infinite feature selection on the data (one forward pass; the labels and the loss are not
    used). From there importance flows backward through the absolute weights, activations taken for the identity, batch
    norm for its absolute gain (Yu et al., equation (9)). Where the paper stops at neurons, a weight of output channel c
    gets its own part of that flow: ``|w|`` times the importance of channel c, summed over positions. A bias likewise.

    hoplon departs from the paper twice. The final response layer is the model's output, not the layer before it. And
    since importance grows by the width of every layer on its way back, which says nothing across layers (the
    paper prunes each layer on its own), every storage's scores are scaled to a sum of one.

    Args:
        sites: weights and biases of convolutions and linear layers, which these are by default.
    Other arguments and the result as :func:`hoplon.importance._taylor`.
    Raises:
        HoplonError: a model without a graph, or one in which no finite importance reaches a storage (through a layer
            norm or a softmax inside, for example); SiteError: a storage that other operators read; DataError: no data.
    Source:
        Yu et al., "NISP: Pruning Networks using Neuron Importance Score Propagation", CVPR 2018, sections 3.2 and 3.3;
        Roffo et al., "Infinite Feature Selection", ICCV 2015, with Spearman's correlation.
    """
    chosen = sites.select(program)
    readers = readers_of(program, chosen, "nisp")
    seen, responses, sample = StreamSummary(), [], None
    with torch.inference_mode():
        for part in batches_of(program, data, batch=batch, seen=seen, progress=progress):
            sample = part.take([0]) if sample is None else sample
            responses.append(_features(program, program.run(program.leaves(part))).double().cpu())
    assert sample is not None
    weights = output_importance(torch.cat(responses).numpy())
    with torch.inference_mode(False), torch.enable_grad():
        flow = _flow(
            program, program.leaves(sample), {step.index for found in readers.values() for step in found}, weights
        )
    memory = program.memory()
    values = {}
    for site in chosen:
        weight = memory[site.name].detach().abs().double()
        towards = torch.stack([flow[step.index] for step in readers[site.name]]).sum(0)
        values[site.name] = weight * towards.reshape(-1, *(1,) * (weight.dim() - 1))
        if not bool(values[site.name].isfinite().all()) or (bool(weight.any()) and not bool(values[site.name].any())):
            raise HoplonError(
                f"expected a finite importance of {site.name}, got none: an operator behind it lets none through; "
                "use another score"
            )
    return replace(layerwise(described(values, score="nisp", program=program, seen=seen), by="sum"), score="nisp")


def output_importance(responses: np.ndarray) -> np.ndarray:
    """Infinite feature selection: how much each output tells, alone and along all paths through the others.

    Args:
        responses: shape ``(samples, outputs)``.
    Returns:
        float64, shape ``(outputs,)``, at least 0, sum 1.
    Source:
        Roffo et al., ICCV 2015, equations (1) and (9).
    """
    count = responses.shape[1]
    spread = responses.std(0)
    if not spread.any() or count == 1:
        return np.full(count, 1 / count)
    spread = spread / spread.max()
    ranks = np.apply_along_axis(scipy.stats.rankdata, 0, responses)
    centred = ranks - ranks.mean(0)
    norms = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(norms > 0, norms, 1)
    unlike = 1 - np.abs(unit.T @ unit)
    ties = _MIX * np.maximum(spread[:, None], spread[None]) + (1 - _MIX) * unlike.clip(0)
    damped = ties * (_DAMPING / np.abs(np.linalg.eigvalsh(ties)).max())
    energy = np.linalg.solve(np.eye(count) - damped, damped.sum(1))
    found: np.ndarray = energy / energy.sum()
    return found


def _features(program: Program, outputs: Sequence[Any]) -> Tensor:
    """The first floating-point output as ``(samples, features)``; positions of a map count as their mean."""
    leaves = program.samples_first(outputs)
    first: Tensor = next(leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return first.reshape(len(first), -1) if first.dim() < 3 else first.flatten(2).mean(2)


def _flow(program: Program, leaves: Sequence[Any], taps: set[int], weights: np.ndarray) -> dict[int, Tensor]:
    """The importance of every channel of some steps, summed over positions, float64, by step.

    It is the gradient of the weighted outputs in a network whose weights are absolute and whose activations are linear.
    """
    memory = {name: _positive(tensor) for name, tensor in program.memory().items()}
    values = program.initial_values([_ones(leaf) for leaf in leaves], memory)
    for step in program.compute_steps():
        for name in ("bias", "running_mean"):
            if isinstance(ref := step.argument(name), Ref):
                values[ref.step] = torch.zeros_like(values[ref.step])
    channels: dict[int, Tensor] = {}
    for step in program.compute_steps():
        linear = canonical_kind(step.op) in ACTIVATION_KINDS and isinstance(step.args[0], Ref)
        value = values[step.args[0].step] if linear else step.run(values)
        if step.index in taps:
            last = canonical_kind(step.op) == "linear"
            size = value.shape[-1] if last else value.shape[1]
            tap = torch.zeros(size, dtype=torch.float64, device=value.device, requires_grad=True)
            channels[step.index] = tap
            value = value + (tap if last else tap.reshape(-1, *(1,) * (value.dim() - 2)))
        values[step.index] = value
    features = _features(program, program.outputs_from(values))
    objective = (features * torch.from_numpy(weights).to(features.device)).sum()
    found = torch.autograd.grad(objective, list(channels.values()), materialize_grads=True)
    return dict(zip(channels, found, strict=True))


def _positive(tensor: Tensor) -> Tensor:
    return tensor.detach().abs().double() if tensor.is_floating_point() else tensor


def _ones(leaf: Any) -> Any:
    floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return torch.ones_like(leaf, dtype=torch.float64) if floating else leaf
