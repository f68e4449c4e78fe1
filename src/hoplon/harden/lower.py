"""From a program and its overlay to a module that runs."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Iterable
from typing import Any, Literal, NoReturn, Self, final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from hoplon.eager_program import EagerProgram
from hoplon.errors import HoplonError
from hoplon.harden.bound import BoundValue, clamp_words, clamp_words_
from hoplon.harden.count import Count
from hoplon.harden.duplicate import RepeatedOperator, repeat_node
from hoplon.harden.gradient import passing_gradients
from hoplon.harden.graph import graph_with, hold_constants, is_fresh, own_memory, writes_in_place
from hoplon.harden.watched import WatchedModel, watched_model
from hoplon.memory_guard import GuardReport
from hoplon.overlay import Chain, Overlay, Protection, ValueProtection, overlay
from hoplon.program import Program
from hoplon.quiet import quiet_torch
from hoplon.sites import canonical_kind

Form = Literal["separate", "fused"]


@final
class UncorrectableMemory(HoplonError):  # noqa: N818 -- the name of the outcome
    """A guard found wrong words that it cannot repair; ``report`` says how many and where."""

    def __init__(self, report: GuardReport) -> None:
        super().__init__(
            f"expected memory that its guards can repair, got {report.uncorrectable} uncorrectable words in "
            f"{', '.join(report.where)}; load the weights again with load_state_dict"
        )
        self.report = report


def harden(
    program: Program,
    protections: Iterable[Protection],
    *,
    copy: bool = True,
    form: Form = "separate",
    telemetry: bool = False,
    gradients: bool = False,
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
        on_uncorrectable=on_uncorrectable,
    )


def lower(
    program: Program,
    overlay: Overlay,
    *,
    copy: bool = True,
    form: Form = "separate",
    telemetry: bool = False,
    gradients: bool = False,
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
        on_uncorrectable: called with the report where a check fails for good; the forward pass then goes on. By
            default :class:`UncorrectableMemory` is raised.
    Raises:
        HoplonError: an overlay of another program, one that protects an input, an unknown form, the fused form of a
            program in the eager form, or an operator to run twice that writes over its input.
    Warns:
        HoplonWarning: a program in the eager form; says what watching costs.
    """
    if form not in ("separate", "fused"):
        raise HoplonError(f"expected form 'separate' or 'fused', got {form!r}")
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
        return HardenedModule(watched, overlay, on_uncorrectable=on_uncorrectable)
    graph_module, nodes = graph_with(program, overlay.values, functional=gradients)
    hold_constants(graph_module)
    if copy:
        own_memory(graph_module)
    for name, node in nodes.items():
        node.meta["site"] = name
    for name, effect in overlay.values.items():
        _insert(graph_module, nodes[name], name, effect, counts.get(name), form, gradients=gradients)
    graph_module.recompile()
    return HardenedModule(graph_module, overlay, gradients=gradients, on_uncorrectable=on_uncorrectable)


@final
class HardenedModule(nn.Module):
    """A model with its protections, for inference: called like the model, with the names of its state.

    Before each forward pass the guards check and repair memory. ``to`` and ``load_state_dict`` arm them anew; after any
    other change of the weights call :meth:`refresh`. The forward pass runs without gradients, unless lowered with them.

    Attributes:
        overlay: what was put over the program.
        guards: the armed guards.
        report: findings of the last check.
        alarms: forward passes that a detector (:class:`hoplon.Detect`) had repeated.
        persistent_alarms: those of them that it flagged again: a false alarm, or a fault that stays, as in memory. What
            they gave was delivered.
    """

    overlay: Overlay
    alarms: int
    persistent_alarms: int
    guards: list[Any]
    report: GuardReport
    _runner: fx.GraphModule | WatchedModel
    _armed_on: dict[str, int]

    def __init__(
        self,
        runner: fx.GraphModule | WatchedModel,
        overlay: Overlay,
        *,
        gradients: bool = False,
        on_uncorrectable: Callable[[GuardReport], None] | None = None,
    ) -> None:
        super().__init__()
        # One state under two faces: the user's names here, the graph's get_attr there.
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, table, getattr(runner, table))
        object.__setattr__(self, "_runner", runner)
        self._counts = _counts_of(runner)
        self._detectors = [count for name, count in self._counts.items() if overlay.values[name].detects]
        self.alarms = self.persistent_alarms = 0
        self.overlay = overlay
        self.report = GuardReport()
        self.on_uncorrectable = on_uncorrectable
        self.gradients = gradients
        self.training = False
        self._arm()

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph that runs. The node of each value site carries its name in ``meta["site"]``.

        Raises:
            HoplonError: a model in the eager form has none.
        """
        runner = self._runner
        if not isinstance(runner, fx.GraphModule):
            raise HoplonError("expected a module with a graph, got a model that could not be exported")
        return runner

    @property
    def protections(self) -> tuple[Protection, ...]:
        """What protects it."""
        return self.overlay.protections

    @property
    def outside_counts(self) -> dict[str, int]:
        """By site, the values that protections found wrong, and corrected or flagged, since the last reset.

        Raises:
            HoplonError: nothing is counted; lower with ``telemetry=True``.
        """
        if not self._counts:
            raise HoplonError("expected a module that counts, got one without telemetry; lower with telemetry=True")
        return {name: count.total for name, count in self._counts.items()}

    def reset_counts(self) -> None:
        """Set :attr:`outside_counts` and both numbers of alarms to 0."""
        for count in self._counts.values():
            count.reset()
        self.alarms = self.persistent_alarms = 0

    @property
    def extra_bytes(self) -> int:
        """Memory of the guards, in bytes."""
        return sum(guard.extra_bytes for guard in self.guards)

    def memory(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant by name, live; names that share a storage are all there."""
        return {
            **{name: tensor.detach() for name, tensor in self.named_parameters(remove_duplicate=False)},
            **{name: tensor.detach() for name, tensor in self.named_buffers(remove_duplicate=False)},
        }

    def check(self) -> GuardReport:
        """Let every guard compare and repair; what they found together.

        Raises:
            HoplonError: a tensor was replaced since the guards were armed, so that they watch memory nobody reads.
        """
        self._require_armed()
        self.report = sum((guard.check() for guard in self.guards), GuardReport())
        return self.report

    def refresh(self) -> None:
        """Take the memory as it is now for correct, also where tensors were replaced."""
        self._arm()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Check memory, then run.

        Raises:
            UncorrectableMemory: a guard found what it cannot repair, and no ``on_uncorrectable`` was given.
        """
        if self.guards and self.check().uncorrectable:
            if self.on_uncorrectable is None:
                raise UncorrectableMemory(self.report)
            self.on_uncorrectable(self.report)
        if not self._detectors:
            return self._run(args, kwargs)
        before = self._flagged()
        output = self._run(*pytree.tree_map_only(Tensor, torch.clone, (args, kwargs)))  # the model may change them
        if (after := self._flagged()) != before:
            self.alarms += 1
            output = self._run(args, kwargs)
            self.persistent_alarms += self._flagged() != after
        return output

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            return self._runner.forward(*args, **kwargs)

    def _flagged(self) -> int:
        return sum(count.total for count in self._detectors)

    def train(self, mode: bool = True) -> Self:
        """Refuse train mode; ``train(False)`` and ``eval()`` change nothing."""
        if mode:
            raise HoplonError(
                "expected a hardened module to stay in eval mode, got train(); its graph was captured in eval mode and "
                "its bounds and copies belong to these weights: train the model, then harden it again"
            )
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights and arm the guards on them; the bounds stay those of the profiled weights."""
        result = super().load_state_dict(*args, **kwargs)
        self._arm()
        return result

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._arm()
        return self

    def _arm(self) -> None:
        memory = self.memory()
        self.guards = self.overlay.guards(memory)
        object.__setattr__(self, "_armed_on", {name: tensor.data_ptr() for name, tensor in memory.items()})

    def _require_armed(self) -> None:
        if not self.guards:
            return
        for name, tensor in self.memory().items():
            if self._armed_on.get(name) != tensor.data_ptr():
                raise HoplonError(
                    f"expected the memory that the guards were armed on, got another tensor as {name}; call refresh() "
                    "after replacing a parameter"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> HardenedModule:
        with quiet_torch():
            twin = copying.deepcopy(self._runner, memo)
        twin._non_persistent_buffers_set.update(self._non_persistent_buffers_set)  # which torch forgets
        return HardenedModule(twin, self.overlay, gradients=self.gradients, on_uncorrectable=self.on_uncorrectable)

    def __reduce__(self) -> NoReturn:
        raise HoplonError("expected a hardened module to be built by harden(), got pickling; save its state_dict")


class Effect(nn.Module):
    """A value protection as a node of the graph; ``in_place`` where others have to see its effect, or nobody can."""

    def __init__(
        self,
        name: str,
        effect: ValueProtection,
        count: Count | None,
        *,
        in_place: bool,
        is_relu: bool = False,
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self.site = name
        self.effect = effect
        self.count = count
        self.is_relu = is_relu
        self.in_place = in_place
        self.gradients = gradients

    def forward(self, value: Tensor) -> Tensor:
        """The value as its readers get it."""
        if self.count is not None:
            self.count.add(self.effect.outside(value.relu() if self.is_relu else value))
        if self.gradients and torch.is_grad_enabled():
            return passing_gradients(value.relu() if self.is_relu else value, self.effect)
        return self.effect.apply_(value) if self.in_place else self.effect(value)


def _counts_of(runner: fx.GraphModule | WatchedModel) -> dict[str, Count]:
    if isinstance(runner, WatchedModel):
        return runner.counts
    effects = (child for child in runner.children() if isinstance(child, Effect | RepeatedOperator))
    return {effect.site: effect.count for effect in effects if effect.count is not None}


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
            made = Effect(name, effect, count, in_place=writes_in_place(node), is_relu=True, gradients=gradients)
            replacement = _call(graph_module, made, node.args[0])
        replacement.meta = {**node.meta, "effect": effect}
        node.replace_all_uses_with(replacement)
        graph_module.graph.erase_node(node)
        return
    with graph_module.graph.inserting_after(node):
        in_place = not gradients and (writes_in_place(node) or is_fresh(node))
        made = Effect(name, effect, count, in_place=in_place, gradients=gradients)
        protected = _call(graph_module, made, node)
    own = {key: value for key, value in node.meta.items() if key != "site"}
    protected.meta = {**own, "effect": effect, "protects": name}
    node.replace_all_uses_with(protected, delete_user_cb=lambda user: user is not protected)


def _call(graph_module: fx.GraphModule, made: Effect, value: Any) -> fx.Node:
    """A call of an effect: of a plain function where it has one, since each call of a module costs microseconds."""
    effect = made.effect
    if isinstance(effect, BoundValue) and effect.low >= 0 and made.count is None and not made.gradients:
        function = clamp_words_ if made.in_place else clamp_words
        return graph_module.graph.call_function(function, (value, effect.low, effect.high))
    place = f"_protection_{sum(child.startswith('_protection_') for child in graph_module._modules)}"
    graph_module.add_module(place, made)
    return graph_module.graph.call_module(place, (value,))
