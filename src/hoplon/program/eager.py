"""Models that cannot be exported: the same interface, every pass being a forward of the user's model on one sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from hoplon.errors import checked
from hoplon.program.call_forms import slow_attention
from hoplon.program.eager_watch import OperatorCall, OperatorWatch
from hoplon.program.layout import WholeLayout
from hoplon.program.memory import HELD_BY_NONE, StoredWords, Unstruck, is_wrapper, parts_of, unchanged
from hoplon.program.operators import carries_values
from hoplon.program.program import Hook, Program, Ref, Step, reached_kinds
from hoplon.program.signature import Signature, copied
from hoplon.program.sites import MemorySite, ValueSite, memory_sites
from hoplon.program.verify import require_deterministic
from hoplon.program.words import overlapping, place_of


@final
@checked
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EagerProgram(Program):
    """A program whose passes are forwards of the user's model, one sample each, watched operator by operator.

    ``steps`` are the operator calls on the example: which operators run may depend on the input. A site that an input
    does not reach cannot be struck there; the fault then changes nothing and is recorded as not reached.
    """

    model: nn.Module
    example: tuple[tuple[Any, ...], dict[str, Any]]
    output_axes: tuple[int | None, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as model and example, to be watched there again."""
        return capture_eager, (self.model, self.example, self.signature)

    def run(
        self, leaves: Sequence[Any], memory: Mapping[str, Tensor] | None = None, *, hook: Hook | None = None
    ) -> list[Any]:
        """Run the model; the hook sees the outputs of value sites alone and may replace them."""
        args, kwargs = copied(self.signature.call(leaves))

        def see(call: OperatorCall) -> None:
            for identity, output in call.outputs():
                step = self.site_steps.get(identity.name)
                if step is not None and hook is not None:
                    replaced = hook(step, output)
                    if replaced is not output:
                        output.copy_(replaced)

        def forward() -> Any:
            tables = (self.model.named_parameters, self.model.named_buffers)
            named = {name for table in tables for name, _ in table(remove_duplicate=False)}
            state = {name: tensor for name, tensor in by_name.items() if name in named}
            return functional_call(self.model, state, args, kwargs, tie_weights=False)

        given, gradients = memory or {}, torch.is_grad_enabled()  # gradients flow to what is given by name
        by_name = {name: given[name] for name in given if gradients or self.tensors[name].is_inference()}
        held = {name: tensor for name, tensor in given.items() if name not in by_name}
        with holding(self.tensors, held), unchanged(self.model), slow_attention():
            if hook is None:
                return pytree.tree_leaves(forward())
            with OperatorWatch(self.model, see).watching():
                return pytree.tree_leaves(forward())

    def samples_first(self, outputs: Sequence[Any]) -> list[Any]:
        """The outputs with a first axis of one: that of the batch in the example's, else a new one."""
        axes = [*self.output_axes, *[None] * len(outputs)]
        return [
            _one_first(leaf, axis) if isinstance(leaf, Tensor) else leaf
            for leaf, axis in zip(outputs, axes, strict=False)
        ]


@contextmanager
def holding(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tensors show the memory of others of the same names, whoever holds them, and their own again afterwards."""
    own = [(tensors[name], tensors[name].data, other) for name, other in given.items()]
    try:
        for tensor, _, other in own:
            tensor.data = other
        yield
    finally:
        for tensor, data, _ in own:
            tensor.data = data


def _of_one_sample(site: ValueSite, axis: int | None) -> ValueSite:
    """The site without the batch axis, where it is in its place with size 1: the row-major index stays the same."""
    if axis is None or axis >= len(site.shape) or site.shape[axis] != 1:
        return site
    return replace(site, shape=(*site.shape[:axis], *site.shape[axis + 1 :]))


def _batch_axis(output: Any, axis: int | None) -> int | None:
    """The axis of an output that holds the samples: the inputs' where it has size 1, else another of size 1."""
    if axis is None or not isinstance(output, Tensor):
        return None
    return next((a for a in (axis, *range(output.dim())) if a < output.dim() and output.shape[a] == 1), None)


def _one_first(output: Tensor, axis: int | None) -> Tensor:
    has_it = axis is not None and axis < output.dim() and output.shape[axis] == 1
    return output.movedim(axis, 0) if axis is not None and has_it else output.unsqueeze(0)


def capture_eager(model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], signature: Signature) -> EagerProgram:
    """Watch one forward pass on one sample and make a program of what was seen.

    Args:
        signature: of the inputs, at any batch size.

    Raises:
        CaptureError: two runs on one input differ.
    """
    signature = signature.at(call, fixed_batch=1)
    axis = next((form.axis for form in signature.tensors), None)  # of values too, where they hold one sample
    args, kwargs = seen = copied(call)
    trace = Trace(model, pytree.tree_leaves(seen))
    with torch.inference_mode():
        with unchanged(model), OperatorWatch(model, trace.see).watching():
            first = model(*args, **kwargs)
        args, kwargs = copied(call)
        with unchanged(model), OperatorWatch(model, lambda call: None).watching():  # these may take another kernel
            again = model(*args, **kwargs)
    outputs, repeated = pytree.tree_leaves(first), pytree.tree_leaves(again)
    for number, (one, other) in enumerate(zip(outputs, repeated, strict=True)):
        if isinstance(one, Tensor):
            require_deterministic(number, one, other, trace.steps)
    dependent = trace.dependent()
    sites = {step: _of_one_sample(site, axis) for step, site in trace.sites.items() if step in dependent}
    memory_sites, unread = trace.memory_sites()
    stored = trace.stored
    return EagerProgram(
        name=signature.model,
        steps=tuple(trace.steps),
        input_steps=tuple(range(len(signature.leaves))),
        memory_steps=trace.memory_steps,
        tensors=stored.tensors,
        output_steps=tuple(trace.ref(leaf) for leaf in outputs),
        signature=signature,
        out_spec=pytree.tree_structure(first),
        layouts={step: WholeLayout(None if site is trace.sites[step] else axis) for step, site in sites.items()},
        value_sites=tuple(sites.values()),
        site_steps={site.name: step for step, site in sites.items()},
        memory_sites=memory_sites,
        unread=unread,
        unstruck={**stored.unstruck, **trace.foreign},
        model=model,
        example=call,
        output_axes=tuple(_batch_axis(output, axis) for output in outputs),
    )


_PLAIN = (int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Trace:
    """The operator calls of one forward pass as steps, with who read what."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self.steps: list[Step] = []
        self.sites: dict[int, ValueSite] = {}
        self.memory_steps: dict[int, str] = {}
        self.stored = StoredWords.of(model)
        self.foreign: dict[str, Unstruck] = {}
        self._stored_in: dict[int, dict[int, Tensor]] = {}  # by storage, tensors by their steps
        self._step_of_storage: dict[int, int] = {}  # of what was made, or written to
        self._step_of_view: dict[tuple[object, ...], int] = {}  # of what is stored and seen otherwise
        self._alive: list[Tensor] = []  # so that no storage is freed and its place reused while watching
        self._inputs = len(inputs)
        for number, leaf in enumerate(inputs):
            self._add(f"input_{number}", None, (), [leaf])
        for name, tensor in self.stored.tensors.items():
            step = self._add(name, None, (), [])
            self.memory_steps[step] = name
            self._stored_in.setdefault(_storage(tensor), {})[step] = tensor
        self.steps = [replace(step, carries=True) for step in self.steps]

    def see(self, call: OperatorCall) -> None:
        """Add a step per output; what was written is from now on read from there, in place or not."""
        operands = [leaf for leaf in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        parts = [part for tensor in operands for part in parts_of(tensor)]
        if "lift_fresh" not in str(call.op):
            self._note_foreign(parts)
        reads = {step for tensor in (*operands, *parts) for step in self._sources(tensor)}
        results = [leaf for leaf in pytree.tree_leaves(call.result) if isinstance(leaf, Tensor)]
        before = [(result, self._sources(result)) for result in results]
        arguments = pytree.tree_map(self._argument, (tuple(call.args), dict(call.kwargs)))
        main = self._add(str(call.op), call.op, tuple(sorted(reads)), results, owner=call.owner, arguments=arguments)
        for number, (identity, output) in enumerate(call.outputs()):
            step = main if number == 0 else self._add(f"{call.op}#{number}", call.op, (main,), [output])
            self.sites[step] = identity.site(output.shape, output.dtype)
        for written, previous in before if _writes(call.op) else []:
            if previous and written.nbytes < written.untyped_storage().nbytes():
                part = self._add(f"{call.op} of a part", None, (*previous, main), [written])  # the rest is as it was
                self._step_of_storage[_storage(written)] = part

    def _sources(self, tensor: Tensor) -> tuple[int, ...]:
        """The steps whose values a tensor shows: of who wrote it last, or of the stored tensors with its words."""
        storage = _storage(tensor)
        if (step := self._step_of_storage.get(storage)) is not None:
            return (step,)
        stored = self._stored_in.get(storage, {})
        if len(stored) < 2:
            return tuple(stored)
        place = place_of(tensor)
        if same := tuple(step for step, held in stored.items() if place_of(held) == place):
            return same
        if (view := self._step_of_view.get(place)) is not None:
            return (view,)
        met = overlapping({"": tensor, **{str(step): held for step, held in stored.items()}})[""]
        places = {place_of(stored[int(step)]) for step in met if step}
        return tuple(step for step, held in stored.items() if place_of(held) in places)

    def _note_foreign(self, operands: Sequence[Tensor]) -> None:
        for tensor in operands:
            storage = _storage(tensor)
            if storage not in self._step_of_storage and storage not in self._stored_in and tensor.numel():
                self._alive.append(tensor)
                self._step_of_storage[storage] = step = self._add("unnamed", None, (), [])
                name = f"unnamed_{step}"
                self.foreign[name] = Unstruck(HELD_BY_NONE, tensor.nbytes)

    def _argument(self, leaf: Any) -> Any:
        """What a step says of an argument: who made a tensor, plain values as they are, the type of others."""
        if isinstance(leaf, Tensor):
            steps = self._sources(leaf)
            return Ref(steps[0]) if steps else type(leaf).__name__
        return leaf if isinstance(leaf, _PLAIN) else type(leaf).__name__

    def _add(
        self,
        label: str,
        op: Any,
        reads: tuple[int, ...],
        results: Sequence[Any],
        *,
        owner: str = "",
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> int:
        index = len(self.steps)
        self.steps.append(Step(index, label, op, *arguments, reads, bool(results), owner))
        for tensor in results:
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                storage = _storage(tensor)
                if len(self._stored_in.get(storage, ())) > 1 and not _writes(op):
                    self._step_of_view[place_of(tensor)] = index
                else:
                    self._step_of_storage[storage] = index
        return index

    def ref(self, leaf: Any) -> Any:
        """A flat output as the step that it comes from."""
        return Ref(self._sources(leaf)[0]) if isinstance(leaf, Tensor) else leaf

    def dependent(self) -> set[int]:
        """The steps whose values can change with the input."""
        found = set(range(self._inputs))
        for step in self.steps:
            if not found.isdisjoint(step.reads) and carries_values(step.op):
                found.add(step.index)
        return found

    def memory_sites(self) -> tuple[tuple[MemorySite, ...], tuple[str, ...]]:
        """The sites of stored words that an operator read, and the names of the others."""
        kinds = reached_kinds(self.steps, self.memory_steps, range(self._inputs))
        tensors = self.stored.tensors
        return memory_sites(tensors, kinds, tensors.keys() - self.stored.parameters)


def _writes(op: Any) -> bool:
    schema = getattr(op, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _storage(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided or is_wrapper(tensor):
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)
