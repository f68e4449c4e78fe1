"""Memory faults side by side: of each, the samples that it has changed where its channels end, many to a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.formats.base import same_bits
from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.replay import Replay
from hoplon.injection.replay.row_dependence import Maps, RowDependence
from hoplon.injection.replay.sweep import Divergent
from hoplon.injection.replay.values import GoldenValues
from hoplon.injection.replay.whole_maps import WholeMapPasses
from hoplon.injection.replay.windows import Ints, Samples


@dataclass(frozen=True)
class Changed:
    """What a memory fault has made of some samples: at which step, of which rows, in which channels.

    ``rows``: shape ``(n,)``, int64, those that differ from golden in some bit; ``channels``: shape ``(c,)``;
    ``data``: shape ``(n, c, ...)``.
    """

    step: int
    rows: Ints
    channels: Tensor
    data: Tensor


@dataclass
class PackedReplay(Replay):
    """Replays memory faults; those that feed few channels go on, from where these end, as samples side by side.

    There, a sample without a difference has ended. The others of any faults fill passes of ``batch`` samples, up to
    the first step that minds the row of a sample, as in `RegionReplay`; so outputs are those of a forward of the batch
    with the changed memory, bit for bit. Every protection has to treat a value by the value and its channel alone.
    """

    _plan: Plan | None = field(default=None, init=False, repr=False)
    _ties: RowDependence | None = field(default=None, init=False, repr=False)

    def golden(self, leaves: Sequence[Any]) -> Golden:
        """Run a batch fault-free under the overlay and keep what replays of ``sites`` will need."""
        maps = Maps(self.program, self.batch)
        golden = self._golden(leaves, maps.note)
        if self._plan is None or self._plan.shapes != maps.shapes:
            self._plan = Plan.of(self.program, self._protections, maps.shapes, ())
            self._ties = RowDependence(self.program, self._protections, self._plan.rules)
        recalled = GoldenValues(self.program, self._protections, golden.delivered, {})
        return Golden(golden.leaves, recalled, golden.produced, golden.outputs)

    def changed(
        self,
        golden: Golden,
        memory: Mapping[str, Tensor],
        changed: Iterable[str],
        *,
        entries: Mapping[str, Tensor],
        real: int,
    ) -> Changed | None:
        """The samples that changed memory reaches where its channels end; None where channels cannot be had alone.

        Args:
            memory, changed, entries: as for `strike_memory`.
            real: rows from this one on are fillers, and left out.
        """
        names = set(changed)
        starts = [step for step, name in self.program.memory_steps.items() if name in names]
        with torch.inference_mode():
            found = self._channels_alone(golden, memory, starts, entries)
            if found is None:
                return None
            step, channels, data = found
            whole: Tensor = golden.delivered[step]
            same = same_bits(data, whole[:, channels.to(whole.device)]).flatten(1).all(1)
            rows = (~same[:real]).nonzero().flatten()
            return Changed(step, rows.cpu().numpy(), channels.to(whole.device), data[rows])

    def finish(self, golden: Golden, parts: Sequence[Changed]) -> list[Any]:
        """The flat outputs of the samples of all parts, in their order."""
        assert self._plan is not None, "golden values come from a plan"
        assert self._ties is not None, "they come with the plan"
        rows: Ints = np.concatenate([part.rows for part in parts])
        left, done = Divergent(np.full(len(rows), -1)), 0
        alike: dict[tuple[int, int], list[Samples]] = {}  # by step and number of channels
        for part in parts:
            runs = np.arange(done, done + len(part.rows))
            left.start[runs] = part.step + 1
            channels = part.channels.expand(len(runs), -1)
            alike.setdefault((part.step, len(part.channels)), []).append(Samples(runs, part.rows, channels, part.data))
            done += len(runs)
        for (step, _), pieces in alike.items():
            left.add(step, Samples.joined(pieces))
        with torch.inference_mode():
            return WholeMapPasses(self._plan, golden, rows, self.batch, self._ties).outputs(left)

    def order(self, struck: Sequence[Iterable[str]]) -> NDArray[np.int64]:
        """Faults, each given by the tensors it struck, so that those whose channels end at one step come together."""
        ends = [min((self._chains[n].end for n in names if n in self._chains), default=-1) for names in struck]
        found: NDArray[np.int64] = np.argsort(np.array(ends, dtype=np.int64), kind="stable")
        return found
