"""Protected values where there is no graph: a model watched operator by operator while it runs."""

from __future__ import annotations

import copy as copying
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hoplon.errors import HoplonWarning
from hoplon.program.call_forms import slow_attention
from hoplon.program.eager import EagerProgram
from hoplon.program.eager_watch import OperatorCall, OperatorWatch
from hoplon.program.memory import StoredWords, unchanged
from hoplon.program.sites import ValueSite
from hoplon.program.words import copies_of, overlapping
from hoplon.protections.base import ValueProtection
from hoplon.protections.values.counter import Count
from hoplon.protections.values.duplicate import agreed

_TIMED_PASSES = 3


@final
class WatchedModel(nn.Module):
    """Runs a model, protections put over the outputs of its operators; its state has the model's names."""

    model: nn.Module

    def __init__(
        self, model: nn.Module, effects: Mapping[str, ValueProtection], counts: Mapping[str, Count] | None = None
    ) -> None:
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, table, getattr(model, table))
        object.__setattr__(self, "model", model)
        self.effects = effects
        self.counts = dict(counts or {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, without gradients."""
        with torch.inference_mode(), slow_attention(), OperatorWatch(self.model, self._protect).watching():
            return self.model(*args, **kwargs)

    def _protect(self, call: OperatorCall) -> None:
        for identity, output in call.outputs():
            name = ValueSite(identity.owner, identity.kind, identity.call, identity.output).name
            if (effect := self.effects.get(name)) is not None:
                count = self.counts.get(name)
                if effect.repeats:
                    output.copy_(agreed(output, lambda: call.op(*call.args, **call.kwargs), count))
                if count is not None:
                    count.add(effect.outside(output))
                effect.apply_(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> WatchedModel:
        return WatchedModel(copying.deepcopy(self.model, memo), self.effects, copying.deepcopy(self.counts, memo))


def watched_model(
    program: EagerProgram, effects: Mapping[str, ValueProtection], counts: Mapping[str, Count], *, copy: bool
) -> WatchedModel:
    """The model of a program in the eager form, its values protected.

    Warns:
        HoplonWarning: how much longer it takes than the model, on the example.
    """
    model = program.model
    if copy:
        with torch.inference_mode(False):  # what is made there has no version counter
            model = copying.deepcopy(model)
        twins = StoredWords.of(model).tensors
        shared = {name for name, met in overlapping(program.tensors).items() if len(met) > 1}
        copies = copies_of({name: program.tensors[name] for name in shared & twins.keys()})
        for name, words in copies.items():  # which copying a parameter parts
            twins[name].data = words
    watched = WatchedModel(model, effects, counts)
    if effects:
        ratio = _seconds(watched, program.example, model) / _seconds(model, program.example, model)
        for count in counts.values():
            count.reset()
        warnings.warn(
            f"{program.name} could not be exported, so every operator passes through Python on its way to its bound: "
            f"{ratio:.1f} times the model's own latency on the example, and it cannot be compiled or exported; "
            "bounds are right for the path through the model that the example took",
            HoplonWarning,
            stacklevel=6,
        )
    return watched


def _seconds(call: Callable[..., Any], example: tuple[tuple[Any, ...], dict[str, Any]], model: nn.Module) -> float:
    """The fastest of a few passes, after which the model is as it was."""
    times = []
    with torch.inference_mode(), unchanged(model):
        for _ in range(_TIMED_PASSES):
            args, kwargs = pytree.tree_map_only(Tensor, torch.clone, example)
            started = time.perf_counter()
            call(*args, **kwargs)
            times.append(time.perf_counter() - started)
    return min(times)
