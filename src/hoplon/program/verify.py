"""The proof that a captured program computes what the model computes, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError
from hoplon.formats.base import equal_bits
from hoplon.program.layout import BatchLayout, Layout, WholeLayout, folds, moves_with, trial_layouts
from hoplon.program.memory import unchanged
from hoplon.program.operators import operator_name
from hoplon.program.program import Program, Step
from hoplon.program.signature import Signature, copied
from hoplon.program.sites import ValueSite


def prove_equal(program: Program, model: nn.Module, leaves: Sequence[Any]) -> None:
    """Raise unless program and model agree bit for bit, twice, and at two batch sizes where the batch is free.

    Raises:
        CaptureError: names the output that differs, and by how much.
    """
    signature = program.signature
    calls = [leaves]
    if signature.fixed_batch is None:
        size = _batch(signature, leaves)
        calls.append(_take(signature, leaves, torch.arange(size + 1) % size))
    with torch.inference_mode():
        for call in calls:
            for number, first, second, ours in _outputs(program, model, call):
                require_deterministic(number, first, second, program.steps)
                if not equal_bits(first, ours):
                    raise CaptureError(
                        f"expected output {number} of the trace to equal the model's bit for bit, got a largest "
                        f"difference of {_gap(first, ours):.3g}; the model runs other kernels than its trace; "
                        'capture it with form="eager"'
                    )


def require_deterministic(number: int, first: Tensor, second: Tensor, steps: Sequence[Step]) -> None:
    """Raise unless two runs on one input gave the same output; ``steps`` are those of the model.

    Raises:
        CaptureError: they did not; names the operators that draw random numbers.
    """
    if first.shape == second.shape and equal_bits(first, second):
        return
    drawing = [step for step in steps if torch.Tag.nondeterministic_seeded in getattr(step.op, "tags", ())]
    names = dict.fromkeys(f"{operator_name(step.op)} in {step.owner or 'the model'}" for step in drawing)
    way = f"remove {', '.join(names)}, random in eval mode too" if names else "remove randomness from forward"
    raise CaptureError(f"expected a deterministic model, got two different outputs {number} for one input; {way}")


def prove_close(program: Program, model: nn.Module, leaves: Sequence[Any], *, tolerance: float = 1e-2) -> float:
    """The largest difference between program and model, for forms that compute the same in another order.

    Raises:
        CaptureError: a difference above ``tolerance`` times the largest output.
    """
    worst = 0.0
    with torch.inference_mode():
        for number, first, _, ours in _outputs(program, model, leaves):
            gap = _gap(first, ours) if first.shape == ours.shape else float("inf")
            if not gap <= tolerance * max(1.0, float(first.abs().max())):
                raise CaptureError(
                    f"expected output {number} of the opened trace near the model's, got {gap:.3g} apart"
                )
            worst = max(worst, gap)
    return worst


def _outputs(program: Program, model: nn.Module, leaves: Sequence[Any]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    calls = [copied(program.signature.call(leaves)) for _ in range(2)]
    first, second = (_leaves_of(model, *call) for call in calls)
    ours = program.run(leaves)
    for number, (wanted, again, got) in enumerate(zip(first, second, ours, strict=True)):
        if isinstance(wanted, Tensor):
            yield number, wanted, again, got


def _leaves_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    with unchanged(model):
        return pytree.tree_leaves(model(*args, **kwargs))


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max()) if left.numel() else 0.0


def find_samples(program: Program, leaves: Sequence[Any]) -> Program:
    """The program with layouts and value sites: where every operator holds its samples, proved on data.

    Reordering the batch has to reorder the samples of every value that depends on the input; replacing all samples but
    the first has to leave the first one's values alone, bit for bit.

    Raises:
        CaptureError: names the operator at which samples mix or influence each other.
    """
    signature = program.signature
    with torch.inference_mode():
        if signature.fixed_batch is None:
            leaves = _take(signature, leaves, torch.arange(3) % _batch(signature, leaves))
        plain = _all_values(program, leaves)
        if signature.fixed_batch == 1:
            layouts: dict[int, Layout] = {step: WholeLayout() for step in _dependent(program, plain)}
        else:
            layouts = _moving_layouts(program, leaves, plain)
            _prove_apart(program, leaves, plain, layouts)
    return _with_layouts(program, plain, layouts)


def _moving_layouts(program: Program, leaves: Sequence[Any], plain: Mapping[int, Tensor]) -> dict[int, Layout]:
    size = _batch(program.signature, leaves)
    order = torch.arange(size).roll(1)
    moved = _all_values(program, _take(program.signature, leaves, order))
    layouts: dict[int, Layout] = {}
    dependent = set(_dependent(program, plain))
    for step, value in plain.items():
        if value.shape != moved[step].shape:
            raise _apart(program, step, "has another shape once the batch is reordered")
        candidates = list(_candidates(program, step, value, size))
        found = next((c for c in candidates if moves_with(c, value, moved[step], order)), None)
        if found is None and candidates:
            alone = _alone(program, step, plain, layouts, order)
            found = next((c for c in candidates if moves_with(c, value, alone, order)), None)
        if found is not None:
            layouts[step] = found
        elif step in dependent:
            raise _apart(program, step, "mixes samples: reordering the batch does not just reorder them")
    return layouts


def _alone(
    program: Program, number: int, plain: Mapping[int, Tensor], layouts: Mapping[int, Layout], order: Tensor
) -> Any:
    """The value of a step made of the reordered samples of what it reads: no last bits of other operators in it.

    Words of a number read as an integer show as large what is one unit in the last place.
    """
    values: list[Any] = [None] * len(program.steps)
    memory = program.memory()

    def made(step: int) -> Any:
        for read in program.steps[step].reads:
            if read in plain:
                value = plain[read]
                values[read] = layouts[read].take(value, order.to(value.device)) if read in layouts else value
            elif read in program.memory_steps:
                values[read] = memory[program.memory_steps[read]]
            else:
                values[read] = program.constants[read] if read in program.constants else made(read)
        return program.steps[step].run(values)

    return made(number) if program.steps[number].op is not None else plain[number]


def _candidates(program: Program, step: int, value: Tensor, size: int) -> Iterator[BatchLayout]:
    if program.signature.fixed_batch is not None:
        yield from trial_layouts(value.shape, size)
    for axis, ratio in program.batch_ratios.get(step, ()):
        yield from folds(axis, ratio)


def _dependent(program: Program, values: Mapping[int, Tensor]) -> Iterator[int]:
    """The steps with a tensor value that depends on the input."""
    reached = program.reach(program.input_steps)
    return (step for step in values if reached >> step & 1 or step in program.input_steps)


def _prove_apart(
    program: Program, leaves: Sequence[Any], plain: Mapping[int, Tensor], layouts: Mapping[int, Layout]
) -> None:
    axis = _axis(program.signature)
    changed = [_all_but_first_replaced(leaf, axis) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    others = _all_values(program, changed)
    first = torch.zeros(1, dtype=torch.int64)
    for step, layout in layouts.items():
        value, other = plain[step], others[step]
        row = first.to(value.device)
        if value.shape != other.shape or not equal_bits(layout.take(value, row), layout.take(other, row)):
            raise _apart(program, step, "gives its first sample another value when the other samples change")


def _apart(program: Program, step: int, what: str) -> CaptureError:
    owner = program.steps[step].owner or "the model"
    return CaptureError(
        f"expected samples of a batch that do not influence each other, got operator {program.steps[step].label} in "
        f"{owner}, which {what}; remove operators across samples, or capture one sample with batch_axis=None"
    )


def _with_layouts(program: Program, values: Mapping[int, Tensor], layouts: Mapping[int, Layout]) -> Program:
    dependent = set(_dependent(program, values))
    forms = {step: (layout.sample_shape(values[step].shape), values[step].dtype) for step, layout in layouts.items()}
    sites = {
        step: identity.site(*form)
        for step, form in forms.items()
        if step in dependent and (identity := program.steps[step].identity) is not None
    }
    of_inputs = [step for step in program.input_steps if step in layouts]
    inputs = {step: ValueSite("", "input", number, 0, *forms[step]) for number, step in enumerate(of_inputs)}
    return replace(
        program,
        layouts=layouts,
        value_sites=tuple(sites.values()),
        input_sites=tuple(inputs.values()),
        site_steps={site.name: step for step, site in (*sites.items(), *inputs.items())},
    )


def _all_values(program: Program, leaves: Sequence[Any]) -> dict[int, Tensor]:
    values = {s: leaf for s, leaf in zip(program.input_steps, leaves, strict=True) if isinstance(leaf, Tensor)}

    def keep(step: int, value: Any) -> Any:
        if isinstance(value, Tensor):
            values[step] = value
        return value

    program.run(leaves, hook=keep)
    return values


def _batch(signature: Signature, leaves: Sequence[Any]) -> int:
    """The number of samples in flat inputs."""
    axis = _axis(signature)
    return next(int(leaf.shape[axis]) for leaf in leaves if isinstance(leaf, Tensor))


def _axis(signature: Signature) -> int:
    assert signature.axis is not None, "an input without a batch axis is one sample"
    return signature.axis


def _take(signature: Signature, leaves: Sequence[Any], rows: Tensor) -> list[Any]:
    axis = _axis(signature)
    return [leaf.index_select(axis, rows.to(leaf.device)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _all_but_first_replaced(leaf: Tensor, axis: int) -> Tensor:
    """Other samples become the first one, scaled: a valid input of any dtype, and a different one."""
    first = leaf.narrow(axis, 0, 1)
    other = first.expand_as(leaf).clone()
    if leaf.is_floating_point():
        other.mul_(3)
        other.narrow(axis, 0, 1).copy_(first)
    return other
