"""The proof that a captured program computes what the model computes, sample by sample."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError
from hoplon.formats.base import equal_bits
from hoplon.program.layout import BatchLayout, Layout, WholeLayout, folds, moves_with, trial_layouts
from hoplon.program.memory import unchanged
from hoplon.program.operators import operator_name
from hoplon.program.program import Program, Ref, Step
from hoplon.program.signature import Signature, TensorForm, by_axis, copied
from hoplon.program.sites import ValueSite


class Entangled(CaptureError):  # noqa: N818 -- says what the samples are
    """Samples of a batch meet in an operator; ``where`` names it."""

    where: str = ""


ENOUGH = 3  # of two samples, an operator that turns the batch round gives what one that keeps its order does


def samples_of_proof(signature: Signature, leaves: Sequence[Any]) -> list[Any]:
    """The first three samples, recurring where there are fewer: what a proof needs to tell any order from another.

    All of them at a fixed batch size.
    """
    if signature.fixed_batch is not None:
        return list(leaves)
    return _take(signature, leaves, torch.arange(ENOUGH) % _batch(signature, leaves))


def prove_equal(program: Program, model: nn.Module, leaves: Sequence[Any]) -> None:
    """Raise unless program and model agree bit for bit, twice, and at two batch sizes where the batch is free.

    Raises:
        CaptureError: names the output that differs, and by how much.
    """
    signature = program.signature
    calls = [leaves]
    if signature.fixed_batch is None:
        calls.append(_take(signature, leaves, torch.arange(_batch(signature, leaves) - 1)))
    with torch.inference_mode():
        for call in calls:
            for number, first, second, ours in _outputs(program, model, call, twice=call is leaves):
                require_deterministic(number, first, second, program.steps)
                _require_equal(number, first, ours)


def _require_equal(number: int, first: Tensor, ours: Tensor) -> None:
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
        for number, first, _, ours in _outputs(program, model, leaves, twice=False):
            gap = _gap(first, ours) if first.shape == ours.shape else float("inf")
            if not gap <= tolerance * max(1.0, float(first.abs().max())):
                raise CaptureError(
                    f"expected output {number} of the opened trace near the model's, got {gap:.3g} apart"
                )
            worst = max(worst, gap)
    return worst


def _outputs(
    program: Program, model: nn.Module, leaves: Sequence[Any], *, twice: bool
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """By number, an output tensor of the model, of the model once more where that is asked for, and of the program."""
    first, *others = (_leaves_of(model, *copied(program.signature.call(leaves))) for _ in range(1 + twice))
    second = others[0] if others else first
    ours = program.run(leaves)
    for number, (wanted, again, got) in enumerate(zip(first, second, ours, strict=True)):
        if isinstance(wanted, Tensor):
            yield number, wanted, again, got


def _leaves_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    with unchanged(model):
        return pytree.tree_leaves(model(*args, **kwargs))


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max()) if left.numel() else 0.0


@dataclass(frozen=True)
class _Found:
    """Where a value holds its samples, and the form of one."""

    layout: Layout
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, layout: Layout, value: Tensor) -> Self:
        return cls(layout, layout.sample_shape(value.shape), value.dtype)


def find_samples(program: Program, leaves: Sequence[Any], *, wanted: Sequence[Any] | None = None) -> Program:
    """The program with layouts and value sites: where every operator holds its samples, proved on data.

    Reordering the batch has to reorder the samples of every value that depends on the input; replacing all samples but
    the first has to leave the first one's values alone, bit for bit.

    Args:
        wanted: the model's flat outputs for these inputs, which the program has to give bit for bit.
    Raises:
        CaptureError: names the operator at which samples mix or influence each other, or the output that differs.
    """
    seen: dict[int, Any] = {}
    with torch.inference_mode():
        layouts = _whole_layouts if program.signature.fixed_batch == 1 else _moving_layouts
        found = layouts(program, leaves, seen)
        if wanted is not None:
            values = program.read_values(leaves, program.memory()) | seen
            ours = [values[leaf.step] if isinstance(leaf, Ref) else leaf for leaf in program.output_steps]
            for number, (one, other) in enumerate(zip(wanted, ours, strict=True)):
                if isinstance(one, Tensor) or isinstance(other, Tensor):
                    _require_equal(number, one, other)
    return _with_layouts(program, found)


def _whole_layouts(program: Program, leaves: Sequence[Any], seen: dict[int, Any]) -> dict[int, _Found]:
    return {
        step: _Found.of(WholeLayout(), values[step])
        for step, (values,) in _side_by_side(program, [leaves], seen)
        if _depends(program, step) and isinstance(values[step], Tensor)
    }


def _moving_layouts(program: Program, leaves: Sequence[Any], seen: dict[int, Any]) -> dict[int, _Found]:
    size = _batch(program.signature, leaves)
    order, first = torch.arange(size).roll(1), torch.zeros(1, dtype=torch.int64)
    changed = by_axis(_all_but_first_replaced, list(leaves), program.signature.axes)
    found: dict[int, _Found] = {}
    influenced: CaptureError | None = None
    for step, held in _side_by_side(program, [leaves, _take(program.signature, leaves, order), changed], seen):
        value, other = held[0][step], held[2][step]
        layout = _moving_layout(program, step, held, found, order) if isinstance(value, Tensor) else None
        if layout is None:
            continue
        found[step] = _Found.of(layout, value)
        row = first.to(value.device)
        same = value.shape == other.shape and equal_bits(layout.take(value, row), layout.take(other, row))
        if not same and influenced is None:  # that samples mix says more, also where it shows later
            influenced = _apart(program, step, "gives its first sample another value when the other samples change")
    if influenced is not None:
        raise influenced
    return found


def _moving_layout(
    program: Program, step: int, held: Sequence[Sequence[Any]], found: Mapping[int, _Found], order: Tensor
) -> BatchLayout | None:
    """Where a value holds its samples, or None where it has none.

    Raises:
        CaptureError: the value depends on the input, and reordering the batch does not just reorder it.
    """
    value, moved = held[0][step], held[1][step]
    if value.shape != moved.shape:
        raise _apart(program, step, "has another shape once the batch is reordered")
    candidates = list(_candidates(program, step, value, len(order)))
    layout = next((c for c in candidates if moves_with(c, value, moved, order)), None)
    if layout is None and candidates:
        alone = _alone(program, step, held[0], found, order)
        layout = next((c for c in candidates if moves_with(c, value, alone, order)), None)
    if layout is None and _depends(program, step):
        raise _apart(program, step, "mixes samples: reordering the batch does not just reorder them")
    return layout


def _alone(program: Program, number: int, plain: Sequence[Any], found: Mapping[int, _Found], order: Tensor) -> Any:
    """The value of a step made of the reordered samples of what it reads: no last bits of other operators in it.

    Words of a number read as an integer show as large what is one unit in the last place.
    """
    values: list[Any] = [None] * len(program.steps)

    def made(step: int) -> Any:
        for read in program.steps[step].reads:
            value = plain[read]
            if read in found:
                values[read] = found[read].layout.take(value, order.to(value.device))
            else:  # the parts of what gives several tensors have layouts, it has none
                values[read] = made(read) if _gives_several(program.steps[read]) else value
        return program.steps[step].run(values)

    return made(number) if program.steps[number].op is not None else plain[number]


def _candidates(program: Program, step: int, value: Tensor, size: int) -> Iterator[BatchLayout]:
    if program.signature.fixed_batch is not None:
        yield from trial_layouts(value.shape, size)
    for axis, ratio in program.batch_ratios.get(step, ()):
        yield from folds(axis, ratio)


def _depends(program: Program, step: int) -> bool:
    """Tell whether a step is an input with samples, or its value depends on one."""
    return step in program.sample_steps or bool(program.reach(program.sample_steps) >> step & 1)


def _apart(program: Program, step: int, what: str) -> Entangled:
    owner = program.steps[step].owner or "the model"
    error = Entangled(
        f"expected samples of a batch that do not influence each other, got operator {program.steps[step].label} in "
        f"{owner}, which {what}; remove operators across samples, or capture one sample with batch_axis=None"
    )
    error.where = f"{program.steps[step].label} in {owner}"
    return error


def _with_layouts(program: Program, found: Mapping[int, _Found]) -> Program:
    sites = {
        step: identity.site(one.shape, one.dtype)
        for step, one in found.items()
        if _depends(program, step) and (identity := program.steps[step].identity) is not None
    }
    of_inputs = [(step, found[step]) for step in program.input_steps if step in found]
    inputs = {
        step: ValueSite("", "input", number, 0, one.shape, one.dtype) for number, (step, one) in enumerate(of_inputs)
    }
    return replace(
        program,
        layouts={step: one.layout for step, one in found.items()},
        value_sites=tuple(sites.values()),
        input_sites=tuple(inputs.values()),
        site_steps={site.name: step for step, site in (*sites.items(), *inputs.items())},
    )


def _side_by_side(
    program: Program, batches: Sequence[Sequence[Any]], seen: dict[int, Any]
) -> Iterator[tuple[int, list[list[Any]]]]:
    """Run batches in step: each input and step, with the values of each batch as far as it or a later step needs them.

    All values of a batch together can be more than the memory of the machine.

    Args:
        seen: gets the outputs of the first batch, by step.
    """
    held = [program.initial_values(leaves, program.memory()) for leaves in batches]
    freed = _last_needs(program)
    outputs = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}
    yield from ((number, held) for number in program.input_steps)
    for step in program.compute_steps():
        for values in held:
            values[step.index] = step.run(values)
        if step.index in outputs:
            seen[step.index] = held[0][step.index]
        yield step.index, held
        for values in held:
            for dead in freed.get(step.index, ()):
                values[dead] = None


def _last_needs(program: Program) -> dict[int, list[int]]:
    """For each step, those that nothing needs after it: no reader, nor what makes a reader of several tensors anew."""
    last = {step.index: step.index for step in program.steps}
    for step in reversed(program.steps):
        need = last[step.index] if _gives_several(step) else step.index
        for read in step.reads:
            last[read] = max(last[read], need)
    freed: dict[int, list[int]] = {}
    for number, need in last.items():
        freed.setdefault(need, []).append(number)
    return freed


def _gives_several(step: Step) -> bool:
    """Tell whether an operator gives a list or a tuple."""
    if step.op is None or step.op is operator.getitem:
        return False
    schema = getattr(step.op, "_schema", None)
    return schema is None or len(schema.returns) != 1 or isinstance(schema.returns[0].type, torch.ListType)


def _batch(signature: Signature, leaves: Sequence[Any]) -> int:
    """The number of samples in flat inputs."""
    forms = zip(leaves, signature.leaves, strict=True)
    return next(int(leaf.shape[_axis(form)]) for leaf, form in forms if isinstance(form, TensorForm))


def _axis(form: TensorForm) -> int:
    assert form.axis is not None, "an input without a batch axis is one sample"
    return form.axis


def _take(signature: Signature, leaves: Sequence[Any], rows: Tensor) -> list[Any]:
    return by_axis(  # type: ignore[no-any-return]
        lambda leaf, axis: leaf.index_select(axis, rows.to(leaf.device)), list(leaves), signature.axes
    )


def _all_but_first_replaced(leaf: Tensor, axis: int) -> Tensor:
    """Other samples become the first one, scaled: a valid input of any dtype, and a different one."""
    first = leaf.narrow(axis, 0, 1)
    other = first.expand_as(leaf).clone()
    if leaf.is_floating_point():
        other.mul_(3)
        other.narrow(axis, 0, 1).copy_(first)
    return other
