"""Replay for programs in eager form: every pass is a whole forward of one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import checked
from hoplon.formats.base import same_bits
from hoplon.injection.replay.golden import Golden, InjectedWords, Injections, ReplayStatistics
from hoplon.injection.replay.replay import Replay
from hoplon.injection.replay.values import GoldenValues, delivered
from hoplon.program.sites import ValueSite


@checked
class EagerReplay(Replay):
    """Replay of a program in eager form: every pass is a forward of the user's model on one sample.

    A word of the table that its input does not reach is reported with equal words before and after, not reached.
    """

    @override
    def golden(self, leaves: Sequence[Any]) -> Golden:
        # nothing but the outputs is kept
        with torch.inference_mode():
            outputs = self.program.run(leaves, hook=self._protect)
        nothing = GoldenValues(self.program, self._protections, {})
        return Golden(leaves, nothing, {}, self.program.samples_first(outputs))

    @override
    def strike_values(
        self, golden: Golden, injections: Mapping[str, Injections]
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        by_step = {self.program.site_steps[name]: name for name in injections}
        words = {name: _unreached(injection) for name, injection in injections.items()}
        self.flagged, self.outvoted = self._no_flags(), self._no_flags()

        def hook(step: int, value: Tensor) -> Tensor:
            if step not in by_step:
                return self._protect(step, value)  # type: ignore[no-any-return]
            name = by_step[step]
            result, changed = self._inject_into(self.program.value_site(name), value, injections[name])
            if changed is not None:
                words[name] = changed
            return result

        with torch.inference_mode():
            outputs = self.program.run(golden.leaves, hook=hook)
        self.statistics += ReplayStatistics(passes=1)
        return self._with_golden_rows(golden, self.program.samples_first(outputs)), words

    @override
    def strike_memory(
        self, golden: Golden, memory: Mapping[str, Tensor], changed: Mapping[str, Tensor | None]
    ) -> list[Any]:
        with torch.inference_mode():
            outputs = self.program.run(golden.leaves, memory, hook=self._protect)
        self.statistics += ReplayStatistics(passes=1)
        return self.program.samples_first(outputs)

    def _inject_into(
        self, site: ValueSite, value: Tensor, injections: Injections
    ) -> tuple[Tensor, InjectedWords | None]:
        """Change words of a value and protect it; leave it alone where it is too small for the element."""
        step = self.program.site_steps[site.name]
        if int(injections.elements.max()) >= value.numel():
            return self._protect(step, value), None
        # a copy as its readers would get it without the fault; no detector reports it
        fault_free = delivered(self._protections, step, value.clone())
        result = (value if self.placement == "before" else fault_free).clone()
        where = torch.unravel_index(injections.elements, result.shape) if result.dim() else ()
        old, before, after = injections.strike(result, where, site.shape)
        if self.placement == "before" and self._repeats(step):
            result[where] = old
            self.outvoted |= (before != after).any()
        if self.placement == "before":
            result = self._protect(step, result)
        return result, InjectedWords(before, after, ~same_bits(result[where], fault_free[where]))


def _unreached(injections: Injections) -> InjectedWords:
    nothing = torch.zeros_like(injections.elements)
    return InjectedWords(nothing, nothing, nothing.bool())
