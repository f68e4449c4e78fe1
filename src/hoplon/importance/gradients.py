"""Shared parts of scores: batches of data, gradients of the weights on each, and the description of a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.errors import DataError, SiteError
from hoplon.formats.digest import digest_of
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Inputs, Stream, is_sized, stream
from hoplon.program.program import Hook, Program
from hoplon.program.sites import Memory, MemorySite

CONVOLUTIONS_AND_LINEAR = Memory(kind=("conv", "linear"), buffers=False)
"""The words that are scored by default: parameters that reach convolutions and linear layers."""

Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], None]


@dataclass
class StreamSummary:
    """Summary of a stream: its samples, those of the first batch, and the name of the data."""

    name: str = ""
    samples: int = 0
    batch: int = 0


def batches_of(
    program: Program, data: Stream, *, batch: int, seen: StreamSummary, progress: Progress | None = None
) -> Iterator[Inputs]:
    """The data in batches that the program takes whole; ``seen`` counts them as they go by.

    Samples that do not fill a batch of a program of a fixed batch size are left out: filled up, they would count twice.

    Raises:
        DataError: no samples, or not as many as a fixed batch holds.
    """
    fixed, total = program.signature.fixed_batch, len(data) if is_sized(data) else None  # type: ignore[arg-type]
    if fixed is not None and total is not None:
        total = total // fixed * fixed
    name = getattr(data, "name", "")
    seen.name = name if isinstance(name, str) else ""
    for part in stream(data, batch=batch, fixed=fixed):
        if fixed is not None and len(part) < fixed:
            continue
        seen.batch = seen.batch or len(part)
        yield part
        seen.samples += len(part)
        if progress is not None:
            progress(seen.samples, total or seen.samples)
    if not seen.samples:
        raise DataError(f"expected at least {fixed or 1} samples, as many as a batch holds, got fewer")
    if is_sized(data) and fixed is None:
        seen.batch = batch


def _seen_as(tensor: Tensor, leaf: Tensor) -> Tensor:
    """The leaf of a site as a tensor of one of its names is laid out in memory."""
    if tensor.shape == leaf.shape and tensor.stride() == leaf.stride():
        return leaf
    return leaf.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


Objective = Callable[[Program, Sequence[Any], Inputs], Tensor]
Term = Callable[[Tensor, Tensor], Tensor]
"""Called with gradient and weight of one storage as float32, which it may overwrite only in the gradient."""


@dataclass(frozen=True)
class MeanLoss:
    """The loss of a batch, as the caller's function gives it: called as ``loss(output, labels)``."""

    loss: Loss

    def __call__(self, program: Program, outputs: Sequence[Any], part: Inputs) -> Tensor:
        """A finite scalar with a gradient.

        Raises:
            DataError: the loss does not take what it is given, or gives something else.
        """
        labels = part.y if part.y is None else part.y.to(program.device)
        return differentiable(_called(self.loss, pytree.tree_unflatten(list(outputs), program.out_spec), labels))


def totals_of(
    program: Program,
    data: Stream,
    *,
    sites: Sequence[MemorySite],
    objective: Objective,
    batch: int,
    term: Term,
    visit: Callable[[Inputs, Sequence[Any]], None] | None = None,
    hook: Hook | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], StreamSummary]:
    """Run the program forward and backward on every batch and sum a term of gradient and weight.

    Memory is only read, no ``.grad`` is written. A storage that the objective does not depend on adds nothing.

    Args:
        visit: called after each batch with its samples and the flat outputs of the program, outside of autograd.
        hook: of the forward passes, see :meth:`Program.run`.
    Returns:
        The sums by name of the storage, float32, of its shape; what went by.
    Raises:
        DataError: see `batches_of` and the objective.
    """
    memory = program.memory()
    for site in sites:
        if site.view is not None or not memory[site.name].is_floating_point():
            raise SiteError(
                f"expected floating-point weights for a score by gradients, got {site.name} of {site.dtype}; narrow "
                "the sites, or use a score without gradients"
            )
    seen = StreamSummary()
    with torch.inference_mode(False), torch.enable_grad():
        totals = {site.name: torch.zeros(site.shape, device=memory[site.name].device) for site in sites}
        leaves = [memory[site.name].detach().requires_grad_() for site in sites]
        for site, leaf in zip(sites, leaves, strict=True):
            memory |= {name: _seen_as(memory[name], leaf) for name in site.names}
        for part in batches_of(program, data, batch=batch, seen=seen, progress=progress):
            outputs = program.run(program.leaves(part), memory, hook=hook)
            value = objective(program, outputs, part)
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
            with torch.no_grad():
                for total, gradient, leaf in zip(totals.values(), gradients, leaves, strict=True):
                    if gradient is not None:
                        total.add_(term(gradient.float(), leaf.detach().float()))
                if visit is not None:
                    visit(part, [_detached(leaf) for leaf in outputs])
    return totals, seen


def summed(
    program: Program,
    data: Stream,
    loss: Loss,
    sites: Memory,
    *,
    batch: int,
    progress: Progress | None,
    score: str,
    term: Term,
    objective: Objective | None = None,
    mean: bool = False,
) -> Scores:
    """Score weights by the sum over batches of a term of gradient and weight, float32.

    Args:
        score: its name.
        objective: what is differentiated; by default the mean loss of a batch.
        mean: divide by the number of samples.
    """
    chosen, judged = sites.select(program), objective or MeanLoss(loss)
    totals, seen = totals_of(program, data, sites=chosen, objective=judged, batch=batch, term=term, progress=progress)
    values = {name: total / seen.samples for name, total in totals.items()} if mean else totals
    return described(values, score=score, program=program, seen=seen, loss=loss)


def described(
    values: Mapping[str, Tensor],
    *,
    score: str,
    program: Program,
    seen: StreamSummary | None = None,
    loss: object = None,
) -> Scores:
    """The scores with where they come from."""
    seen = seen or StreamSummary()
    return Scores(
        values=values,
        score=score,
        data=seen.name,
        n_samples=seen.samples,
        batch=seen.batch,
        loss="" if loss is None else getattr(loss, "__name__", type(loss).__name__),
        fingerprint=program.fingerprint(),
        weights=digest_of({name: tensor for name, tensor in program.memory().items() if name in values}),
    )


def _called(loss: Loss, output: Any, labels: Any) -> object:
    try:
        return loss(output, labels)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        shape = getattr(labels, "shape", None)
        labelled = f"labels of shape {tuple(shape)}" if shape is not None else f"labels of type {type(labels).__name__}"
        labelled = "data without labels" if labels is None else labelled
        raise DataError(
            f"expected a loss(output, labels) that takes what the model and the data give, got {labelled} and {error}"
        ) from error


def differentiable(value: object) -> Tensor:
    """The value, if it can be differentiated.

    Raises:
        DataError: not a finite scalar, or one without a gradient.
    """
    if not isinstance(value, Tensor) or value.dim() or not bool(value.isfinite()):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)
        raise DataError(f"expected a loss that gives one finite number per batch, got {got}; take the mean")
    if not value.requires_grad:
        raise DataError("expected a loss that depends on the weights, got one without a gradient; do not detach it")
    return value


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
