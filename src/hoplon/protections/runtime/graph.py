"""The graph of a program for lowering: its nodes by site, memory of its own, and a function that computes it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from hoplon.program.memory import is_plain
from hoplon.program.operators import canonical_kind, is_passive
from hoplon.program.program import Program
from hoplon.program.sites import Identity
from hoplon.program.tracing import functional_form, identities
from hoplon.program.words import copies_of, overlapping, place_of
from hoplon.protections.guards.memory.arena import end_to_end
from hoplon.protections.runtime.bindings import tensors_of


def graph_with(
    program: Program, wanted: Iterable[str], *, functional: bool = False
) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The untouched form as a graph, or the functional one (where it lacks a wanted site too); its sites' nodes."""
    exported = program.exported
    assert exported is not None, "a program in the eager form has no graph"
    if functional or not set(wanted) <= site_nodes(program, exported.graph).keys():
        exported = functional_form(exported)
    graph_module = exported.module(check_guards=False)
    return graph_module, site_nodes(program, graph_module.graph)


def site_nodes(program: Program, graph: fx.Graph) -> dict[str, fx.Node]:
    """The node of each value site that a graph surely has.

    Call numbers mean the same calls in two forms only where both call an operator equally often in a module.
    """
    steps = [step for step in program.compute_steps() if step.carries and not is_passive(step.op)]
    wanted = Counter((step.owner, canonical_kind(step.op)) for step in steps)
    nodes = {identity: node for node, identity in identities(graph).items()}
    found = Counter((owner, kind) for owner, kind, _ in {(i.owner, i.kind, i.call) for i in nodes})
    return {
        site.name: nodes[identity]
        for site in program.value_sites
        if (identity := Identity(site.owner, site.kind, site.call, site.output)) in nodes
        and found[site.owner, site.kind] == wanted[site.owner, site.kind]
    }


def writes_in_place(node: fx.Node) -> bool:
    """Return True if the operator writes over its input: whoever shares that memory has to see the effect as well."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def is_fresh(node: fx.Node) -> bool:
    """Return True if the operator allocated its result: nobody else can see a change of it."""
    result = node.meta["val"].untyped_storage()._cdata
    inputs = [source.meta.get("val") for source in node.all_input_nodes]
    return all(value.untyped_storage()._cdata != result for value in inputs if isinstance(value, Tensor))


def own_memory(graph_module: fx.GraphModule) -> None:
    """Give a graph copies of its parameters and buffers, end to end; those that share words share them there too."""
    held: dict[str, tuple[dict[str, Any], str, Tensor]] = {}
    for path, module in graph_module.named_modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            held |= {f"{path}.{key}": (table, key, tensor) for key, tensor in table.items() if tensor is not None}
    firsts: dict[tuple[object, ...], str] = {}
    for name, (_, _, tensor) in sorted(held.items()):  # laid out in one way, whatever the order of the modules
        firsts.setdefault(_place(tensor), name)
    tensors = {name: held[name][2] for name in firsts.values()}
    together = overlapping({name: tensor for name, tensor in tensors.items() if is_plain(tensor)})
    alone = [name for name, tensor in tensors.items() if len(together.get(name, "1")) == 1 and _keeps_strides(tensor)]
    copies = dict(zip(alone, end_to_end([tensors[name] for name in alone]), strict=True))
    copies |= copies_of({name: tensor for name, tensor in tensors.items() if name not in copies})
    with torch.inference_mode(False):  # a tensor made there could not require a gradient
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                copies[name] = nn.Parameter(copies[name], tensor.requires_grad)
    for table, key, tensor in held.values():
        table[key] = copies[firsts[_place(tensor)]]


def _keeps_strides(tensor: Tensor) -> bool:
    """Return True if a copy of a tensor is laid out as the tensor is."""
    return not is_plain(tensor) or torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that names of one tensor share."""
    return place_of(tensor) if is_plain(tensor) else (id(tensor),)


def hold_constants(graph_module: fx.GraphModule) -> None:
    """Register the constants of the graph as buffers outside the state, so that they move and are guarded with it."""
    held = set(tensors_of(graph_module))
    for node in graph_module.graph.nodes:
        if node.op != "get_attr" or node.target in held:
            continue
        path, _, leaf = str(node.target).rpartition(".")
        owner = graph_module.get_submodule(path)
        value = getattr(owner, leaf)
        if isinstance(value, Tensor):
            delattr(owner, leaf)
            owner.register_buffer(leaf, value, persistent=False)
            held.add(str(node.target))


def as_function(graph_module: fx.GraphModule) -> tuple[Callable[..., Any], int] | None:
    """A graph as a function of its module and of its inputs, and how many these are: small models run twice as fast.

    The operators are the same. What each pass pays beside them is not: attributes that modules look up in Python, trees
    of inputs and outputs, and calls of operators by their schemas. For calls that no compiler looks into.

    Returns:
        None where inputs are nested, or where there is more than one output.
    """
    *_, output = graph_module.graph.nodes
    inputs, outputs = graph_module._in_spec, graph_module._out_spec
    assert inputs is not None
    assert outputs is not None
    count = inputs.num_leaves
    given, taken = (pytree.tree_unflatten(range(spec.num_leaves), spec) for spec in (inputs, outputs))
    if given != (tuple(range(count)), {}) or taken != 0:
        return None
    graph, copies = fx.Graph(), dict[fx.Node, Any]()
    parts = {"": graph.placeholder("root")}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            copies[node] = _read(graph_module, str(node.target), parts)
        elif node.op == "call_module":
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            module = _read(graph_module, str(node.target), parts)
            copies[node] = graph.call_function(operator.call, (module, *args), kwargs)
        elif node is output:
            graph.output(copies[node.args[0][0]])
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "call_function" and not node.kwargs:
                copies[node].target = _called_directly(node.target)
    return fx.GraphModule(nn.Module(), graph).forward, count


def _read(graph_module: fx.GraphModule, place: str, parts: dict[str, fx.Node]) -> fx.Node:
    """Nodes that read what a module holds out of its tables, each part of the way to it once."""
    path, _, leaf = place.rpartition(".")
    if place not in parts:
        owner, around = graph_module.get_submodule(path), _read(graph_module, path, parts) if path else parts[""]
        tables = [table for table in ("_parameters", "_buffers", "_modules") if leaf in getattr(owner, table)]
        graph = around.graph
        if tables:
            table = graph.call_function(getattr, (around, tables[0]))
            parts[place] = graph.call_function(operator.getitem, (table, leaf))
        else:
            parts[place] = graph.call_function(getattr, (around, leaf))
    return parts[place]


def _called_directly(target: Any) -> Any:
    """The same operator as one of torch's own functions, which take less time than overloads, if it gives a tensor."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = target._schema.name.removeprefix("aten::")
        found = getattr(torch, name, None) or getattr(torch._C._nn, name, None)
        if isinstance(found, BuiltinFunctionType) and [str(one.type) for one in target._schema.returns] == ["Tensor"]:
            return found
    return target
