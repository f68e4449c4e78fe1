"""Replay of faults from golden values: only the steps that a fault can reach are run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hoplon.errors import Batch, checked
from hoplon.formats.base import equal_bits, same_bits
from hoplon.injection.replay.channels import Chain, Channels, chains_of
from hoplon.injection.replay.golden import Golden, InjectedWords, Injections, Placement, ReplayStatistics
from hoplon.injection.replay.values import GoldenValues, Protections, StepValues
from hoplon.injection.replay.windows import Pixels
from hoplon.program.program import Program, Ref
from hoplon.program.sites import MemorySite, ValueSite
from hoplon.protections.base import Overlay


@checked
@dataclass
class Replay:
    """Replays faults in one program under one overlay, always with batches of ``batch`` samples.

    Golden and faulty values come from the same kernel shapes and rows, so a value that the fault cannot reach is
    bit-identical in both. ``sites`` are those of the faults to come: they decide which golden values are kept.

    ``placement="before"``: operator, fault, protection of that site, readers (the papers' order);
    ``"after"``: the fault strikes the stored, already protected value.

    ``statistics``: counts of the work done so far.

    ``flagged``: bool, shape ``(batch,)``, the samples in which a detector found a wrong value during the last pass of
    value faults, at the struck sites or after them. Such a sample is run again and so gives its golden outputs.

    ``outvoted``: bool, shape ``(batch,)``, the samples that met a fault in the result of an operator that runs twice
    (``placement="before"``): its readers get what it computes from what it reads.
    """

    program: Program
    overlay: Overlay
    batch: Batch
    sites: Sequence[ValueSite] | Sequence[MemorySite]
    placement: Placement = "before"
    statistics: ReplayStatistics = field(default=ReplayStatistics(), init=False, repr=False)
    flagged: Tensor = field(init=False, repr=False)
    outvoted: Tensor = field(init=False, repr=False)
    _protections: Protections = field(init=False, repr=False)
    _kept: frozenset[int] = field(init=False, repr=False)
    _site_steps: frozenset[int] = field(init=False, repr=False)
    _chains: Mapping[str, Chain] = field(init=False, repr=False)
    _channels: Channels = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._protections = {self.program.site_steps[name]: p for name, p in self.overlay.values.items()}
        self._site_steps = frozenset(step for site in self.sites for step in self._steps_of(site))
        names = [name for site in self.sites if isinstance(site, MemorySite) for name in site.names]
        self._chains = chains_of(self.program, self._protections, names)
        self._channels = Channels(self.program)
        self._kept = _kept_steps(self.program, self._site_steps) | {chain.end for chain in self._chains.values()}
        self.flagged = self.outvoted = self._no_flags()

    def _steps_of(self, site: ValueSite | MemorySite) -> tuple[int, ...]:
        if isinstance(site, ValueSite):
            return (self.program.site_steps[site.name],)
        return tuple(step for step, name in self.program.memory_steps.items() if name in site.names)

    def covers(self, site: str) -> bool:
        """Tell whether faults of one word at this site can be struck any number at once."""
        return False

    def golden(self, leaves: Sequence[Any]) -> Golden:
        """Run a batch fault-free under the overlay and keep what replays of ``sites`` will need."""
        return self._golden(leaves, {}, lambda step, value: False)

    def _golden(self, leaves: Sequence[Any], pixels: Mapping[int, Pixels], keeps: Callable[[int, Any], bool]) -> Golden:
        """Run a batch fault-free.

        Args:
            pixels: filled while it runs.
            keeps: called with each step and its value as readers get it; True where ``pixels`` holds it.
        """
        held: dict[int, Any] = dict(zip(self.program.input_steps, leaves, strict=True))
        produced: dict[int, Tensor] = {}

        def keep(step: int, value: Any) -> Any:
            result = self._under_protection(step, value, produced)
            if not keeps(step, result) and (step in self._kept or not self.program.steps[step].carries):
                held[step] = result
            return result

        for step, leaf in held.items():
            keeps(step, leaf)
        with torch.inference_mode():
            outputs = self.program.run(leaves, hook=keep)
        values = GoldenValues(self.program, self._protections, held, pixels)
        return Golden(leaves, values, produced, self.program.samples_first(outputs))

    def _under_protection(self, step: int, value: Any, produced: dict[int, Tensor]) -> Any:
        """Return a fault-free value as readers get it; record it in ``produced`` if faults and protection change it."""
        if (protection := self._protections.get(step)) is None:
            return value
        result = protection(value)
        if equal_bits(result, value):
            return value
        if step in self._site_steps:
            produced[step] = value
        return result

    def strike_values(
        self, golden: Golden, injections: Mapping[str, Injections]
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """Run one pass of the golden batch, each sample with the faults that are injected into it.

        A sample keeps its row: some kernels compute the same row to other bits elsewhere in a batch.

        Args:
            injections: by site name.
        Returns:
            The flat outputs, samples first, and the words that the injections changed, by site name.
        """
        by_step = {self.program.site_steps[name]: name for name in injections}
        dirty = self.program.reach(by_step)
        values = StepValues(self.program, golden.delivered)
        self.flagged, self.outvoted = self._no_flags(), self._no_flags()
        words: dict[str, InjectedWords] = {}
        with torch.inference_mode():
            for index in range(min(by_step), len(self.program.steps)):
                recomputed = bool(dirty >> index & 1)
                if index in by_step:
                    name = by_step[index]
                    value = self._computed(index, values) if recomputed else self._stored(golden, index)
                    value, words[name] = self._inject(index, value, injections[name], golden)
                    values.own[index] = value
                elif recomputed:
                    values.own[index] = self._protect(index, self._run(index, values))
                values.forget(self.program.last_reads[index])
            self.statistics += ReplayStatistics(passes=1)
            return self._with_golden_rows(golden, self._outputs(values)), words

    def strike_memory(
        self, golden: Golden, memory: Mapping[str, Tensor], changed: Mapping[str, Tensor | None]
    ) -> list[Any]:
        """Run one pass of the golden batch with changed memory.

        Args:
            memory: all tensors by name, the changed ones among them.
            changed: by name, of tensors that differ from the golden run's (all names of a storage): shape ``(n,)``,
                int64, positions of the changed words along the first axis; where None, the operators that read the
                tensor are run as a whole.
        Returns:
            The flat outputs, samples first.
        """
        starts = [step for step, name in self.program.memory_steps.items() if name in changed]
        values = StepValues(self.program, golden.delivered, memory)
        with torch.inference_mode():
            if (ended := self._along_channels(golden, memory, starts, changed)) is not None:
                end, value = ended
                if value is None:
                    return list(golden.outputs)
                values.own[end] = value
                starts = [end]
            dirty = self.program.reach(starts)
            for index in range(min(starts, default=len(self.program.steps)), len(self.program.steps)):
                if dirty >> index & 1:
                    values.own[index] = self._protect(index, self._run(index, values))
                values.forget(self.program.last_reads[index])
            self.statistics += ReplayStatistics(passes=1)
            return self._outputs(values)

    def _along_channels(
        self, golden: Golden, memory: Mapping[str, Tensor], steps: Sequence[int], changed: Mapping[str, Tensor | None]
    ) -> tuple[int, Tensor | None] | None:
        """Compute the channels that changed memory feeds, if they keep their bits alone.

        Returns:
            The step that they are followed to, and its value, None for the golden one; None if they do not.
        """
        name = self.program.memory_steps[steps[0]] if len(steps) == 1 else ""
        chain, positions = self._chains.get(name), changed.get(name)
        if chain is None or positions is None:
            return None
        channels = positions.unique()
        whole: Tensor = golden.delivered[chain.end]
        values = StepValues(self.program, golden.delivered)
        result = self._channels.end(chain, values, StepValues(self.program, values, memory), channels, whole)
        if result is None:
            return None
        if equal_bits(result, whole[:, channels].contiguous()):
            return chain.end, None
        value = whole.clone()
        value[:, channels] = result
        return chain.end, value

    def _run(self, index: int, values: StepValues) -> Any:
        self.statistics += ReplayStatistics(operators=1)
        return self.program.steps[index].run(values)

    def _protect(self, index: int, value: Any) -> Any:
        protection = self._protections.get(index)
        if protection is None:
            return value
        if protection.detects:
            wrong = self.program.layouts[index].samples_first(protection.outside(value))
            self.flagged |= wrong.flatten(1).any(1)
        return protection.apply_(value)

    def _repeats(self, index: int) -> bool:
        """True if the operator runs twice, so that a fault in one result is found and undone."""
        return index in self._protections and self._protections[index].repeats

    def _no_flags(self) -> Tensor:
        return torch.zeros(self.batch, dtype=torch.bool, device=self.program.device)

    def _with_golden_rows(self, golden: Golden, outputs: list[Any]) -> list[Any]:
        """Return the outputs, those of flagged samples as in a run without the fault."""
        if not self.flagged.any():
            return outputs
        return [_mixed(self.flagged, *pair) for pair in zip(golden.outputs, outputs, strict=True)]

    def _computed(self, index: int, values: StepValues) -> Any:
        """Compute the value that the fault meets, since an earlier fault can have changed it."""
        value = self._run(index, values)
        return self._protect(index, value) if self.placement == "after" else value

    def _stored(self, golden: Golden, index: int) -> Tensor:
        """Return a private copy of the golden value that the fault meets."""
        value: Tensor = golden.delivered[index]
        if self.placement == "before":
            value = golden.produced.get(index, value)
        return value.clone()

    def _inject(
        self, index: int, value: Tensor, injections: Injections, golden: Golden
    ) -> tuple[Tensor, InjectedWords]:
        """Change words of a private value in place; with ``placement="before"`` its protection follows."""
        samples = self.program.layouts[index].samples_first
        view = samples(value)
        inner = torch.unravel_index(injections.elements, view.shape[1:]) if view.dim() > 1 else ()
        where = (injections.rows, *inner)
        old, before, after = injections.strike(view, where, view.shape[1:])
        if self.placement == "before" and self._repeats(index):
            view[where] = old
            self.outvoted[injections.rows[before != after]] = True
        if self.placement == "before":
            value = self._protect(index, value)
        fault_free = samples(golden.delivered[index])[where]
        return value, InjectedWords(before, after, ~same_bits(samples(value)[where], fault_free))

    def _outputs(self, values: StepValues) -> list[Any]:
        return self.program.samples_first(self.program.outputs_from(values))


def _mixed(rows: Tensor, golden: Any, faulty: Any) -> Any:
    """Return the golden output in these rows, the faulty one elsewhere."""
    if not isinstance(faulty, Tensor):
        return golden if rows.any() else faulty
    if golden.shape != faulty.shape:  # one sample, whose fault changed the size of its output
        return golden
    return torch.where(rows.view(-1, *[1] * (faulty.dim() - 1)), golden, faulty)


def _kept_steps(program: Program, starts: Iterable[int]) -> frozenset[int]:
    """Return the steps whose golden values replays from ``starts`` read: these, and operands they do not change."""
    own = {start: 1 << number for number, start in enumerate(sorted(starts))}
    changing = [0] * len(program.steps)  # by step, the starts that change its value, as a bit set
    for index, readers in enumerate(program.readers):
        changing[index] |= own.get(index, 0)
        for reader in readers:
            changing[reader] |= changing[index]
    kept = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}.union(own)
    for step in program.steps:
        through = changing[step.index] & ~own.get(step.index, 0)
        kept.update(read for read in step.reads if through & ~changing[read])
    return frozenset(kept)
