"""Faulty outputs from the golden run, without redoing what the fault cannot touch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hoplon.formats.base import equal_bits
from hoplon.formats.native import native
from hoplon.injection.replay.channels import Chain, Channels, chains_of
from hoplon.injection.replay.golden import Golden, InjectedWords, Injections, Placement
from hoplon.injection.replay.values import GoldenValues, Protections, StepValues
from hoplon.program.program import Program, Ref
from hoplon.program.sites import MemorySite, ValueSite
from hoplon.protections.base import Overlay


@dataclass
class Replay:
    """Replays faults in one program under one overlay, always with batches of ``batch`` samples.

    Golden and faulty values come from the same kernel shapes and rows, so a value that the fault cannot reach is
    bit-identical in both. ``sites`` are those that faults will strike: they decide which golden values are kept.

    ``placement="before"``: operator, fault, protection of that site, readers (the papers' order);
    ``"after"``: the fault strikes the stored, already protected value.

    ``flagged``: bool, shape ``(batch,)``, the samples in which a detector found a wrong value during the last pass of
    value faults, at the struck sites or after them. Such a sample is run again and so gives its golden outputs.

    ``outvoted``: bool, shape ``(batch,)``, the samples that met a fault in the result of an operator that runs twice
    (``placement="before"``): its readers get what it computes from what it reads.
    """

    program: Program
    overlay: Overlay
    batch: int
    sites: Sequence[ValueSite] | Sequence[MemorySite]
    placement: Placement = "before"
    flagged: Tensor = field(init=False, repr=False)
    outvoted: Tensor = field(init=False, repr=False)
    _protections: Protections = field(init=False, repr=False)
    _kept: frozenset[int] = field(init=False, repr=False)
    _starts: frozenset[int] = field(init=False, repr=False)
    _chains: Mapping[str, Chain] = field(init=False, repr=False)
    _channels: Channels = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._protections = {self.program.site_steps[name]: p for name, p in self.overlay.values.items()}
        self._starts = frozenset(step for site in self.sites for step in self._steps_of(site))
        names = [name for site in self.sites if isinstance(site, MemorySite) for name in (site.name, *site.aliases)]
        self._chains = chains_of(self.program, self._protections, names)
        self._channels = Channels(self.program)
        self._kept = _kept_steps(self.program, self._starts) | {chain.end for chain in self._chains.values()}
        self.flagged = self.outvoted = self._no_flags()

    def _steps_of(self, site: ValueSite | MemorySite) -> tuple[int, ...]:
        if isinstance(site, ValueSite):
            return (self.program.site_steps[site.name],)
        names = {site.name, *site.aliases}
        return tuple(step for step, name in self.program.memory_steps.items() if name in names)

    def golden(self, leaves: Sequence[Any]) -> Golden:
        """Run a batch fault-free under the overlay and keep what replays of ``sites`` will need."""
        delivered: dict[int, Any] = dict(zip(self.program.input_steps, leaves, strict=True))
        produced: dict[int, Tensor] = {}

        def keep(step: int, value: Any) -> Any:
            result = self._under_protection(step, value, produced)
            if step in self._kept or not self.program.steps[step].carries:
                delivered[step] = result
            return result

        with torch.inference_mode():
            outputs = self.program.run(leaves, hook=keep)
        values = GoldenValues(self.program, self._protections, delivered)
        return Golden(leaves, values, produced, self.program.samples_first(outputs))

    def _under_protection(self, step: int, value: Any, produced: dict[int, Tensor]) -> Any:
        """What readers get of a fault-free value; one that a fault may strike and its protection changes is kept."""
        if (protection := self._protections.get(step)) is None:
            return value
        result = protection(value)
        if equal_bits(result, value):
            return value
        if step in self._starts:
            produced[step] = value
        return result

    def strike_values(
        self, golden: Golden, hits: Mapping[str, Injections]
    ) -> tuple[list[Any], dict[str, InjectedWords]]:
        """One faulty pass: the golden batch, each sample with the hits that strike it.

        A sample keeps its row: some kernels compute the same row to other bits elsewhere in a batch.

        Args:
            hits: by site name.
        Returns:
            The flat outputs, samples first, and what each hit met.
        """
        by_step = {self.program.site_steps[name]: (name, hit) for name, hit in hits.items()}
        dirty = 0
        for step in by_step:
            dirty |= self.program.descendants[step]
        values = StepValues(self.program, golden.delivered)
        self.flagged, self.outvoted = self._no_flags(), self._no_flags()
        struck: dict[str, InjectedWords] = {}
        with torch.inference_mode():
            for index in range(min(by_step), len(self.program.steps)):
                recomputed = bool(dirty >> index & 1)
                if index in by_step:
                    name, hit = by_step[index]
                    value = self._computed(index, values) if recomputed else self._stored(golden, index)
                    value, struck[name] = self._strike(index, value, hit, golden)
                    values.own[index] = value
                elif recomputed:
                    values.own[index] = self._protect(index, self._run(index, values))
                values.forget(self.program.last_reads[index])
            return self._run_again(golden, self._outputs(values)), struck

    def strike_memory(
        self,
        golden: Golden,
        memory: Mapping[str, Tensor],
        changed: Iterable[str],
        *,
        entries: Mapping[str, Tensor] | None = None,
    ) -> list[Any]:
        """One pass with changed memory: the flat outputs of the golden batch's samples.

        Args:
            memory: all tensors by name, the changed ones among them.
            changed: names of tensors that differ from the golden run's (all names of a storage).
            entries: by name, shape ``(n,)``, int64, where along their first axis the changed words are; without it,
                whatever reads the tensors is run as a whole.
        """
        names = set(changed)
        starts = [step for step, name in self.program.memory_steps.items() if name in names]
        values = StepValues(self.program, golden.delivered, memory)
        with torch.inference_mode():
            if (ended := self._along_channels(golden, memory, starts, entries or {})) is not None:
                end, value = ended
                if value is None:
                    return list(golden.outputs)
                values.own[end] = value
                starts = [end]
            dirty = 0
            for step in starts:
                dirty |= self.program.descendants[step]
            for index in range(min(starts, default=len(self.program.steps)), len(self.program.steps)):
                if dirty >> index & 1:
                    values.own[index] = self._protect(index, self._run(index, values))
                values.forget(self.program.last_reads[index])
            return self._outputs(values)

    def _along_channels(
        self, golden: Golden, memory: Mapping[str, Tensor], starts: Sequence[int], entries: Mapping[str, Tensor]
    ) -> tuple[int, Tensor | None] | None:
        """The step up to which channels could be taken alone, and its value, None for the golden one."""
        alone = self._channels_alone(golden, memory, starts, entries)
        if alone is None:
            return None
        end, channels, found = alone
        whole: Tensor = golden.delivered[end]
        if equal_bits(found, whole[:, channels].contiguous()):
            return end, None
        value = whole.clone()
        value[:, channels] = found
        return end, value

    def _channels_alone(
        self, golden: Golden, memory: Mapping[str, Tensor], starts: Sequence[int], entries: Mapping[str, Tensor]
    ) -> tuple[int, Tensor, Tensor] | None:
        """The step up to which channels could be taken alone, the channels, and their values there."""
        names = [self.program.memory_steps[step] for step in starts]
        if len(names) != 1 or names[0] not in self._chains or names[0] not in entries:
            return None
        chain, channels = self._chains[names[0]], entries[names[0]].unique()
        whole: Tensor = golden.delivered[chain.end]
        found = self._channels.end(chain, StepValues(self.program, golden.delivered), memory, channels, whole)
        return None if found is None else (chain.end, channels, found)

    def _run(self, index: int, values: StepValues) -> Any:
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
        """Whether the operator runs twice, so that a fault in one result is found and undone."""
        protection = self._protections.get(index)
        return protection is not None and protection.repeats

    def _no_flags(self) -> Tensor:
        return torch.zeros(self.batch, dtype=torch.bool, device=self.program.device)

    def _run_again(self, golden: Golden, outputs: list[Any]) -> list[Any]:
        """The outputs, those of flagged samples as in a run without the fault."""
        if not self.flagged.any():
            return outputs
        return [_mixed(self.flagged, *pair) for pair in zip(golden.outputs, outputs, strict=True)]

    def _computed(self, index: int, values: StepValues) -> Any:
        """The value that the fault meets, recomputed because an earlier fault can have changed it."""
        value = self._run(index, values)
        return self._protect(index, value) if self.placement == "after" else value

    def _stored(self, golden: Golden, index: int) -> Tensor:
        """A private copy of the golden value that the fault meets."""
        value: Tensor = golden.delivered[index]
        if self.placement == "before":
            value = golden.produced.get(index, value)
        return value.clone()

    def _strike(self, index: int, value: Tensor, hit: Injections, golden: Golden) -> tuple[Tensor, InjectedWords]:
        """Strike a private value in place; with ``placement="before"`` its protection follows."""
        layout = self.program.layouts[index]
        view = layout.samples_first(value)
        form = (hit.format or native(value.dtype)).at(hit.elements, view.shape[1:])
        inner = torch.unravel_index(hit.elements, view.shape[1:]) if view.dim() > 1 else ()
        old = view[(hit.rows, *inner)]
        new = form.apply(old, hit.keep, hit.flip)
        view[(hit.rows, *inner)] = new
        if self.placement == "before":
            if self._repeats(index):
                view[(hit.rows, *inner)] = old
                self.outvoted[hit.rows[form.words(old) != form.words(new)]] = True
            value = self._protect(index, value)
        bits = native(value.dtype)
        got = layout.samples_first(value)[(hit.rows, *inner)]
        fault_free = layout.samples_first(golden.delivered[index])[(hit.rows, *inner)]
        reached = bits.words(got) != bits.words(fault_free)
        return value, InjectedWords(form.words(old), form.words(new), reached)

    def _outputs(self, values: StepValues) -> list[Any]:
        return self.program.samples_first(self.program.outputs_from(values))


def _mixed(rows: Tensor, golden: Any, faulty: Any) -> Any:
    """The golden output in these rows, the faulty one elsewhere."""
    if not isinstance(faulty, Tensor):
        return golden if rows.any() else faulty
    if golden.shape != faulty.shape:  # one sample, whose fault changed the size of its output
        return golden
    return torch.where(rows.view(-1, *[1] * (faulty.dim() - 1)), golden, faulty)


def _kept_steps(program: Program, starts: Iterable[int]) -> frozenset[int]:
    """The golden values that replays from ``starts`` read: the starts', and operands' outside of what they change."""
    kept: set[int] = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}
    for start in starts:
        reach = program.descendants[start]
        kept.add(start)
        for step in program.steps[start:]:
            if reach >> step.index & 1:
                kept.update(read for read in step.reads if read != start and not reach >> read & 1)
    return frozenset(kept)
