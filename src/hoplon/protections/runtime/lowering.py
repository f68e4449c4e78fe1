"""From a program and its overlay to a module that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import fx

from hoplon.errors import HoplonError, checked
from hoplon.program.eager import EagerProgram
from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program
from hoplon.protections.base import Chain, Overlay, Protection, ValueProtection, overlay
from hoplon.protections.memory_guard import GuardReport
from hoplon.protections.runtime.eager_module import watched_model
from hoplon.protections.runtime.effect import Effect
from hoplon.protections.runtime.graph import graph_with, hold_constants, is_fresh, own_memory, writes_in_place
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.schedule import When
from hoplon.protections.values.clamp import BoundValue, clamp_words, clamp_words_
from hoplon.protections.values.counter import Count
from hoplon.protections.values.duplicate import repeat_node

Form = Literal["separate", "fused"]


@checked
def harden(
    program: Program,
    protections: Iterable[Protection],
    *,
    copy: bool = True,
    form: Form = "separate",
    telemetry: bool = False,
    gradients: bool = False,
    when: When | None = None,
    on_uncorrectable: Callable[[GuardReport], None] | None = None,
) -> HardenedModule:
    """The program with these protections, as a module; see :func:`lower` for the options."""
    over = overlay(program, protections)
    return lower(
        program,
        over,
        copy=copy,
        form=form,
        telemetry=telemetry,
        gradients=gradients,
        when=when,
        on_uncorrectable=on_uncorrectable,
    )


@checked
def lower(
    program: Program,
    overlay: Overlay,
    *,
    copy: bool = True,
    form: Form = "separate",
    telemetry: bool = False,
    gradients: bool = False,
    when: When | None = None,
    on_uncorrectable: Callable[[GuardReport], None] | None = None,
) -> HardenedModule:
    """The program with an overlay, as a module for inference.

    It computes what the program computes with the overlay's effects put over the values of its sites, bit for bit. With
    an empty overlay it is the baseline for latencies. It keeps the in-place operators of the user's model, unless a
    protected site exists in the functional form alone; then it is built from that.

    A program in the eager form becomes its model, watched operator by operator while it runs: the same bounds, slower;
    a warning says by how much. Sites are told apart by how often a module calls an operator, so the bounds are right
    for the path through the model that the example took.

    Args:
        copy: give the module its own parameters and buffers. With False it shares those of the user's model: a guard
            then repairs the user's weights, and takes a change that the user makes for a fault.
        form: "separate" bounds the output of each operator. "fused" makes one integer clamp of a ReLU and its
            bound: as fast as the ReLU alone, but a fault in its output comes after the bound.
        telemetry: count the values that each protection finds wrong, in ``corrected``. Off, nothing is added to what
            runs.
        gradients: let gradients pass: through values inside of their bounds unchanged, through others not at all, as
            ``torch.clamp`` does. Outputs are the same; nothing is computed in place, which takes longer.
        when: which check of memory comes before which forward pass; :class:`EveryForward` by default,
            :class:`Rotating` for a slice at a time, :class:`OnDemand`.
        on_uncorrectable: called with the report where a check fails for good; the forward pass then goes on. By
            default :class:`hoplon.runtime.UncorrectableMemory` is raised.
    Raises:
        HoplonError: an overlay of another program, one that protects an input, an unknown form, the fused form of a
            program in the eager form, or an operator to run twice that writes over its input.
    Warns:
        HoplonWarning: a program in the eager form; says what watching costs.
    """
    if overlay.is_hardware:
        raise HoplonError(f"expected protections in software, got {overlay.label}, a model of hardware for campaigns")
    outputs = {site.name for site in program.value_sites}
    foreign = [name for name in overlay.values if name not in outputs]
    if foreign:
        raise HoplonError(f"expected protections of operator outputs of {program.name}, got one of {foreign[0]!r}")
    counts = {name: Count() for name, effect in overlay.values.items() if telemetry or effect.detects}
    if isinstance(program, EagerProgram):
        if form == "fused":
            raise HoplonError(f"expected form 'separate' for {program.name} in the eager form, got 'fused'")
        if gradients:
            raise HoplonError(f"expected an exported program for gradients, got {program.name} in the eager form")
        watched = watched_model(program, overlay.values, counts, copy=copy)
        return HardenedModule(watched, overlay, when=when, on_uncorrectable=on_uncorrectable)
    graph_module, nodes = graph_with(program, overlay.values, functional=gradients)
    hold_constants(graph_module)
    if copy:
        own_memory(graph_module)
    for name, node in nodes.items():
        node.meta["site"] = name
    for name, effect in overlay.values.items():
        _insert(graph_module, nodes[name], name, effect, counts.get(name), form, gradients=gradients)
    graph_module.recompile()
    return HardenedModule(graph_module, overlay, gradients=gradients, when=when, on_uncorrectable=on_uncorrectable)


def _insert(
    graph_module: fx.GraphModule,
    node: fx.Node,
    name: str,
    effect: ValueProtection,
    count: Count | None,
    form: Form,
    *,
    gradients: bool,
) -> None:
    """Put an effect over the value of a node, for everybody who reads it. Its node has it in ``meta["effect"]``."""
    if effect.repeats:
        node = repeat_node(graph_module, node, name, count)
        links = [link for link in (effect.links if isinstance(effect, Chain) else ()) if not link.repeats]
        if not links:
            return
        effect = links[0] if len(links) == 1 else Chain(tuple(links))
    bounds_from_zero = isinstance(effect, BoundValue) and effect.low == 0
    if form == "fused" and bounds_from_zero and canonical_kind(node.target) == "relu":
        with graph_module.graph.inserting_before(node):
            module = Effect(name, effect, count, in_place=writes_in_place(node), is_relu=True, gradients=gradients)
            replacement = _call(graph_module, module, node.args[0])
        replacement.meta = {**node.meta, "effect": effect}
        node.replace_all_uses_with(replacement)
        graph_module.graph.erase_node(node)
        return
    with graph_module.graph.inserting_after(node):
        in_place = not gradients and (writes_in_place(node) or is_fresh(node))
        module = Effect(name, effect, count, in_place=in_place, gradients=gradients)
        protected = _call(graph_module, module, node)
    own = {key: value for key, value in node.meta.items() if key != "site"}
    protected.meta = {**own, "effect": effect, "protects": name}
    node.replace_all_uses_with(protected, delete_user_cb=lambda user: user is not protected)


def _call(graph_module: fx.GraphModule, module: Effect, value: Any) -> fx.Node:
    """A call of an effect: of a plain function where it has one, since each call of a module costs microseconds."""
    effect = module.effect
    if isinstance(effect, BoundValue) and effect.low >= 0 and module.count is None and not module.gradients:
        function = clamp_words_ if module.in_place else clamp_words
        return graph_module.graph.call_function(function, (value, effect.low, effect.high))
    place = f"_protection_{sum(child.startswith('_protection_') for child in graph_module._modules)}"
    graph_module.add_module(place, module)
    return graph_module.graph.call_module(place, (value,))
