"""From an export to the steps of a program: operators, memory, identities."""

from __future__ import annotations

import copyreg
import dataclasses
import io
import operator
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.operators import canonical_kind, is_passive
from hoplon.program.program import Program, Ref, Step
from hoplon.program.signature import Signature
from hoplon.program.sites import Identity, MemorySite, call_numbers, memory_sites


class NotTraceable(CaptureError):  # noqa: N818 -- says what the model is
    """A model that torch.export cannot turn into plain operators; the eager form can still run it."""


def identities(graph: fx.Graph) -> dict[fx.Node, Identity]:
    """The identity of every node of a graph that is an operator's output, views and copies left out.

    The same in the raw and the functional form. For an operator with several outputs the nodes are its ``getitem``.
    """
    numbers = call_numbers()
    found: dict[fx.Node, Identity] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_passive(node.target):
            continue
        value = node.meta.get("val")
        owner, kind = owner_of(node), canonical_kind(node.target)
        if isinstance(value, Tensor):
            found[node] = Identity(owner, kind, next(numbers[owner, kind]), 0)
        elif isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value):
            call = next(numbers[owner, kind])
            for user in node.users:
                if user.target is operator.getitem:
                    found[user] = Identity(owner, kind, call, int(user.args[1]))
    return found


def owner_of(node: fx.Node) -> str:
    """The innermost module path of a node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = next(reversed(stack.values()))
    return str(path)


def trace(exported: ExportedProgram, signature: Signature) -> Program:
    """The functional form of an export as a program; it runs, but where its samples lie is not known yet.

    Raises:
        CaptureError: forward writes to its own state; NotTraceable: higher-order control flow.
    """
    with quiet_torch():
        functional = exported.run_decompositions({})
    if functional.graph_signature.buffers_to_mutate:
        names = ", ".join(functional.graph_signature.buffers_to_mutate.values())
        raise CaptureError(
            f"expected a model without state that forward changes, got writes to {names}; make them inputs"
        )
    nodes = list(functional.graph.nodes)
    numbers = {node: number for number, node in enumerate(n for n in nodes if n.op != "output")}
    named = identities(functional.graph)
    input_steps, memory_steps, constants = _placeholders(functional, numbers)
    memory_sites, unread = _memory_sites(functional, memory_steps, nodes)
    return Program(
        name=signature.model,
        exported=exported,
        steps=tuple(_step(node, numbers, named.get(node)) for node in numbers),
        input_steps=input_steps,
        memory_steps=memory_steps,
        constants=constants,
        output_steps=_outputs(functional, numbers),
        signature=signature,
        out_spec=functional.call_spec.out_spec,
        memory_sites=memory_sites,
        unread=unread,
        batch_ratios=_batch_ratios(functional, numbers),
    )


def _step(node: fx.Node, numbers: Mapping[fx.Node, int], identity: Identity | None) -> Step:
    if node.op == "placeholder":
        return Step(numbers[node], node.name, None, (), {}, ())
    if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
        raise NotTraceable(
            f"expected a model of plain operators, got {node.op} {node.target} in {owner_of(node) or 'the model'}; "
            "replace torch.cond and other higher-order control flow by tensor arithmetic"
        )

    def template(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return Ref(numbers[item])
        if isinstance(item, (tuple, list)):
            return [template(part) for part in item]
        return item

    args = tuple(template(arg) for arg in node.args)
    kwargs = {key: template(arg) for key, arg in node.kwargs.items()}
    reads = tuple(numbers[source] for source in node.all_input_nodes)
    value = node.meta.get("val")
    carries = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    assert callable(node.target)
    return Step(numbers[node], node.name, node.target, args, kwargs, reads, carries, owner_of(node), identity)


def _batch_ratios(exported: ExportedProgram, numbers: Mapping[fx.Node, int]) -> dict[int, tuple[tuple[int, int], ...]]:
    """By step, the axes whose size is a multiple of the free batch size, each with the multiple."""
    symbols = {
        symbol
        for node in numbers
        if node.op == "placeholder" and isinstance(value := node.meta.get("val"), Tensor)
        for size in value.shape
        for symbol in _expression(size).free_symbols
    }
    if not symbols:
        return {}
    (symbol,) = symbols
    ratios = {}
    for node, number in numbers.items():
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            found = [(axis, _expression(size) / symbol) for axis, size in enumerate(value.shape)]
            held = tuple((axis, int(ratio)) for axis, ratio in found if ratio.is_Integer)
            if held and all(
                size.is_Integer for axis, size in enumerate(map(_expression, value.shape)) if axis != held[0][0]
            ):
                ratios[number] = held
    return ratios


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _placeholders(
    exported: ExportedProgram, numbers: Mapping[fx.Node, int]
) -> tuple[tuple[int, ...], dict[int, str], dict[int, Any]]:
    by_name = {node.name: number for node, number in numbers.items() if node.op == "placeholder"}
    inputs: list[int] = []
    memory: dict[int, str] = {}
    constants: dict[int, Any] = {}
    for spec in exported.graph_signature.input_specs:
        step = by_name[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(step)
            if isinstance(spec.arg, ConstantArgument):
                constants[step] = spec.arg.value
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            memory[step] = str(spec.target)
        else:
            constants[step] = exported.constants[str(spec.target)]
    return tuple(inputs), memory, constants


def _memory_sites(
    exported: ExportedProgram, memory_steps: Mapping[int, str], nodes: Sequence[fx.Node]
) -> tuple[tuple[MemorySite, ...], tuple[str, ...]]:
    """One site per storage, in the order of the model's state, and the names of storages that nothing reads."""
    state = {**exported.constants, **exported.state_dict}
    tensors: dict[str, Tensor] = {name: state[name] for name in memory_steps.values()}
    by_storage: dict[tuple[int, int], list[str]] = {}
    for step, name in memory_steps.items():
        tensor = tensors[name]
        key = (tensor.untyped_storage().data_ptr(), 0) if tensor.numel() else (-1, step)
        by_storage.setdefault(key, []).append(name)
    kinds = {name: _reader_kinds(nodes[step]) for step, name in memory_steps.items()}
    buffers = set(exported.graph_signature.inputs_to_buffers.values())
    for names in by_storage.values():
        views = {(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in map(tensors.__getitem__, names)}
        if len(views) > 1:
            raise CaptureError(
                f"expected names of one storage to show the same tensor, got different views: {', '.join(names)}"
            )
    return memory_sites(by_storage.values(), tensors, kinds, buffers)


def _reader_kinds(node: fx.Node) -> frozenset[str]:
    """The kinds of the operators that read a placeholder, seen through views."""
    kinds: set[str] = set()
    for user in node.users:
        if user.op != "call_function":
            continue
        kinds |= _reader_kinds(user) if is_passive(user.target) else {canonical_kind(user.target)}
    return frozenset(kinds)


def _outputs(exported: ExportedProgram, numbers: Mapping[fx.Node, int]) -> tuple[Any, ...]:
    by_name = {node.name: number for node, number in numbers.items()}
    specs = exported.graph_signature.output_specs
    return tuple(
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else Ref(by_name[spec.arg.name])
        for spec in specs
        if spec.kind is OutputKind.USER_OUTPUT
    )


def _packed(program: Program) -> tuple[Any, ...]:
    """A program on its way to another process: the bytes of a ``.pt2`` file, traced there again into the same steps."""
    buffer = io.BytesIO()
    assert program.exported is not None, "a program without an export has another class"
    found = {name: getattr(program, name) for name in ("layouts", "value_sites", "input_sites", "site_steps")}
    with quiet_torch():
        torch.export.save(program.exported, buffer)
        return _unpacked, (buffer.getvalue(), pickle.dumps((program.signature, found)))


def _unpacked(exported: bytes, rest: bytes) -> Program:
    with quiet_torch():
        signature, found = pickle.loads(rest)  # noqa: S301 -- made by _packed, between processes only
        return dataclasses.replace(trace(torch.export.load(io.BytesIO(exported)), signature), **found)


copyreg.pickle(Program, _packed)
