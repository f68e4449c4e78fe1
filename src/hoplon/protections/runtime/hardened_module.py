"""A model with its protections, as a module."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Collection
from typing import Any, NoReturn, Self, final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from hoplon.errors import HoplonError, checked
from hoplon.program._torch_warnings import quiet_torch
from hoplon.protections.base import Overlay, Protection
from hoplon.protections.guards.memory.arena import is_end_to_end, lay_end_to_end
from hoplon.protections.memory_guard import GuardReport
from hoplon.protections.runtime.bindings import tensors_of
from hoplon.protections.runtime.eager_module import WatchedModel
from hoplon.protections.runtime.effect import Effect
from hoplon.protections.runtime.graph import as_function
from hoplon.protections.runtime.monitor import GuardMonitor
from hoplon.protections.runtime.schedule import When
from hoplon.protections.values.counter import Count
from hoplon.protections.values.duplicate import RepeatedOperator


@final
@checked
class HardenedModule(nn.Module):
    """A model with its protections, for inference: called like the model, with the names of its state.

    Before each forward pass, or when its schedule says so, the guards check and repair memory; also where the module is
    compiled: checks stay outside of what the compiler sees. ``to`` and ``load_state_dict`` arm them anew; after any
    other change of the weights call ``monitor.refresh()``. The forward pass runs without gradients, unless lowered
    with them.

    Attributes:
        overlay: what was put over the program.
        monitor: the guards, when they check and what they found.
        alarms: forward passes that a detector (:class:`hoplon.values.Detect`) had repeated.
        persistent_alarms: those of them that it flagged again: a false alarm, or a fault that stays, as in memory. What
            they gave was delivered.
    """

    _runner: fx.GraphModule | WatchedModel

    def __init__(
        self,
        runner: fx.GraphModule | WatchedModel,
        overlay: Overlay,
        *,
        gradients: bool = False,
        when: When | None = None,
        on_uncorrectable: Callable[[GuardReport], None] | None = None,
        bounds: Collection[str] = (),
    ) -> None:
        super().__init__()
        # One state under two faces: the user's names here, the graph's get_attr there.
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, table, getattr(runner, table))
        object.__setattr__(self, "_runner", runner)
        self._direct: tuple[Callable[..., Any], int] | None = None
        self._direct_form: object = None
        self._counts = _counts_of(runner)
        self._detectors = [count for name, count in self._counts.items() if overlay.values[name].detects]
        self.alarms = self.persistent_alarms = 0
        self.overlay = overlay
        self.gradients = gradients
        self.training = False
        root = runner.model if isinstance(runner, WatchedModel) else runner
        self.monitor = GuardMonitor(
            root, overlay.protections, when=when, on_uncorrectable=on_uncorrectable, leave_out=bounds
        )
        self._bounds = frozenset(bounds)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph that runs; where no compiler looks on, its operators by themselves (:func:`as_function`).

        The node of each value site carries its name in ``meta["site"]``.

        Raises:
            HoplonError: a model in the eager form has none.
        """
        runner = self._runner
        if not isinstance(runner, fx.GraphModule):
            raise HoplonError("expected a module with a graph, got a model that could not be exported")
        return runner

    @property
    def protections(self) -> tuple[Protection, ...]:
        """The protections that it was lowered with."""
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

    def memory(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant by name, live; names that share a storage are all there.

        Tensors of bounds, which a graph out of a file has, are none of the model's.
        """
        return {name: tensor.detach() for name, tensor in tensors_of(self).items() if name not in self._bounds}

    def check(self) -> GuardReport:
        """Let every guard compare and repair all of its memory; what they found together.

        What is uncorrectable is in the report; before a forward pass it raises, or goes to ``on_uncorrectable``.

        Raises:
            HoplonError: a tensor was replaced since the guards were armed, so that they watch memory nobody reads.
            StaleGuardError: the memory looks updated, not hit.
        """
        return self.monitor.check()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Check memory if it is time, then run.

        Raises:
            UncorrectableMemory: a guard found what it cannot repair, and no ``on_uncorrectable`` was given.
        """
        if self.monitor.armed:
            self.monitor.check_due()
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
        if torch.is_grad_enabled() and not self.gradients:
            with torch.no_grad():
                return self._run(args, kwargs)
        if torch.compiler.is_compiling() or kwargs:
            return self._runner.forward(*args, **kwargs)
        compiled = type(self._runner).forward  # another one once the graph was changed
        if compiled is not self._direct_form:
            self._direct = as_function(self._runner) if isinstance(self._runner, fx.GraphModule) else None
            self._direct_form = compiled
        if self._direct is None or len(args) != self._direct[1]:
            return self._runner.forward(*args)
        return self._direct[0](self._runner, *args)

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
        self.monitor.arm()
        return result

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        owned = is_end_to_end(self)
        with torch.inference_mode(False):  # what is made there has no version counter, and cannot be trained
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if owned:
            lay_end_to_end(self)
        self.monitor.arm()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HardenedModule:
        with quiet_torch(), torch.inference_mode(False):
            twin = copying.deepcopy(self._runner, memo)
        twin._non_persistent_buffers_set.update(self._non_persistent_buffers_set)  # which torch forgets
        if is_end_to_end(self):
            lay_end_to_end(twin)
        when, on_uncorrectable = self.monitor.when, self.monitor.on_uncorrectable
        return HardenedModule(
            twin, self.overlay, gradients=self.gradients, when=when, on_uncorrectable=on_uncorrectable
        )

    def __reduce__(self) -> NoReturn:
        raise HoplonError("expected a hardened module to be built by harden(), got pickling; save its state_dict")


def _counts_of(runner: fx.GraphModule | WatchedModel) -> dict[str, Count]:
    if isinstance(runner, WatchedModel):
        return runner.counts
    effects = (child for child in runner.children() if isinstance(child, Effect | RepeatedOperator))
    return {effect.site: effect.count for effect in effects if effect.count is not None}
