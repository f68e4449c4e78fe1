"""The graph of a program for lowering: its nodes by site, and parameters, buffers and constants of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

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
