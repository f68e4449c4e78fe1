"""The Taylor score: how much the loss would change, to first order, were a weight zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.data import Inputs, as_inputs
from hoplon.errors import DataError
from hoplon.importance.scores import Scores
from hoplon.program import Program
from hoplon.sites import Memory

CONVOLUTIONS_AND_LINEAR = Memory(kind=("conv", "linear"), buffers=False)


def taylor(
    program: Program,
    data: Inputs | Tensor | tuple[Any, ...],
    *,
    loss: Callable[[Any, Any], Tensor],
    sites: Memory = CONVOLUTIONS_AND_LINEAR,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score weights by the squared product of gradient and weight, summed over batches.

    The score depends on ``batch``, since the gradient is that of a batch's mean loss; it is recorded.

    Args:
        program: its functional form is differentiated; memory is only read, no ``.grad`` is written.
        data: samples and labels, best of the training set.
        loss: called as ``loss(output, labels)``, gives the mean loss of a batch as a scalar; ``labels`` is None for
            data without labels.
        sites: which storages to score; parameters that convolutions and linear layers read by default.
        batch: samples per gradient; the last batch may be shorter. A program of a fixed batch size takes that, and
            leaves the samples out that do not fill a batch.
        progress: called after each batch with the samples done and the samples in all.
    Returns:
        Scores in float32, of the shapes of the storages.
    Raises:
        SiteError: no such storage.
        DataError: a loss that is no finite scalar, or that does not depend on the storages.
    Source:
        Molchanov et al., CVPR 2019, equation (8), per weight as in Aspis (Schmedding et al.), equation (1).
    """
    inputs, fixed = as_inputs(data), program.signature.fixed_batch
    if fixed is not None:
        batch = fixed
        inputs = inputs.take(range(len(inputs) // fixed * fixed))
    chosen = sites.select(program)
    memory = program.memory()
    done = 0
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [memory[site.name].detach().requires_grad_() for site in chosen]
        for site, leaf in zip(chosen, leaves, strict=True):
            memory |= dict.fromkeys((site.name, *site.aliases), leaf)
        scores = [torch.zeros_like(leaf, dtype=torch.float32, requires_grad=False) for leaf in leaves]
        for part in inputs.batches(batch):
            outputs = program.run(program.leaves(part), memory)
            value = _checked(_loss(loss, pytree.tree_unflatten(outputs, program.out_spec), part.y))
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
            for score, leaf, gradient in zip(scores, leaves, gradients, strict=True):
                if gradient is not None:
                    score.add_((gradient.float() * leaf.detach().float()).square_())
            done += len(part)
            if progress is not None:
                progress(done, len(inputs))
    return Scores(
        values={site.name: score for site, score in zip(chosen, scores, strict=True)},
        score="taylor",
        data=inputs.name,
        n_samples=len(inputs),
        batch=batch,
        loss=getattr(loss, "__name__", type(loss).__name__),
        fingerprint=program.fingerprint(),
    )


def _loss(loss: Callable[[Any, Tensor | None], Tensor], output: Any, labels: Tensor | None) -> object:
    try:
        return loss(output, labels)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        given = "data without labels" if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise DataError(
            f"expected a loss(output, labels) that takes what the model and the data give, got {given} and {error}"
        ) from error


def _checked(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() or not bool(value.isfinite()):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)
        raise DataError(f"expected a loss that gives one finite number per batch, got {got}; take the mean")
    if not value.requires_grad:
        raise DataError("expected a loss that depends on the weights, got one without a gradient; do not detach it")
    return value
