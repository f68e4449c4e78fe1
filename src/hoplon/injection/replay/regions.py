"""Replay that computes only the region of each feature map that a fault can have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import checked
from hoplon.formats.base import same_bits
from hoplon.injection.replay.golden import Golden, GoldenStack, InjectedWords, Injections
from hoplon.injection.replay.kernel_forms import KernelForms, protected
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.replay import Replay
from hoplon.injection.replay.row_dependence import Maps, RowDependence, Shapes, maps_of_one
from hoplon.injection.replay.sweep import Divergent, Sweep
from hoplon.injection.replay.values import StepValues
from hoplon.injection.replay.whole_maps import WholeMapPasses, rows_of
from hoplon.injection.replay.windows import Ints, Pixels, Wholes, Windows
from hoplon.program.layout import BatchLayout
from hoplon.program.program import Program
from hoplon.protections.base import Overlay


@dataclass(frozen=True)
class _Looks:
    """Steps that gave samples their bits in other rows, forms that reproduced those of whole maps, shapes of maps."""

    maps: dict[tuple[Any, ...], Shapes] = field(default_factory=dict)
    rows: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    forms: KernelForms = field(default_factory=KernelForms)


_LOOKS: WeakKeyDictionary[Program, dict[tuple[Any, ...], _Looks]] = WeakKeyDictionary()


@checked
def fits(overlay: Overlay) -> bool:
    """True if every protection treats a value by the value and its channel alone, and none asks for a second run."""
    return all(effect.local and not effect.detects for effect in overlay.values.values())


@checked
@dataclass
class RegionReplay(Replay):
    """Replay of many runs at once, each with one changed word in a feature map; any number may share a row.

    A sweep takes the runs through the steps as windows of feature maps: a window is cut out of the golden operands, the
    values that the fault has changed are put in, the operator runs, and the result is compared with golden bit by bit;
    a run without a difference has ended. Runs whose window is no longer small go on with whole values, ``batch`` runs
    to a pass. The outputs are those of a forward of the batch with the fault in its row, bit for bit: a form of an
    operator is used for a shape of windows only if it reproduces golden bits (:class:`KernelForms`), and a run leaves
    its row only where no step is row-dependent (:class:`RowDependence`).

    ``room``: bytes for the golden values of a batch; where they do not suffice, maps that faults strike are computed
    again from what they were made of.
    """

    room: float = inf
    _row_dependence: RowDependence | None = field(default=None, init=False, repr=False)

    @override
    def golden(self, leaves: Sequence[Any]) -> Golden:
        # feature maps are kept as pixels
        if self._row_dependence is None:
            maps = self._looks.maps
            form = self.batch, *(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
            if form not in maps:
                maps[form] = maps_of_one(self.program, leaves, self.batch)
            self._make_plan(maps[form])
        golden, shapes = self._run_golden(leaves)
        if shapes != self._plan.shapes:  # one sample alone goes another way than many
            self._make_plan(shapes)
            golden, _ = self._run_golden(leaves)
        return golden

    def _make_plan(self, shapes: Mapping[int, tuple[int, ...]]) -> None:
        plan = Plan.of(self.program, self._protections, shapes, self._site_steps, room=self.room)
        self._row_dependence = RowDependence(plan, self._looks.rows)

    @cached_property
    def _looks(self) -> _Looks:
        """What is known of kernels: of an unprotected program as long as it lives, for equal settings of torch."""
        if self._protections:
            return _Looks()
        onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        rounding = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
        settings = torch.get_num_threads(), onednn, *rounding, torch.is_grad_enabled()
        return _LOOKS.setdefault(self.program, {}).setdefault(settings, _Looks())

    @property
    def _plan(self) -> Plan:
        assert self._row_dependence is not None, "golden values come from a plan"
        return self._row_dependence.plan

    def _run_golden(self, leaves: Sequence[Any]) -> tuple[Golden, Mapping[int, tuple[int, ...]]]:
        """Run a batch fault-free; keep values by the plan, and return the shapes of feature maps too."""
        plan, maps = self._plan, Maps(self.program, self.batch)
        pixels: dict[int, Pixels] = {}

        def keeps(step: int, value: Any) -> bool:
            maps.note(step, value)
            kept = step in plan.kept and plan.shapes.get(step) == maps.shapes.get(step)
            if kept:
                pixels[step] = Pixels.of(value)
            return kept or step in plan.computed

        return self._golden(leaves, pixels, keeps), maps.shapes

    @override
    def covers(self, site: str) -> bool:
        """True if :meth:`strike_many` takes runs with a changed word at this site."""
        step = self.program.site_steps[site]
        return isinstance(self.program.layouts[step], BatchLayout) and not self._repeats(step)

    def in_windows(self, site: str) -> bool:
        """True if runs with a changed word at this site begin as windows of a feature map, not as whole values."""
        return self.program.site_steps[site] in self._plan.shapes

    @property
    def golden_maps(self) -> tuple[int, int]:
        """How many maps are kept of a batch, and how many that faults strike are computed again where they do."""
        return len(self._plan.kept), len(self._plan.computed)

    def strike_many(
        self, golden: GoldenStack, injections: Mapping[str, Injections], runs: Mapping[str, Tensor], count: int
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """Replay runs of one word each, any number in one row.

        Args:
            injections: by site name, sites that :meth:`covers`; their rows are those of the stack.
            runs: by site name, shape ``(n,)``, int64: the runs that the words belong to, each of ``count`` once.
        Returns:
            The flat outputs, one entry per run, and the words that the injections changed, by site name.
        """
        assert self._row_dependence is not None, "golden values come from a plan"
        rows = np.zeros(count, dtype=np.int64)
        words: dict[str, InjectedWords] = {}
        windows: dict[int, Windows] = {}
        divergent = Divergent(np.full(count, -1))
        with torch.inference_mode():
            for name, injection in injections.items():
                members = runs[name].cpu().numpy()
                rows[members] = injection.rows.cpu().numpy()
                step = self.program.site_steps[name]
                if self.in_windows(name):
                    windows[step], words[name] = self._inject_pixels(step, injection, members, golden)
                else:
                    wholes, words[name] = self._inject_wholes(step, injection, members, golden)
                    divergent.add(step, wholes)
                    divergent.start[wholes.runs] = step + 1
            values = StepValues(self.program, golden.one.delivered)
            sweep = Sweep(self._plan, self._looks.forms, golden.map, golden.one.delivered.map, values, divergent)
            sweep.run(windows)
            passes = WholeMapPasses(self._plan, golden, rows, self._row_dependence)
            outputs = passes.outputs(divergent)
        self.statistics += sweep.statistics + passes.statistics
        return outputs, words

    def _inject_pixels(
        self, step: int, injections: Injections, runs: Ints, golden: GoldenStack
    ) -> tuple[Windows, InjectedWords]:
        """Change words of single pixels.

        Returns:
            Windows of one pixel, as readers get them, without those whose bits are golden; the changed words.
        """
        rows = injections.rows.cpu().numpy()
        pixels = golden.of(rows).map(step)
        shape = (pixels.one.channels, pixels.one.height, pixels.one.width)
        channel, top, left = (part.cpu().numpy() for part in torch.unravel_index(injections.elements, shape))
        fault_free = pixels.cut(rows, top, left, 1, 1)
        data = fault_free.clone()
        if self.placement == "before":
            for produced, where, local in golden.produced(step, rows):
                index = [torch.from_numpy(part).to(data.device) for part in (local, top[where], left[where], where)]
                data[index[3], 0, 0] = produced.permute(0, 2, 3, 1)[tuple(index[:3])]
        words = (torch.arange(len(rows), device=data.device), 0, 0, torch.from_numpy(channel).to(data.device))
        _, before, after = injections.strike(data, words, shape)
        if self.placement == "before":
            data = protected(data, self._protections.get(step))
        box = np.stack([top, top, left, left], axis=1)
        windows = Windows(runs, rows, top, left, box, data).differing(pixels)
        return windows, InjectedWords(before, after, ~same_bits(data[words], fault_free[words]))

    def _inject_wholes(
        self, step: int, injections: Injections, runs: Ints, golden: GoldenStack
    ) -> tuple[Wholes, InjectedWords]:
        """Change words of values that are no feature maps.

        Returns:
            Whole values, as readers get them, of the runs that have other bits than golden; the changed words.
        """
        layout, rows = self.program.layouts[step], injections.rows.cpu().numpy()
        values = {number: golden.batches[number].delivered for number, _, _ in golden.split(rows)}
        fault_free = rows_of(layout, golden, values, step, rows)
        value = fault_free.clone()
        if self.placement == "before":
            for produced, where, local in golden.produced(step, rows):
                chosen, samples = (torch.from_numpy(part).to(value.device) for part in (where, local))
                layout.samples_first(value)[chosen] = layout.samples_first(produced)[samples]
        struck, expected = layout.samples_first(value), layout.samples_first(fault_free)
        inner = torch.unravel_index(injections.elements, struck.shape[1:]) if struck.dim() > 1 else ()
        words = (torch.arange(len(struck), device=struck.device), *inner)
        _, before, after = injections.strike(struck, words, struck.shape[1:])
        if self.placement == "before":
            value = self._protect(step, value)
        delivered = layout.samples_first(value)
        differs = ~same_bits(delivered, expected).flatten(1).all(1).cpu().numpy()
        wholes = Wholes(runs, rows, delivered).pick(differs)
        return wholes, InjectedWords(before, after, ~same_bits(delivered[words], expected[words]))
