"""Replay that recomputes only the region of each feature map that a fault can have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoplon.formats.native import native
from hoplon.injection.replay.golden import Golden, InjectedWords, Injections
from hoplon.injection.replay.kernel_forms import KernelForms, protected
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.replay import Replay
from hoplon.injection.replay.row_dependence import SHAPE_ERRORS, Maps, RowDependence, maps_of_one
from hoplon.injection.replay.sweep import Divergent, Sweep
from hoplon.injection.replay.values import GoldenValues, StepValues
from hoplon.injection.replay.whole_maps import WholeMapPasses
from hoplon.injection.replay.windows import Ints, Pixels, Windows
from hoplon.program.program import Program
from hoplon.protections.base import Overlay


def fits(overlay: Overlay) -> bool:
    """Whether every protection treats a value by the value and its channel alone, and none asks for a second run."""
    return all(effect.local and not effect.detects for effect in overlay.values.values())


@dataclass
class RegionReplay(Replay):
    """Many runs at once, each with one struck word in a feature map, none in a row of its own.

    A sweep takes the runs through the steps as windows: cut out of the golden operands, with what the fault has changed
    put in, through the operator, compared with golden bit by bit; a run without a difference has ended. Runs whose
    window is no longer small go on with whole values, ``batch`` runs to a pass. The outputs are those of a forward of
    the batch with the fault in its row, bit for bit: a form of an operator is used for a shape of windows only if it
    reproduces golden bits (:class:`KernelForms`), and a sample leaves its row only at steps that do not mind.
    """

    _plan: Plan | None = field(default=None, init=False, repr=False)
    _ties: RowDependence | None = field(default=None, init=False, repr=False)
    _agreement: KernelForms = field(default_factory=KernelForms, init=False, repr=False)

    def golden(self, leaves: Sequence[Any]) -> Golden:
        """Run a batch fault-free and keep what replays of ``sites`` will need, feature maps as pixels."""
        if self._plan is None:
            self._settle_on(_shapes(self.program, leaves, self.batch))
        golden, shapes = self._run_golden(leaves)
        if self._plan is not None and shapes != self._plan.shapes:  # one sample alone goes another way than many
            self._settle_on(shapes)
            golden, _ = self._run_golden(leaves)
        return golden

    def _settle_on(self, shapes: Mapping[int, tuple[int, ...]]) -> None:
        self._plan = Plan.of(self.program, self._protections, shapes, self._starts)
        self._ties = RowDependence(self.program, self._protections, self._plan.rules)

    def _run_golden(self, leaves: Sequence[Any]) -> tuple[Golden, Mapping[int, tuple[int, ...]]]:
        """A golden run by the plan, and the shapes that it met."""
        assert self._plan is not None, "golden values come from a plan"
        plan, maps = self._plan, Maps(self.program, self.batch)
        held: dict[int, Any] = dict(zip(self.program.input_steps, leaves, strict=True))
        produced: dict[int, Tensor] = {}
        pixels: dict[int, Pixels] = {}

        def keep(step: int, value: Any) -> Any:
            result = self._under_protection(step, value, produced)
            maps.note(step, result)
            if plan.shapes.get(step) == maps.shapes.get(step) and step in plan.kept:
                pixels[step] = Pixels.of(result)
            elif step in self._kept or not self.program.steps[step].carries:
                held[step] = result
            return result

        for step, value in held.items():
            maps.note(step, value)
            if step in plan.kept and plan.shapes.get(step) == maps.shapes.get(step):
                pixels[step] = Pixels.of(value)
        with torch.inference_mode():
            outputs = self.program.run(leaves, hook=keep)
        values = GoldenValues(self.program, self._protections, held, pixels)
        return Golden(leaves, values, produced, self.program.samples_first(outputs)), maps.shapes

    def covers(self, golden: Golden, site: str) -> bool:
        """Whether runs with a word struck at this site can be taken by :meth:`strike_many`."""
        step = self.program.site_steps[site]
        return step in golden.delivered.pixels and not self._repeats(step)

    def strike_many(
        self, golden: Golden, hits: Mapping[str, Injections], runs: Mapping[str, Tensor], count: int
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """Runs of one word each, any number in one row.

        Args:
            hits: by site name, sites that :meth:`covers`.
            runs: by site name, shape ``(n,)``, int64: the runs that the words belong to, each of ``count`` once.
        Returns:
            The flat outputs, one entry per run, and what each hit met.
        """
        assert self._plan is not None, "golden values come from a plan"
        assert self._ties is not None, "they come with the plan"
        rows = np.zeros(count, dtype=np.int64)
        struck: dict[str, InjectedWords] = {}
        strikes: dict[int, Windows] = {}
        with torch.inference_mode():
            for name, hit in hits.items():
                mine = runs[name].cpu().numpy()
                rows[mine] = hit.rows.cpu().numpy()
                step = self.program.site_steps[name]
                strikes[step], struck[name] = self._windows(step, hit, mine, golden)
            left = Divergent(np.full(count, -1))
            operands = StepValues(self.program, golden.delivered)
            Sweep(self._plan, self._agreement, golden.delivered.map, operands, left).run(strikes)
            return WholeMapPasses(self._plan, golden, rows, self.batch, self._ties).outputs(left), struck

    def _windows(self, step: int, hit: Injections, runs: Ints, golden: Golden) -> tuple[Windows, InjectedWords]:
        """The struck pixels, as readers get them, without those that nobody can tell from golden."""
        pixels = golden.delivered.pixels[step]
        shape = (pixels.channels, pixels.height, pixels.width)
        rows = hit.rows.cpu().numpy()
        channel, top, left = (part.cpu().numpy() for part in torch.unravel_index(hit.elements, shape))
        fault_free = pixels.cut(rows, top, left, 1, 1)
        data = fault_free.clone()
        if self.placement == "before" and step in golden.produced:
            made = golden.produced[step].permute(0, 2, 3, 1)
            data = made[tuple(torch.from_numpy(part).to(made.device) for part in (rows, top, left))][:, None, None]
            data = data.contiguous()
        where = (torch.arange(len(rows), device=data.device), 0, 0, torch.from_numpy(channel).to(data.device))
        form = (hit.format or native(data.dtype)).at(hit.elements, shape)
        old = data[where]
        new = form.apply(old, hit.keep, hit.flip)
        data[where] = new
        if self.placement == "before":
            data = protected(data, self._protections.get(step))
        bits = native(data.dtype)
        reached = bits.words(data[where]) != bits.words(fault_free[where])
        box = np.stack([top, top, left, left], axis=1)
        windows = Windows(runs, rows, top, left, box, data).differing(pixels)
        return windows, InjectedWords(form.words(old), form.words(new), reached)


def _shapes(program: Program, leaves: Sequence[Any], batch: int) -> Mapping[int, tuple[int, ...]]:
    """The shapes that a run of one sample shows; none where it fails, since some models take no single sample."""
    try:
        return maps_of_one(program, leaves, batch)
    except SHAPE_ERRORS:
        return {}
