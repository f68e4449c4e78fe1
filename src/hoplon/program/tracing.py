"""From an export to the steps of a program: operators, memory, identities."""

from __future__ import annotations

import copyreg
import dataclasses
import gc
import io
import operator
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError, HoplonError
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.call_forms import register_kind, structures_in
from hoplon.program.memory import HELD_BY_NONE, WRITTEN_IN_CODE, StoredWords, Unstruck, is_plain, parts_of
from hoplon.program.operators import canonical_kind, is_passive
from hoplon.program.program import Program, Ref, Step, reached_kinds, tensors_of_export
from hoplon.program.signature import Signature, TensorForm
from hoplon.program.sites import Identity, call_numbers, memory_sites
from hoplon.program.words import by_storage, place_of, put_together, taken_apart


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


@contextmanager
def no_collection() -> Iterator[None]:
    """Have Python look for no cycles: they are looked for at each step of a trace, which makes millions of objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def functional_form(exported: ExportedProgram) -> ExportedProgram:
    """The form without in-place operators, its nodes with the modules that they had in the untouched form.

    A region of its own, such as that of ``torch.autocast``, is a graph inside of the untouched form; torch puts its
    operators into the functional form, and their modules are lost there.
    """
    with quiet_torch(), no_collection():
        functional: ExportedProgram = exported.run_decompositions({})
    regions = {
        node.name: _stacks_of_region(exported.graph_module, node)
        for node in exported.graph.nodes
        if isinstance(node.target, torch._ops.HigherOrderOperator)
    }
    for node in functional.graph.nodes:
        sources = node.meta.get("from_node") or ()
        stacks = next((regions[source.name] for source in sources if source.name in regions), None)
        if stacks and node.op == "call_function" and (queue := stacks.get(canonical_kind(node.target))):
            node.meta["nn_module_stack"] = queue.pop(0)
    return functional


def _stacks_of_region(holder: Any, call: fx.Node) -> dict[str, list[Any]]:
    """By kind of operator, the module stacks of the operators of a region and those inside of it, in their order."""
    found: dict[str, list[Any]] = {}
    for graph in (arg.target for arg in call.args if isinstance(arg, fx.Node) and arg.op == "get_attr"):
        region = getattr(holder, str(graph), None)
        for node in region.graph.nodes if isinstance(region, fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                for kind, stacks in _stacks_of_region(region, node).items():
                    found.setdefault(kind, []).extend(stacks)
            elif node.op == "call_function" and not is_passive(node.target):
                found.setdefault(canonical_kind(node.target), []).append(node.meta.get("nn_module_stack"))
    return found


def trace(
    exported: ExportedProgram, signature: Signature, stored: StoredWords, names: Mapping[str, str] | None = None
) -> Program:
    """The functional form of an export as a program; it runs, but where its samples lie is not known yet.

    Args:
        stored: what the model stores, by the names that memory has in the program.
        names: of what is stored, by name in the export; found by where it lies by default.
    Raises:
        CaptureError: forward writes to its own state, or stores tensors that overlap in part; NotTraceable:
            higher-order control flow.
    """
    try:
        functional = functional_form(exported)
    except RuntimeError as error:
        if "is mutated in the forward" not in str(error):
            raise
        raise _changes_state(str(error).split()[1]) from error
    if functional.graph_signature.buffers_to_mutate:
        written = ", ".join(functional.graph_signature.buffers_to_mutate.values())
        raise _changes_state(written)
    numbers = {node: number for number, node in enumerate(n for n in functional.graph.nodes if n.op != "output")}
    named = identities(functional.graph)
    steps = tuple(_step(node, numbers, named.get(node)) for node in numbers)
    if names is None:
        names = names_in(exported, stored) | names_in(functional, stored)
    input_steps, memory_steps, constants = _placeholders(functional, numbers, names)
    kinds = reached_kinds(steps, memory_steps, input_steps)
    sites, unread = memory_sites(stored.tensors, kinds, stored.tensors.keys() - stored.parameters)
    unheld = {key: value for key, value in tensors_of_export(exported).items() if key not in names and is_plain(value)}
    order = dict.fromkeys(names.get(key, key) for key in tensors_of_export(exported))  # which guards follow
    tensors = unheld | dict(stored.tensors)
    return Program(
        name=signature.model,
        export=exported,
        steps=steps,
        input_steps=input_steps,
        memory_steps=memory_steps,
        names=names,
        tensors={name: tensors[name] for name in (*order, *tensors) if name in tensors},
        constants=constants,
        output_steps=_outputs(functional, numbers),
        signature=signature,
        out_spec=functional.call_spec.out_spec,
        memory_sites=sites,
        unread=unread,
        unstruck={**stored.unstruck, **_unnamed(exported, {*names, *stored.unstruck})},
        batch_ratios=_batch_ratios(numbers, dict(zip(input_steps, signature.leaves, strict=True))),
    )


def _changes_state(names: str) -> CaptureError:
    return CaptureError(
        f"expected a model without state that forward changes, got writes to {names}; make them inputs, or capture it "
        'with form="eager", where each pass begins from the same state'
    )


def names_in(exported: ExportedProgram, stored: StoredWords) -> dict[str, str]:
    """By name in an export, the name under which the model stores the same tensor, where it does."""
    places = {place_of(tensor): name for name, tensor in reversed(list(stored.tensors.items()))}
    found = {}
    for target, tensor in tensors_of_export(exported).items():
        name = target if target in stored.tensors else places.get(place_of(tensor)) if is_plain(tensor) else None
        if name is not None:
            found[target] = name
    return found


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


def _batch_ratios(numbers: Mapping[fx.Node, int], inputs: Mapping[int, Any]) -> dict[int, tuple[tuple[int, int], ...]]:
    """By step, the axes whose size is a multiple of the free batch size, each with the multiple.

    Args:
        inputs: by step, the form of each input; of its length, where that is free, the example has the size.
    """
    batch: set[sympy.Expr] = set()
    known: dict[sympy.Expr, int] = {}
    for node, number in numbers.items():
        if isinstance(form := inputs.get(number), TensorForm):
            sizes = [_expression(size) for size in node.meta["val"].shape]
            if form.axis is not None:
                batch |= sizes[form.axis].free_symbols
            if form.length_axis is not None:
                known |= dict.fromkeys(sizes[form.length_axis].free_symbols, form.shape[form.length_axis])
    if not batch:
        return {}
    (symbol,) = batch
    ratios = {}
    for node, number in numbers.items():
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            sizes = [_expression(size).subs(known) for size in value.shape]
            found = [(axis, size / symbol) for axis, size in enumerate(sizes)]
            held = tuple((axis, int(ratio)) for axis, ratio in found if ratio.is_Integer)
            if held and all(size.is_Integer for axis, size in enumerate(sizes) if axis != held[0][0]):
                ratios[number] = held
    return ratios


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _placeholders(
    exported: ExportedProgram, numbers: Mapping[fx.Node, int], names: Mapping[str, str]
) -> tuple[tuple[int, ...], dict[int, str], dict[int, Any]]:
    by_name = {node.name: number for node, number in numbers.items() if node.op == "placeholder"}
    inputs: list[int] = []
    memory: dict[int, str] = {}
    constants: dict[int, Any] = {}
    for spec in exported.graph_signature.input_specs:
        step, target = by_name[spec.arg.name], str(spec.target)
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(step)
            if isinstance(spec.arg, ConstantArgument):
                constants[step] = spec.arg.value
        elif target in names:
            memory[step] = names[target]
        else:
            constants[step] = exported.state_dict.get(target, exported.constants.get(target))
    return tuple(inputs), memory, constants


def _unnamed(exported: ExportedProgram, named: Collection[str]) -> dict[str, Unstruck]:
    """What operators read and no attribute of the model holds, by name in the export."""
    by_name = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    tensors, found = tensors_of_export(exported), {}
    for spec in exported.graph_signature.input_specs:
        target, users = str(spec.target), by_name[spec.arg.name].users
        if target in tensors and target not in named and users:
            written = all("lift_fresh" in str(user.target) for user in users)
            size = sum(part.nbytes for part in parts_of(tensors[target]))
            found[target] = Unstruck(WRITTEN_IN_CODE if written else HELD_BY_NONE, size)
    return found


def _outputs(exported: ExportedProgram, numbers: Mapping[fx.Node, int]) -> tuple[Any, ...]:
    by_name = {node.name: number for node, number in numbers.items()}
    specs = exported.graph_signature.output_specs
    return tuple(
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else Ref(by_name[spec.arg.name])
        for spec in specs
        if spec.kind is OutputKind.USER_OUTPUT
    )


def save_export(exported: ExportedProgram, file: Any, **options: Any) -> None:
    """Write a ``.pt2`` file that torch can read again; arguments as for ``torch.export.save``.

    Raises:
        HoplonError: a name of a module that torch writes and cannot read.
    """
    stacks = (node.meta.get("nn_module_stack", {}) for node in exported.graph.nodes)
    for name in dict.fromkeys(part for stack in stacks for entry in stack.items() for part in (entry[0], entry[1][0])):
        if not set(",;").isdisjoint(name) or any(name.count(a) != name.count(b) for a, b in ("()", "[]")):
            raise HoplonError(
                "expected names of modules without commas, semicolons and single brackets for a .pt2 file, got "
                f"{name!r}; "
                "torch could not read it again: rename the module"
            )
    torch.export.save(exported, file, **options)


_FOUND = ("layouts", "value_sites", "input_sites", "site_steps", "memory_sites", "unread", "unstruck", "names")


def _packed(program: Program) -> tuple[Any, ...]:
    """A program on its way to another process: the bytes of a ``.pt2`` file, traced there again into the same steps."""
    buffer = io.BytesIO()
    assert program.exported is not None, "a program without an export has another class"
    alone = {name for names in by_storage(program.tensors) if len(names) == 1 for name in names}
    kept = {target: name for target, name in program.names.items() if name in alone}
    with quiet_torch():
        save_export(program.exported, buffer)
        found = {name: getattr(program, name) for name in _FOUND}
        structures = structures_in(program.out_spec) | structures_in(program.signature.spec)
        rest = io.BytesIO()  # what an export does not hold, or parts
        parted = {name: tensor for name, tensor in program.tensors.items() if name not in kept.values()}
        torch.save(taken_apart(parted), rest)
        return _unpacked, (
            tuple(structures),
            buffer.getvalue(),
            rest.getvalue(),
            pickle.dumps((program.signature, found, kept)),
        )


def _unpacked(structures: tuple[type, ...], exported: bytes, rest: bytes, others: bytes) -> Program:
    for kind in structures:
        register_kind(kind)
    with quiet_torch():
        signature, found, kept = pickle.loads(others)  # noqa: S301 -- made by _packed, between processes only
        loaded = torch.export.load(io.BytesIO(exported))
        tensors = tensors_of_export(loaded)
        stored = {name: tensors[target] for target, name in kept.items()}
        stored |= put_together(*torch.load(io.BytesIO(rest), weights_only=True))
        program = trace(loaded, signature, StoredWords(stored, {}, frozenset()), found["names"])
        return dataclasses.replace(program, **found)


copyreg.pickle(Program, _packed)
