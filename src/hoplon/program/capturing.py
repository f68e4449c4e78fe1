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
from hoplon.program.memory import WRITTEN_IN_CODE, StoredWords, named_with_share, unchanged
from hoplon.program.program import Program
from hoplon.program.signature import Call, Signature, copied
from hoplon.program.tracing import NotTraceable, no_collection, trace
from hoplon.program.verify import ENOUGH, find_samples, prove_close, prove_equal, samples_of_proof

_LONGEST_REASON = 300  # characters: a condition on many unknown sizes has thousands

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
    batch_axis: int | None = 0,
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
        example: a batch, as a tensor or as a tuple of positional inputs.
        kwargs: keyword inputs.
        name: what reports call the model; the class name by default.
        batch_axis: where the inputs hold their samples; None: the example is one sample, and a pass holds one.
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
    call: Call = (example if isinstance(example, tuple) else (example,), dict(kwargs or {}))
    register_structures(call)
    _require_tensors(call)
    require_plain_inputs(*call)
    if batch_axis is not None:
        _require_batch(call, batch_axis)
    if batch_axis:  # a moved axis is often a view, and kernels choose their order of summation by strides
        call = pytree.tree_map_only(Tensor, lambda leaf: leaf.contiguous(), call)
    ran = _require_running(model, call, batch_axis)
    with slow_attention():
        fixed = 1 if batch_axis is None else None
        signature = Signature.of(label, *_at_least_two(call, batch_axis), axis=batch_axis, fixed_batch=fixed)
        file = None if form == "eager" or decompose else file_of(model, signature)
        program = None if file is None or ran is None else _kept(file, model, call, signature, *ran)
        if program is None:
            program = _in_form(model, call, label, batch_axis, form, decompose)
            if file is not None and program.signature.fixed_batch == fixed:
                keep(program, file)
    if unstruck := {name: row for name, row in program.not_struck().items() if row.reason != WRITTEN_IN_CODE}:
        found = named_with_share(unstruck, program.memory())
        text = f"no fault strikes {found} of {label}; rates of memory faults leave it out, hoplon.inspect lists it"
        warnings.warn(text, HoplonWarning, stacklevel=3)
    return program


def _in_form(
    model: nn.Module, call: Call, label: str, batch_axis: int | None, form: Form, decompose: Collection[str]
) -> Program:
    if form == "eager":
        return _eager(model, call, label, batch_axis)
    try:
        with unchanged(model):
            return _traced(model, call, label, batch_axis, decompose)
    except NotTraceable as error:
        if form == "export":
            raise
        program = _eager(model, call, label, batch_axis)
        text = f"{error}; running it in the eager form, where each fault costs a whole forward of one sample"
        warnings.warn(text, HoplonWarning, stacklevel=4)
        return program


def _kept(file: Path, model: nn.Module, call: Call, signature: Signature, few: Call, output: Any) -> Program | None:
    """The program that an earlier process kept, once it gives what the model gave; None for any other."""
    leaves, spec = pytree.tree_flatten(output)

    @cache
    def exported() -> ExportedProgram:
        with slow_attention(), unchanged(model):
            anew = _traced(model, call, signature.model, signature.axis, ())
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
        import traceback

        traceback.print_exc()
        return None


def _eager(model: nn.Module, call: Call, label: str, axis: int | None) -> EagerProgram:
    one: Call = call
    if axis is not None:
        one = pytree.tree_map_only(Tensor, lambda leaf: leaf.narrow(axis, 0, 1).contiguous(), call)
    return capture_eager(model, one, label, axis)


def _traced(model: nn.Module, call: Call, label: str, axis: int | None, decompose: Collection[str]) -> Program:
    """The model with a free batch, or at the batch size of its example; if that fails too, the first error stands."""
    captured = partial(_captured, model, label=label, axis=axis, decompose=decompose)
    if axis is None:
        return captured(call, fixed_batch=1)
    try:
        return captured(_at_least_two(call, axis), fixed_batch=None)
    except _FixedBatch as error:
        size = _tensors(call)[0].shape[axis]
        try:
            program = captured(call, fixed_batch=size)
        except CaptureError:
            raise error from None
    warnings.warn(
        f"{label} fixes its batch size in its code, so it takes batches of {size} only, as in the example: every pass "
        f"will hold {size} samples",
        HoplonWarning,
        stacklevel=5,
    )
    return program


def _captured(
    model: nn.Module, call: Call, *, label: str, axis: int | None, fixed_batch: int | None, decompose: Collection[str]
) -> Program:
    signature = Signature.of(label, *call, axis=axis, fixed_batch=fixed_batch)
    exported = _export(model, *call, axis=axis if fixed_batch is None else None)
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
            f"{label} with {', '.join(decompose)} opened differs from the model by up to {gap:.2g} in its outputs",
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


def _require_running(model: nn.Module, call: Call, axis: int | None) -> tuple[Call, Any] | None:
    """Run the model once as it is, and once more where PyTorch may have fused parts of it; say so where it did.

    Returns:
        The samples that the proofs take, and what the model gives for them without fused parts; None where it ran on
        all samples of the example alone: its code may fix the batch size.
    """
    few = call if axis is None else _few(call, axis)
    try:
        try:
            output, again = _run(model, few)
        except (Exception, SystemExit):
            if few is call:
                raise
            few, (output, again) = call, _run(model, call)
    except (Exception, SystemExit) as error:  # whatever the user's forward raises
        raise CaptureError(
            f"expected an example that {type(model).__name__} accepts, got inputs of shape {_shapes(call)} "
            f"and from the model {failure_of(error)}; give a batch of real input, with the batch axis first"
        ) from error
    register_structures(output)
    if not _tensors(output):
        raise CaptureError(
            f"expected tensors in the output of {type(model).__name__}, alone or in tuples, lists, dicts or "
            f"dataclasses, got {type(output).__name__}; wrap the model in a module that returns its tensors"
        )
    if any(not equal_bits(*pair) for pair in zip(_tensors(output), _tensors(again), strict=True)):
        warnings.warn(
            f"{type(model).__name__} runs attention by PyTorch's fused kernel for eval mode, which a graph has not; it "
            "is captured with that off (torch.backends.mha.set_fastpath_enabled), and may differ from it in the last "
            "digits",
            HoplonWarning,
            stacklevel=4,
        )
    return None if axis is not None and few is call else (few, again)


def _few(call: Call, axis: int) -> Call:
    """The first samples of a call, as many as the proofs take."""

    def rows(leaf: Tensor) -> Tensor:
        return leaf.index_select(axis, torch.arange(ENOUGH, device=leaf.device) % leaf.shape[axis])

    return pytree.tree_map_only(Tensor, rows, call)  # type: ignore[no-any-return]


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


def _tensors(call: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


def _shapes(call: Any) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in _tensors(call))


def _require_tensors(call: Call) -> None:
    if not _tensors(call):
        raise CaptureError("expected an example with at least one tensor, got none; give a batch of real input")


def _require_batch(call: Call, axis: int) -> None:
    sizes = {leaf.shape[axis] if -leaf.dim() <= axis < leaf.dim() else None for leaf in _tensors(call)}
    if len(sizes) > 1 or None in sizes:
        raise CaptureError(
            f"expected inputs that share a batch axis {axis}, got shapes {_shapes(call)}; name another batch_axis, "
            "or batch_axis=None for an example that is one sample"
        )
    if sizes == {0}:
        raise CaptureError("expected an example of at least one sample, got an empty batch")


def _at_least_two(call: Call, axis: int | None) -> Call:
    """Repeat a batch of one: an export specialises on sizes 0 and 1, so the batch axis would not stay free."""
    if axis is None:
        return call

    def repeated(leaf: Tensor) -> Tensor:
        return torch.cat([leaf, leaf], axis) if leaf.shape[axis] == 1 else leaf

    return pytree.tree_map_only(Tensor, repeated, call)  # type: ignore[no-any-return]


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, axis: int | None) -> ExportedProgram:
    """The model exported with a free batch on ``axis``, or at the shapes of the example where that is None."""
    free = {} if axis is None else {axis: Dim("batch", min=2, max=2**20)}
    shapes = pytree.tree_map(lambda leaf: free if isinstance(leaf, Tensor) and free else None, (args, kwargs))
    named = with_named_inputs(model, args, kwargs)
    try:  # torch prints the graph of an export that fails, thousands of lines of a detector
        with torch.no_grad(), quiet_torch(), no_collection(), redirect_stderr(io.StringIO()) as printed:
            exported = torch.export.export(named, args, kwargs, dynamic_shapes=_by_parameter(named, *shapes))
    except Exception as error:  # whatever torch raises, and the user's forward
        raise _export_error(model, args, error) from error
    sys.stderr.write(printed.getvalue())
    return exported


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes as torch.export wants them: by parameter name, ``*args`` as a tuple, ``**kwargs`` as a dict."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _export_error(model: nn.Module, args: tuple[Any, ...], error: Exception) -> CaptureError:
    text = str(error)
    reason = _first_line(error)
    kind = type(model).__name__
    if "Constraints violated" in text or "specialized" in text or "ConstraintViolation" in type(error).__name__:
        return _FixedBatch(
            f"expected the batch axis of the example (shape {tuple(_tensors(args)[0].shape)}) to be free, got a model "
            f"that fixes it: {reason}; give an example with a batch axis and take the batch size from the input, "
            "not from a constant"
        )
    return NotTraceable(
        f"expected a model that torch.export can trace, got {kind} failing with: {reason}; capture the part that can "
        "be traced (a backbone or a head), or replace control flow that depends on values, .item() and numpy calls "
        "in forward"
    )
