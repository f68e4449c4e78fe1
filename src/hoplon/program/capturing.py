"""From a user's model to a :class:`Program`: export it, find its samples, prove the result."""

from __future__ import annotations

import inspect
import io
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stderr
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError, HoplonWarning, checked, failure_of
from hoplon.formats.base import equal_bits
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.archives.captures import file_of, keep, kept
from hoplon.program.call_forms import (
    has_fast_path,
    register_structures,
    require_eval,
    require_plain_inputs,
    slow_attention,
    unwrapped,
    with_named_inputs,
)
from hoplon.program.eager import EagerProgram, capture_eager
from hoplon.program.given.example import (
    Axis,
    Example,
    at_least_two,
    batch_sizes,
    one_sample,
    require_batch,
    shapes_of,
    tensors_in,
)
from hoplon.program.memory import WRITTEN_IN_CODE, StoredWords, named_with_share, unchanged
from hoplon.program.program import Program
from hoplon.program.signature import Axes, Call, Signature, TensorForm, by_axis, copied
from hoplon.program.tracing import NotTraceable, no_collection, trace
from hoplon.program.verify import ENOUGH, Entangled, find_samples, prove_close, prove_equal, samples_of_proof

_LONGEST_REASON = 300  # characters: a condition on many unknown sizes has thousands
_ROUNDING = 1e-3  # relative to the largest output: other shapes sum in other orders, layer after layer

Form = Literal["auto", "export", "eager"]


class _FixedBatch(CaptureError):  # noqa: N818 -- says what the model has
    """The model takes one batch size only."""


@checked
def capture(
    model: nn.Module | ExportedProgram,
    example: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    batch_axis: Axis = 0,
    length_axis: Axis = None,
    form: Form = "auto",
    decompose: Collection[str] = (),
) -> Program:
    """Trace a model once and prove that the trace computes what the model computes.

    The proof: outputs bit-identical to the model's, twice and at two batch sizes; every operator's samples move with
    the samples of the input; no sample influences another.

    A model that takes one batch size only is captured at the size of the example, with a warning: all its passes hold
    that many samples. A model that cannot be exported (control flow that depends on values) runs in the eager form,
    with a warning: every fault costs a whole forward of the model on one sample, and which sites exist is read off
    the example.

    The trace of a large model is kept in the folder ``captures`` of the user's cache (``HOPLON_CACHE``, or
    ``~/.cache/hoplon``), which may be removed at any time, and proven anew wherever it is used; the environment
    variable ``HOPLON_CAPTURES=off`` turns that off.

    Args:
        model: in eval mode; neither copied nor changed, its memory is shared. What ``torch.compile`` or
            ``DataParallel`` wraps is captured without its wrapper, a program of ``torch.export`` as its module.
        example: a batch, as a tensor or as a tuple of positional inputs; or a whole call with its axes as `Example`.
        kwargs: keyword inputs.
        name: what reports call the model; the class name by default.
        batch_axis: where the inputs hold their samples, see `Example`; None: the example is one sample, and a pass
            holds one.
        length_axis: where the inputs hold a length that is free, see `Example`. Sites are those of the example's
            length, faults and profiles take data of that length; the program and what is made of it take any.
        form: "export", "eager", or "auto": exported where that is possible.
        decompose: operators to open so that their parts are sites: "attention" (scaled dot product attention becomes
            two products and a softmax). The numbers change in the last digits; a warning says by how much.
    Raises:
        CaptureError: train mode, no batch axis, not exportable, not deterministic, or samples that influence each
            other; says which and the way out.
    """
    model = unwrapped(model)
    require_eval(model)
    label = name or type(model).__name__
    given = example if isinstance(example, Example) else Example(example, dict(kwargs or {}), batch_axis, length_axis)
    call = given.call
    register_structures(call)
    _require_tensors(call)
    require_plain_inputs(*call)
    axes = given.axes
    require_batch(call, axes)
    # a moved axis is often a view, and kernels choose their order of summation by strides
    call = by_axis(lambda leaf, axis: leaf.contiguous() if axis else leaf, call, axes)
    ran = _require_running(model, call, axes)
    with slow_attention():
        fixed = 1 if axes is None else None
        form_of = partial(Signature.of, label, axes=axes, lengths=given.lengths, positional=_positional(model, call))
        signature = form_of(*at_least_two(call, axes), fixed_batch=fixed)
        file = None if form == "eager" or decompose else file_of(model, signature)
        program = None if file is None or ran is None else _kept(file, model, call, signature, *ran)
        if program is None:
            program = _in_form(model, call, signature, form, decompose, runs_in_others=ran is not None)
            if file is not None and program.signature.fixed_batch == fixed:
                keep(program, file)
    if unstruck := {name: row for name, row in program.not_struck().items() if row.reason != WRITTEN_IN_CODE}:
        found = named_with_share(unstruck, program.memory())
        text = f"no fault strikes {found} of {label}; rates of memory faults leave it out, hoplon.inspect lists it"
        warnings.warn(text, HoplonWarning, stacklevel=3)
    return program


def _in_form(
    model: nn.Module, call: Call, signature: Signature, form: Form, decompose: Collection[str], *, runs_in_others: bool
) -> Program:
    if form == "eager":
        return _eager(model, call, signature)
    try:
        with unchanged(model):
            return _traced(model, call, signature, decompose, runs_in_others=runs_in_others)
    except NotTraceable as error:
        if form == "export":
            raise
        program = _eager(model, call, signature)
        text = f"{error}; running it in the eager form, where each fault costs a whole forward of one sample"
        warnings.warn(text, HoplonWarning, stacklevel=4)
        return program


def _kept(file: Path, model: nn.Module, call: Call, signature: Signature, few: Call, output: Any) -> Program | None:
    """The program that an earlier process kept, once it gives what the model gave; None for any other."""
    leaves, spec = pytree.tree_flatten(output)

    @cache
    def exported() -> ExportedProgram:
        with slow_attention(), unchanged(model):
            anew = _traced(model, call, signature, ())
        if program is None or anew.steps != program.steps:
            raise CaptureError(
                f"expected {signature.model} as it was when its capture was kept in {file}, got other steps; remove "
                "the file and capture again"
            )
        return cast(ExportedProgram, anew.exported)

    program = kept(file, model, signature, spec, exported)
    if program is None:
        return None
    try:
        return find_samples(program, program.input_leaves(*few), wanted=leaves)
    except Exception:  # noqa: BLE001 -- whatever the steps of another model do on this one's inputs
        return None


def _eager(model: nn.Module, call: Call, signature: Signature) -> EagerProgram:
    return capture_eager(model, one_sample(call, signature.axes), signature)


def _traced(
    model: nn.Module, call: Call, signature: Signature, decompose: Collection[str], *, runs_in_others: bool = True
) -> Program:
    """The model with a free batch; at the batch size of its example, or one sample at a time, where it takes no other.

    If that fails too, the first error stands.
    """
    label, axes = signature.model, signature.axes
    captured = partial(_captured, model, decompose=decompose)
    if axes is None:
        return captured(call, signature.at(call, fixed_batch=1))
    size = batch_sizes(call, axes)[0]
    said = fixed = (
        f"{label} fixes its batch size in its code, so it takes batches of {size} only, as in the example: every pass "
        f"will hold {size} samples"
    )
    try:
        if runs_in_others:
            return captured(at_least_two(call, axes), signature)
        program = captured(call, signature.at(call, fixed_batch=size))
    except (_FixedBatch, Entangled) as error:
        where = error.where if isinstance(error, Entangled) else "its code fixes the batch size"
        alone = f"samples of a batch meet inside of {label} ({where}), so every pass will hold one sample"
        ways = [(call, size, fixed)] if isinstance(error, _FixedBatch) else []
        if _gives_alone_what_in_batch(model, call, axes):
            ways.append((one_sample(call, axes), 1, alone))
        for taken, count, text in ways:
            try:
                program, said = captured(taken, signature.at(taken, fixed_batch=count)), text
                break
            except CaptureError:
                continue
        else:
            raise
    warnings.warn(said, HoplonWarning, stacklevel=5)
    return program


def _gives_alone_what_in_batch(model: nn.Module, call: Call, axes: Axes) -> bool:
    """Tell whether the outputs of samples are the same without the others, but for rounding.

    So it is where experts take the tokens of all samples together, and not where a sample is judged by the others.
    """
    size = batch_sizes(call, axes)[0]
    together = tensors_in(_run(model, call)[1])
    for row in range(min(size, ENOUGH)):
        alone = tensors_in(_run(model, one_sample(call, axes, row))[1])
        if len(together) == size * len(alone):  # outputs for each sample side by side, as detectors give them
            own = together[row * len(alone) : (row + 1) * len(alone)]
        else:
            own = [whole[row : row + 1] for whole in together if whole.dim() and len(whole) == size]
        if size < 2 or not own or len(own) != len(alone) or not all(map(_near, own, alone)):
            return False
    return True


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    one, other = one.double(), other.double()
    return torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING * float(one.abs().max()))


def _captured(model: nn.Module, call: Call, signature: Signature, decompose: Collection[str]) -> Program:
    exported = _export(model, call, signature)
    unknown = set(decompose) - set(_DECOMPOSITIONS)
    if unknown:
        raise CaptureError(f"expected decompose out of {', '.join(_DECOMPOSITIONS)}, got {', '.join(sorted(unknown))}")
    if decompose:
        table = {target: rule for key in decompose for target, rule in _DECOMPOSITIONS[key].items()}
        with quiet_torch():
            exported = exported.run_decompositions(table)
    program = trace(exported, signature, StoredWords.of(model))
    leaves = samples_of_proof(signature, program.input_leaves(*call))
    if decompose:
        gap = prove_close(program, model, leaves)
        warnings.warn(
            f"{signature.model} with {', '.join(decompose)} opened differs from the model by up to {gap:.2g} in its "
            "outputs",
            HoplonWarning,
            stacklevel=6,
        )
    else:
        prove_equal(program, model, leaves)
    return find_samples(program, leaves)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention in its parts, as PyTorch documents it."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if boolean else scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)


_DECOMPOSITIONS: dict[str, dict[Any, Callable[..., Any]]] = {
    "attention": {torch.ops.aten.scaled_dot_product_attention.default: _attention},
}


def _require_running(model: nn.Module, call: Call, axes: Axes) -> tuple[Call, Any] | None:
    """Run the model once as it is, and once more where PyTorch may have fused parts of it; say so where it did.

    Returns:
        The samples that the proofs take, and what the model gives for them without fused parts; None where it ran on
        all samples of the example alone: its code may fix the batch size.
    """
    few = _few(call, axes)
    try:
        try:
            output, again = _run(model, few)
        except (Exception, SystemExit):
            if few is call:
                raise
            few, (output, again) = call, _run(model, call)
    except (Exception, SystemExit) as error:  # whatever the user's forward raises
        raise CaptureError(
            f"expected an example that {type(model).__name__} accepts, got inputs of shape {shapes_of(call)} "
            f"and from the model {failure_of(error)}; give a batch of real input, with the batch axis first"
        ) from error
    register_structures(output)
    if not tensors_in(output):
        raise CaptureError(
            f"expected tensors in the output of {type(model).__name__}, alone or in tuples, lists, dicts or "
            f"dataclasses, got {type(output).__name__}; wrap the model in a module that returns its tensors"
        )
    if any(not equal_bits(*pair) for pair in zip(tensors_in(output), tensors_in(again), strict=True)):
        warnings.warn(
            f"{type(model).__name__} runs attention by PyTorch's fused kernel for eval mode, which a graph has not; it "
            "is captured with that off (torch.backends.mha.set_fastpath_enabled), and may differ from it in the last "
            "digits",
            HoplonWarning,
            stacklevel=4,
        )
    return None if axes is not None and few is call else (few, again)


def _few(call: Call, axes: Axes) -> Call:
    """The first samples of a call, as many as the proofs take."""

    def rows(leaf: Tensor, axis: int) -> Tensor:
        return leaf.index_select(axis, torch.arange(ENOUGH, device=leaf.device) % leaf.shape[axis])

    return call if axes is None else by_axis(rows, call, axes)


def _run(model: nn.Module, call: Call) -> tuple[Any, Any]:
    """What a model gives as it is, and without PyTorch's fused kernels."""
    with torch.inference_mode(), unchanged(model):
        own_args, own_kwargs = copied(call)
        output = model(*own_args, **own_kwargs)
        if not has_fast_path(model):
            return output, output
        own_args, own_kwargs = copied(call)
        with slow_attention():
            return output, model(*own_args, **own_kwargs)


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."


def _positional(model: nn.Module, call: Call) -> list[str]:
    """The names of parameters of forward that take positional inputs one by one."""
    bound = inspect.signature(model.forward).bind(*call[0], **call[1])
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    kinds = bound.signature.parameters
    names = list(bound.arguments)[: len(call[0])]
    return names if all(kinds[name].kind not in several for name in names) else []


def _require_tensors(call: Call) -> None:
    if not tensors_in(call):
        raise CaptureError("expected an example with at least one tensor, got none; give a batch of real input")


def _export(model: nn.Module, call: Call, signature: Signature) -> ExportedProgram:
    """The model exported with a free batch, or at the shapes of the example where the signature fixes it."""
    batch, length = Dim("batch", min=2, max=2**20), Dim("length", min=2, max=2**20)

    def free(form: Any) -> dict[int, Any] | None:
        if not isinstance(form, TensorForm):
            return None
        found = {form.length_axis: length} if form.length_axis is not None else {}
        return found | ({form.axis: batch} if form.axis is not None and signature.fixed_batch is None else {}) or None

    args, kwargs = call
    shapes = pytree.tree_unflatten([free(form) for form in signature.leaves], signature.spec)
    named = with_named_inputs(model, args, kwargs)
    try:  # torch prints the graph of an export that fails, thousands of lines of a detector
        with (
            unchanged(model),
            torch.no_grad(),
            quiet_torch(),
            no_collection(),
            redirect_stderr(io.StringIO()) as printed,
        ):
            exported = torch.export.export(named, args, kwargs, dynamic_shapes=_by_parameter(named, *shapes))
    except Exception as error:  # whatever torch raises, and the user's forward
        raise _export_error(model, call, error) from error
    sys.stderr.write(printed.getvalue())
    return exported


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes as torch.export wants them: by parameter name, ``*args`` as a tuple, ``**kwargs`` as a dict."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _export_error(model: nn.Module, call: Call, error: Exception) -> CaptureError:
    text = str(error)
    reason = _first_line(error)
    kind = type(model).__name__
    if "Constraints violated" in text or "specialized" in text or "ConstraintViolation" in type(error).__name__:
        return _FixedBatch(
            f"expected the batch axis of the example (shape {shapes_of(call)}) to be free, got a model that fixes it: "
            f"{reason}; give an example with a batch axis and take the batch size from the input, "
            "not from a constant"
        )
    return NotTraceable(
        f"expected a model that torch.export can trace, got {kind} failing with: {reason}; capture the part that can "
        "be traced (a backbone or a head), or replace control flow that depends on values, .item() and numpy calls "
        "in forward"
    )
