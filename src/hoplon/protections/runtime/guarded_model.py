"""Guards on any model as it is: no capture, no graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn, Self, final

import torch
from torch import Tensor, nn

from hoplon.errors import HoplonError, checked
from hoplon.protections.base import Protection
from hoplon.protections.guards.memory.arena import lay_end_to_end
from hoplon.protections.memory_guard import GuardReport
from hoplon.protections.runtime.bindings import memory_of, tensors_of
from hoplon.protections.runtime.monitor import GuardMonitor
from hoplon.protections.runtime.schedule import When


@checked
def guard(
    model: nn.Module,
    protections: Iterable[Protection],
    *,
    when: When | None = None,
    on_uncorrectable: Callable[[GuardReport], None] | None = None,
    hook: bool = False,
    end_to_end: bool = False,
    leave_out: Collection[str] = (),
) -> GuardedModel:
    """Arm guards on all that a model stores (parameters, buffers, other tensors), which stays where it is.

    Two lines: arm once, then ``check()`` before each batch. Or let a hook check before each forward pass
    (``hook=True``, :meth:`GuardedModel.attach`, or as a context manager). The memory as it is now is taken for
    correct; it is repaired in place.

    Args:
        protections: those that guard memory. Bounds on values need a graph: :func:`hoplon.harden` puts them there.
        when: which check comes before which forward pass; :class:`EveryForward` by default.
            :meth:`GuardedModel.check` is a whole check whatever it says.
        on_uncorrectable: called with the report where memory cannot be repaired; by default
            :class:`hoplon.runtime.UncorrectableMemory` is raised.
        hook: check before each forward pass of the model.
        end_to_end: first move what parameters and buffers hold, which stay the same tensors, to one piece of memory:
            checks of all of it take less time. Views of it made before no longer follow, nor does anything that holds
            its address, such as a captured CUDA graph. Memory that processes share stays where it is. What
            :func:`hoplon.harden` copies lies like that anyway. On the CPU alone.
        leave_out: names of parameters and buffers not to guard, such as buffers that forward writes to: an exponential
            mean, a counter, a cache. In training mode, running statistics are left out anyway.
    Raises:
        HoplonError: no protections, one that guards no memory, a model without memory or with tensors that have no
            words of their own, a name to leave out that it lacks, or scores of another model: other names, shapes or
            weights.
    Source:
        Schmedding et al. (Aspis), Fig. 14.
    Example:
        >>> from hoplon import TMR
        >>> model = nn.Linear(2, 2).eval()
        >>> guarded = guard(model, [TMR()])
        >>> model.bias.data[0] = float("inf")
        >>> guarded.check().corrected
        1
    """
    chosen = tuple(protections)
    root = _uncompiled(model)
    unknown = sorted(set(leave_out) - set(tensors_of(root)))
    if unknown:
        raise HoplonError(f"expected names of parameters or buffers to leave out, got {unknown[0]!r}")
    memory = memory_of(root, leave_out)
    if not any(tensor.numel() for tensor in memory.values()):
        raise HoplonError(f"expected parameters or buffers to guard, got {type(root).__name__} without any")
    if not chosen:
        raise HoplonError("expected at least one protection that guards memory, got none; [hp.TMR()] keeps copies")
    for protection in chosen:
        _require_guard_alone(protection)
        protection.require_made_for(memory)
    if end_to_end:
        lay_end_to_end(root)
    monitor = GuardMonitor(root, chosen, when=when, on_uncorrectable=on_uncorrectable, leave_out=leave_out)
    labels = [label for label, _ in monitor.armed]
    if len(labels) < len(chosen):
        silent = next(protection.label for protection in chosen if protection.label not in labels)
        raise HoplonError(f"expected protections that guard memory, got {silent}, which does not")
    guarded = GuardedModel(model, monitor)
    return guarded.attach() if hook else guarded


@final
@checked
class GuardedModel:
    """A model's guards, from :func:`guard`.

    Attributes:
        model: the guarded model.
        monitor: the guards, when they check and what they found.
    """

    def __init__(self, model: nn.Module, monitor: GuardMonitor) -> None:
        self.model = model
        self.monitor = monitor
        self._shadowed: Any = None

    @property
    def protections(self) -> tuple[Protection, ...]:
        """The protections whose guards are armed on the model."""
        return self.monitor.protections

    def check(self) -> GuardReport:
        """Compare and repair all of the memory.

        Raises:
            UncorrectableMemory: wrong words that cannot be repaired, and no ``on_uncorrectable`` was given.
            StaleGuardError: memory was updated, not hit; nothing was written. Call ``monitor.refresh()``.
            HoplonError: a tensor was replaced, moved, cast, reshaped, added or removed; names it.
        """
        return self.monitor.require_correct(self.monitor.check())

    @property
    def attached(self) -> bool:
        """True if the hook is there."""
        return bool(self._hooks())

    def attach(self) -> Self:
        """Check before each forward pass of the model, when ``when`` says so; twice is once.

        The hook runs also where the model is compiled, before or after: checks stay outside of what the compiler sees.
        A model with the hook cannot be exported.
        """
        if not self.attached:
            self.model.register_forward_pre_hook(self._before)
            self._shadow_forward()
        return self

    def detach(self) -> None:
        """Take the hook away; the guards stay armed for :meth:`check`."""
        for number in self._hooks():
            del self.model._forward_pre_hooks[number]
            self._unshadow_forward()

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _hooks(self) -> list[int]:
        hooks = self.model._forward_pre_hooks
        return [number for number, hook in hooks.items() if getattr(hook, "__self__", None) is self]

    def _before(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.compiler.is_exporting():
            raise HoplonError("expected a model without the hook of its guards, which no graph can carry; detach() it")
        self.monitor.check_due()

    def _shadow_forward(self) -> None:
        """Give the model a ``forward`` of its own: code compiled before the hook came would be used again without it.

        The compiler takes hooks for constant, but not what an instance holds under this name.
        """
        table = self.model.__dict__
        if _uncompiled(self.model) is self.model:
            self._shadowed = table.get("forward")
            table["forward"] = self.model.forward if self._shadowed is None else partial(self._shadowed)

    def _unshadow_forward(self) -> None:
        table = self.model.__dict__
        if _uncompiled(self.model) is self.model:
            del table["forward"]
            if self._shadowed is not None:
                table["forward"] = self._shadowed
            self._shadowed = None

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardedModel:
        """A copy of the model with guards of its own, and with the hook where there is one."""
        self.check()
        twin = GuardedModel.__new__(GuardedModel)
        memo[id(self)] = twin
        twin.model = deepcopy(self.model, memo)
        twin._shadowed = deepcopy(self._shadowed, memo)
        twin.monitor = self.monitor.copied(memo)
        return twin

    def __reduce__(self) -> NoReturn:
        raise HoplonError("expected a model without the hook of its guards to pickle; detach() it, save a state_dict")


def _uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, which has the user's names."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _require_guard_alone(protection: Protection) -> None:
    if protection.is_hardware:
        raise HoplonError(f"expected protections in software, got {protection.label}, which models hardware")
    if type(protection).values is not Protection.values:
        raise HoplonError(
            f"expected protections that guard memory, got {protection.label}, which changes values and needs a graph: "
            "hp.harden(hp.capture(model, example), [...]) takes both"
        )
