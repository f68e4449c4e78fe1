"""The proof that a captured program computes what the model computes, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError
from hoplon.formats import equal_bits
from hoplon.program import Program

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def prove(program: Program, model: nn.Module, inputs: Inputs) -> None:
    """Raise unless the program equals the model bit for bit and its samples are independent.

    Raises:
        CaptureError: names the output or operator that differs.
    """
    size = next(leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    three = _take(inputs, torch.arange(3) % size)
    with torch.inference_mode():
        _prove_equal(program, model, inputs)
        _prove_equal(program, model, _take(inputs, torch.arange(size + 1) % size))
        _prove_samples_apart(program, three)


def _prove_equal(program: Program, model: nn.Module, inputs: Inputs) -> None:
    args, kwargs = inputs
    wanted = pytree.tree_leaves(model(*args, **kwargs))
    again = pytree.tree_leaves(model(*args, **kwargs))
    got = program.run(program.input_leaves(args, kwargs))
    for number, (first, second, ours) in enumerate(zip(wanted, again, got, strict=True)):
        if not isinstance(first, Tensor):
            continue
        if not equal_bits(first, second):
            raise CaptureError(
                f"expected a deterministic model, got two different outputs {number} for one input; "
                "remove randomness from forward, or fix the number of threads"
            )
        if not equal_bits(first, ours):
            gap = (first.double() - ours.double()).abs().max().item()
            raise CaptureError(
                f"expected output {number} of the trace to equal the model's bit for bit, got a largest difference of "
                f"{gap:.3g} at batch size {first.shape[0]}; this model takes another code path when traced "
                "(fused attention under no_grad does): call its plain form"
            )


def _prove_samples_apart(program: Program, batch: Inputs) -> None:
    """Moving samples moves every operator's samples; replacing the others leaves a sample's values alone."""
    order = torch.tensor([2, 0, 1])
    plain = _all_values(program, batch)
    moved = _all_values(program, _take(batch, order))
    others_changed = _all_values(program, _replace_all_but_first(batch))
    first = torch.zeros(1, dtype=torch.int64)
    for step, layout in program.layouts.items():
        step_order, step_first = order.to(plain[step].device), first.to(plain[step].device)
        if not equal_bits(layout.take(plain[step], step_order), moved[step]):
            raise CaptureError(_apart_message(program, step, "reordering the batch does not just reorder its samples"))
        if not equal_bits(layout.take(plain[step], step_first), layout.take(others_changed[step], step_first)):
            raise CaptureError(_apart_message(program, step, "its first sample changes with the other samples"))


def _apart_message(program: Program, step: int, what: str) -> str:
    label = program.steps[step].label
    owner = program.steps[step].owner or "the model"
    return (
        f"expected samples of a batch that do not influence each other, got operator {label} in {owner} where {what}; "
        "remove normalisation over the batch and other cross-sample operators"
    )


def _all_values(program: Program, inputs: Inputs) -> dict[int, Tensor]:
    args, kwargs = inputs
    values: dict[int, Tensor] = {}

    def keep(step: int, value: Any) -> Any:
        if step in program.layouts:
            values[step] = value
        return value

    leaves = program.input_leaves(args, kwargs)
    program.run(leaves, hook=keep)
    values.update({s: leaf for s, leaf in zip(program.input_steps, leaves, strict=True) if s in program.layouts})
    return values


def _take(inputs: Inputs, rows: Tensor) -> Inputs:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.index_select(0, rows.to(leaf.device)), inputs)  # type: ignore[no-any-return]


def _replace_all_but_first(inputs: Inputs) -> Inputs:
    """Other samples become the first one, scaled: a valid input of any dtype, and a different one."""

    def replace(leaf: Tensor) -> Tensor:
        other = leaf.clone()
        other[1:] = leaf[:1] * 3 if leaf.is_floating_point() else leaf[:1]
        return other

    return pytree.tree_map_only(Tensor, replace, inputs)  # type: ignore[no-any-return]
