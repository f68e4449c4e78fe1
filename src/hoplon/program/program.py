"""A model captured once: its steps, what in it can be hit, and how to run it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from hoplon.errors import Batch, HoplonError, SiteError, checked
from hoplon.formats.digest import add_words
from hoplon.formats.dtypes import NATIVE_DTYPES
from hoplon.program.inputs import Inputs
from hoplon.program.layout import Layout
from hoplon.program.memory import Unstruck, parts_of
from hoplon.program.operators import canonical_kind, carries_values, is_passive
from hoplon.program.signature import Signature, TensorForm
from hoplon.program.sites import Identity, MemorySite, ValueSite

_S = TypeVar("_S", ValueSite, MemorySite)
Hook = Callable[[int, Any], Any]


@dataclass(frozen=True)
class Ref:
    """A step's argument that is another step's value."""

    step: int


@dataclass(frozen=True)
class Step:
    """One operator call of the functional form.

    ``reads`` are the steps whose values it uses; ``carries`` says whether a change of their values can change its own
    (a shape query reads a tensor and carries nothing of its values). ``identity`` names the output, where it
    is one that a fault can strike. ``kernel``: what is called in the place of ``op``, with the same arguments; it
    computes the same up to rounding.
    """

    index: int
    label: str
    op: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reads: tuple[int, ...]
    carries: bool = True
    owner: str = ""
    identity: Identity | None = None
    kernel: Callable[..., Any] | None = None

    def argument(self, name: str) -> Any:
        """An argument of the call by name, its default if it was not given, None if there is no such argument."""
        schema = getattr(self.op, "_schema", None)
        for position, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name == name:
                given = self.args[position] if position < len(self.args) else self.kwargs.get(name)
                return argument.default_value if given is None else given
        return None

    def run(self, values: Sequence[Any]) -> Any:
        """The operator's result, its arguments taken from ``values``."""
        assert self.op is not None, f"{self.label} is an input, not an operator"
        call = self.kernel or self.op
        if self._places is None:
            return call(*_fill(self.args, values), **_fill(self.kwargs, values))
        arguments = list(self.args)
        for place, step in self._places:
            arguments[place] = values[step]
        return call(*arguments, **self.kwargs)

    @cached_property
    def _places(self) -> tuple[tuple[int, int], ...] | None:
        """Places of the arguments that are values, and their steps; None where some are inside of other arguments."""
        given = [argument for argument in self.args if not isinstance(argument, Ref)]
        if _refers((*given, self.kwargs)):
            return None
        return tuple((place, ref.step) for place, ref in enumerate(self.args) if isinstance(ref, Ref))


def _refers(template: Any) -> bool:
    """True if there is a value in an argument."""
    if isinstance(template, dict):
        template = tuple(template.values())
    return any(map(_refers, template)) if isinstance(template, tuple | list) else isinstance(template, Ref)


def _fill(template: Any, values: Sequence[Any]) -> Any:
    if isinstance(template, Ref):
        return values[template.step]
    if isinstance(template, tuple):
        return tuple(_fill(item, values) for item in template)
    if isinstance(template, list):
        return [_fill(item, values) for item in template]
    if isinstance(template, dict):
        return {key: _fill(item, values) for key, item in template.items()}
    return template


def tensors_of_export(exported: ExportedProgram) -> dict[str, Tensor]:
    """The state and the constants of an export, by its own names."""
    constants = {name: value for name, value in exported.constants.items() if isinstance(value, Tensor)}
    return {**exported.state_dict, **constants}


def reached_kinds(
    steps: Sequence[Step], memory_steps: Mapping[int, str], input_steps: Iterable[int]
) -> dict[str, set[str]]:
    """By name in memory, the kinds of the operators that its values reach without meeting an input on the way."""
    depends = set(input_steps)
    origins = {step: {name} for step, name in memory_steps.items()}
    kinds: dict[str, set[str]] = {name: set() for name in memory_steps.values()}
    for step in steps:
        sources = set().union(*(origins.get(read, set()) for read in step.reads))
        if not step.carries or (step.op is not None and not carries_values(step.op)):
            continue
        passive = step.op is None or is_passive(step.op)
        if not passive:
            for name in sources:
                kinds[name].add(canonical_kind(step.op))
        met = not depends.isdisjoint(step.reads)
        if met:
            depends.add(step.index)
        if sources and (passive or not met):
            origins[step.index] = sources
    return kinds


@checked
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Program:
    """A model traced once by :func:`hoplon.capture`.

    ``steps`` is its functional form: no operator writes to a value of another, so golden values stay golden. The first
    ``steps`` are inputs (``input_steps``) and memory (``memory_steps``: the name under which it is read); both have
    no operator. ``export`` is the untouched form, used for lowering, or
    what makes it. ``names``: of what the model stores, by name in it; ``tensors``: memory by name, shared with the
    user's model and never written to; ``unread``: names in it that nothing reads; ``unstruck``: by name, what is stored
    and has no words that a fault could strike.

    Calling it gives what the model gives, bit for bit, in the same structure.
    """

    name: str
    export: ExportedProgram | Callable[[], ExportedProgram] | None = None
    steps: tuple[Step, ...]
    input_steps: tuple[int, ...]
    memory_steps: Mapping[int, str]
    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    constants: Mapping[int, Any] = field(default_factory=dict)
    output_steps: tuple[Any, ...]
    signature: Signature
    out_spec: pytree.TreeSpec
    memory_sites: tuple[MemorySite, ...]
    unread: tuple[str, ...]
    unstruck: dict[str, Unstruck] = field(default_factory=dict)
    layouts: Mapping[int, Layout] = field(default_factory=dict)
    value_sites: tuple[ValueSite, ...] = ()
    input_sites: tuple[ValueSite, ...] = ()
    site_steps: Mapping[str, int] = field(default_factory=dict)
    batch_ratios: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    @cached_property
    def exported(self) -> ExportedProgram | None:
        """The untouched form; None for a program in the eager form."""
        return self.export if self.export is None or isinstance(self.export, ExportedProgram) else self.export()

    @property
    def sample_steps(self) -> tuple[int, ...]:
        """The input steps that hold samples."""
        pairs = zip(self.input_steps, self.signature.leaves, strict=True)
        return tuple(step for step, form in pairs if isinstance(form, TensorForm))

    @property
    def has_graph(self) -> bool:
        """Whether there is an untouched form."""
        return self.export is not None

    def __repr__(self) -> str:
        """One line: the steps alone would fill pages."""
        inputs = ", ".join(map(str, self.signature.tensors))
        return (
            f"<{type(self).__name__} {self.name}: inputs {inputs}; {len(self.value_sites)} value sites, "
            f"{len(self.memory_sites)} memory sites>"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the functional form on a batch; the result has the structure of the model's."""
        with torch.inference_mode():
            leaves = self.run(self.input_leaves(args, kwargs))
        return pytree.tree_unflatten(leaves, self.out_spec)

    def value_site(self, name: str) -> ValueSite:
        """The value site of this name."""
        return self._site("value", (*self.value_sites, *self.input_sites), name)

    def memory_site(self, name: str) -> MemorySite:
        """The memory site that has this name among its names."""
        return self._site("memory", self.memory_sites, name)

    def _site(self, kind: str, sites: Sequence[_S], name: str) -> _S:
        for site in sites:
            if name in site.names:
                return site
        raise SiteError(f"expected a {kind} site of {self.name}, got {name!r}; they are listed in program.{kind}_sites")

    def memory(self) -> dict[str, Tensor]:
        """Every stored tensor by name (parameters, buffers, attributes, constants): the user's own, not copies.

        They keep their ``requires_grad``, by which some operators choose their kernel (a product with a transposed
        input, say), and with it their last bits.
        """
        return dict(self.tensors)

    def not_struck(self) -> dict[str, Unstruck]:
        """By name, what is stored and no fault strikes: what has no words of its own, and words of no number format."""
        without = [site for site in self.memory_sites if site.dtype not in NATIVE_DTYPES]
        return self.unstruck | {
            site.name: Unstruck(f"{site.dtype}, of no number format; guards repair it", site.of(self.tensors).nbytes)
            for site in without
        }

    @property
    def device(self) -> torch.device:
        """Where the model's memory lies; the CPU for a model without any."""
        return next((tensor.device for tensor in self.memory().values()), torch.device("cpu"))

    def input_leaves(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
        """The flat inputs of a call, checked; see :meth:`Signature.flatten`."""
        return self.signature.flatten(args, kwargs or {})

    def leaves(self, data: Inputs, rows: Tensor | None = None, *, batch: Batch | None = None) -> list[Any]:
        """Flat inputs of one pass over samples of a data set, on the program's device.

        Args:
            rows: shape ``(n,)``, int64, samples; all by default.
            batch: fill up to this many samples by repeating the first; a fixed batch size is always filled up.
        Raises:
            DataError: samples of another shape or dtype, or more than a fixed batch holds.
        """
        chosen = torch.arange(len(data)) if rows is None else rows
        size = self.signature.fixed_batch or batch or len(chosen)
        filled = torch.cat([chosen, chosen[:1].expand(max(0, size - len(chosen)))])
        tensors = [tensor[filled.to(tensor.device)].to(self.device) for tensor in data.tensors]
        return self.signature.from_samples(tensors, data.names)

    def initial_values(self, leaves: Sequence[Any], memory: Mapping[str, Tensor]) -> list[Any]:
        """One slot per step, with inputs, memory and constants filled in."""
        values = self.read_values(leaves, memory)
        return [values.get(step) for step in range(len(self.steps))]

    def read_values(self, leaves: Sequence[Any], memory: Mapping[str, Tensor]) -> dict[int, Any]:
        """By step the values that no operator computes: inputs, memory and constants."""
        inputs = dict(zip(self.input_steps, leaves, strict=True))
        return inputs | {step: memory[name] for step, name in self.memory_steps.items()} | dict(self.constants)

    def run(
        self,
        leaves: Sequence[Any],
        memory: Mapping[str, Tensor] | None = None,
        *,
        hook: Hook | None = None,
    ) -> list[Any]:
        """Run every step and give the flat outputs; values are freed after their last use.

        Args:
            leaves: flat inputs.
            memory: parameters and buffers to use in place of the model's own.
            hook: called with each step's number and value; what it gives back takes the value's place.
        """
        if len(leaves) != len(self.input_steps):
            raise HoplonError(f"expected {len(self.input_steps)} flat inputs of {self.name}, got {len(leaves)}")
        values = self.initial_values(leaves, self.memory() if memory is None else memory)
        for step in self.compute_steps():
            value = step.run(values)
            values[step.index] = value if hook is None else hook(step.index, value)
            for dead in self.last_reads[step.index]:
                values[dead] = None
        return self.outputs_from(values)

    def compute_steps(self) -> Iterator[Step]:
        """The steps that call an operator, in order."""
        return (step for step in self.steps if step.op is not None)

    def reach(self, steps: Iterable[int]) -> int:
        """The steps that a change of the values of some steps can change, as a bit set."""
        return reduce(or_, (self.descendants[step] for step in steps), 0)

    def outputs_from(self, values: Sequence[Any]) -> list[Any]:
        """The flat outputs, picked from the values of all steps."""
        return [values[leaf.step] if isinstance(leaf, Ref) else leaf for leaf in self.output_steps]

    def samples_first(self, outputs: Sequence[Any]) -> list[Any]:
        """Flat outputs with their samples along the first axis, whatever their layout."""
        return [
            self.layouts[leaf.step].samples_first(value)
            if isinstance(leaf, Ref) and leaf.step in self.layouts and isinstance(value, Tensor)
            else value
            for leaf, value in zip(self.output_steps, outputs, strict=True)
        ]

    @cached_property
    def last_reads(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the steps whose values nobody reads after it; outputs are never among them."""
        outputs = {leaf.step for leaf in self.output_steps if isinstance(leaf, Ref)}
        last = {read: step.index for step in self.steps for read in step.reads}
        table: list[list[int]] = [[] for _ in self.steps]
        for read, reader in last.items():
            if read not in outputs:
                table[reader].append(read)
        return tuple(map(tuple, table))

    @cached_property
    def descendants(self) -> tuple[int, ...]:
        """For each step, the steps that a change of its value can change, as a bit set (bit n: step n)."""
        sets = [0] * len(self.steps)
        for index in range(len(self.steps) - 1, -1, -1):
            for reader in self.readers[index]:
                sets[index] |= sets[reader] | (1 << reader)
        return tuple(sets)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the steps that read its values (what reads only its shape is left out)."""
        table: list[list[int]] = [[] for _ in self.steps]
        for step in self.steps:
            if step.carries and (step.op is None or carries_values(step.op)):
                for read in step.reads:
                    table[read].append(step.index)
        return tuple(map(tuple, table))

    def fingerprint(self) -> str:
        """A hash of structure and state: equal for equal programs with equal weights."""
        digest = hashlib.sha256()
        for step in self.steps:
            digest.update(f"{step.label}|{step.args}|{sorted(step.kwargs.items())}\n".encode())
        state = self.tensors
        if isinstance(self.export, ExportedProgram):
            state = tensors_of_export(self.export)
        elif self.export is not None:
            state = {key: self.tensors[name] for key, name in self.names.items()}
        for name, tensor in sorted(state.items()):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
            for part in parts_of(tensor):
                add_words(digest, part)
        return digest.hexdigest()
