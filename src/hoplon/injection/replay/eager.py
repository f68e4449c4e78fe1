"""Replay for programs in eager form: whole forwards of one sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hoplon.formats.native import native
from hoplon.injection.replay.golden import Golden, InjectedWords, Injections
from hoplon.injection.replay.replay import Replay
from hoplon.injection.replay.values import GoldenValues
from hoplon.program.sites import ValueSite


class EagerReplay(Replay):
    """The same for a program in eager form: every pass is a forward of the user's model on one sample.

    A word of the table that its input does not reach is reported with equal words before and after, not reached.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        sites = (site for site in self.sites if isinstance(site, ValueSite))
        self._shapes = {self.program.site_steps[site.name]: site.shape for site in sites}

    def golden(self, leaves: Sequence[Any]) -> Golden:
        """Run fault-free; nothing but the outputs is kept."""
        with torch.inference_mode():
            outputs = self.program.run(leaves, hook=self._protect)
        nothing = GoldenValues(self.program, self._protections, {})
        return Golden(leaves, nothing, {}, self.program.samples_first(outputs))

    def strike_values(
        self, golden: Golden, hits: Mapping[str, Injections]
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """One faulty forward."""
        by_step = {self.program.site_steps[name]: (name, hit) for name, hit in hits.items()}
        struck = {name: _unreached(hit) for name, hit in hits.items()}
        self.flagged, self.outvoted = self._no_flags(), self._no_flags()

        def hook(step: int, value: Tensor) -> Tensor:
            if step not in by_step:
                return self._protect(step, value)  # type: ignore[no-any-return]
            name, hit = by_step[step]
            result, met = self._strike_here(step, value, hit)
            if met is not None:
                struck[name] = met
            return result

        with torch.inference_mode():
            outputs = self.program.run(golden.leaves, hook=hook)
        return self._run_again(golden, self.program.samples_first(outputs)), struck

    def strike_memory(
        self,
        golden: Golden,
        memory: Mapping[str, Tensor],
        changed: Iterable[str],
        *,
        entries: Mapping[str, Tensor] | None = None,
    ) -> list[Any]:
        """One forward with changed memory."""
        with torch.inference_mode():
            outputs = self.program.run(golden.leaves, memory, hook=self._protect)
        return self.program.samples_first(outputs)

    def _strike_here(self, step: int, value: Tensor, hit: Injections) -> tuple[Tensor, InjectedWords | None]:
        """The value struck and protected, and what was met; untouched where it is too small for the element."""
        if int(hit.elements.max()) >= value.numel():
            return self._protect(step, value), None
        fault_free = self._fault_free(step, value)
        shape = self._shapes.get(step, tuple(value.shape))
        form, bits = (hit.format or native(value.dtype)).at(hit.elements, shape), native(value.dtype)
        result = (value if self.placement == "before" else fault_free).clone()
        where = torch.unravel_index(hit.elements, result.shape) if result.dim() else ()
        old = result[where]
        new = form.apply(old, hit.keep, hit.flip)
        result[where] = new
        if self.placement == "before":
            if self._repeats(step):
                result[where] = old
                self.outvoted |= (form.words(old) != form.words(new)).any()
            result = self._protect(step, result)
        reached = bits.words(result[where]) != bits.words(fault_free[where])
        return result, InjectedWords(form.words(old), form.words(new), reached)

    def _fault_free(self, step: int, value: Tensor) -> Tensor:
        """A copy as its readers would get it without the fault; raises no alarm."""
        protection = self._protections.get(step)
        return value.clone() if protection is None else protection(value)


def _unreached(hit: Injections) -> InjectedWords:
    nothing = torch.zeros_like(hit.elements)
    return InjectedWords(nothing, nothing, nothing.bool())
