"""The two levels of a campaign of memory faults: which inputs each fault meets, decided by a pilot."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.campaign.rates import FAILURES
from hoplon.campaign.results import Results
from hoplon.errors import StoreError
from hoplon.faults.table import FaultTable
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.injection.injector import Injector
from hoplon.stats.intervals import Floats, Ints
from hoplon.stats.two_stage import TwoStagePlan, cheapest, draw_groups, effects, pilot_batches, spread_of


class SecondStage:
    """Draws the inputs of memory faults, batch by batch, and chooses how many from the outcomes of a pilot.

    What one half of the faults meets is chosen from the other half, as their number is: see
    `hoplon.campaign.stratified.schedule.SequentialSchedule`.

    Args:
        seed: of the campaign.
        recorded: the split that a stopped run has chosen; the same is chosen again.
    Raises:
        StoreError: a record that is of another campaign.
    """

    def __init__(self, injector: Injector, seed: int, *, recorded: TwoStagePlan | None = None) -> None:
        self._injector, self._seed, self._recorded = injector, seed, recorded
        reference = injector.reference
        self.sizes: Ints = np.full(reference.input_batches, reference.batch, dtype=np.int64)
        self.sizes[-1] = len(reference.eligible) - reference.batch * (reference.input_batches - 1)
        self._pilot, of = pilot_batches(len(self.sizes)), len(self.sizes)
        self.split: TwoStagePlan | None = None
        fits = recorded is None or (
            (recorded.of, recorded.pilot) == (of, self._pilot) and all(1 <= b <= of for b in recorded.batches)
        )
        if not fits:
            raise StoreError(f"expected a split of {of} input batches, got {recorded}; delete design.json")

    @property
    def batches(self) -> tuple[int, int]:
        """Batches that the next faults of either half meet."""
        return (self._pilot, self._pilot) if self.split is None else self.split.batches

    @property
    def inputs_each(self) -> Floats:
        """Inputs that a fault of either half meets, on average."""
        found: Floats = np.array(self.batches) * self.sizes.mean()
        return found

    @property
    def parts(self) -> int:
        """Groups of batches that the inputs make: the smaller the groups, the more faults go into a unit."""
        return len(self.sizes) // max(self.batches)

    def groups(self, table: FaultTable, cells: pl.DataFrame, unit: int) -> NDArray[np.bool_]:
        """The batches that each fault of a unit meets, in the order of its table; ``cells`` says the half of each."""
        faults = table.frame.select(pl.col("fault").unique(maintain_order=True))
        half = faults.join(cells, on="fault", how="left", maintain_order="left")["cell"].to_numpy() % 2
        return draw_groups(np.array(self.batches, dtype=np.int64)[half], self.sizes, seed=self._seed, unit=unit)

    def runs(self, groups: NDArray[np.bool_]) -> int:
        """Count the inputs of these groups."""
        return int((groups @ self.sizes).sum())

    def try_out(self, table: FaultTable, *, unit: int) -> list[Floats]:
        """Run faults as those of a pilot; of each, the shares of inputs that fail in the batches it met."""
        count = np.full(table.frame["fault"].n_unique(), self._pilot)
        groups = draw_groups(count, self.sizes, seed=self._seed, unit=unit)
        runs, _ = self._injector.runs(table, groups=groups)
        found = self._by_fault(runs.lazy(), self._injector.reference.criterion.names[0], "fault")
        return [shares.to_numpy() for shares in found["parts"]]

    def tally(self, results: Results, strata: int) -> list[tuple[Floats, list[Floats]]]:
        """For each half of each stratum (cell by cell): shares by fault; and of pilot faults, shares by batch.

        Shares of inputs that fail under the first criterion; those by batch have shape ``(batches,)`` for a fault.
        """
        runs = results.lazy_runs.filter(~pl.col("proven"))
        found: dict[int, tuple[Floats, list[Floats]]] = {}
        for (cell,), part in self._by_fault(runs, results.criteria[0], "cell", "fault").group_by("cell"):
            found[int(cell)] = part["whole"].to_numpy(), [shares.to_numpy() for shares in part["parts"]]
        return [found.get(cell, (np.zeros(0), [])) for cell in range(2 * strata)]

    def _by_fault(self, runs: pl.LazyFrame, criterion: str, *keys: str) -> pl.DataFrame:
        """One row per fault: ``whole``, the share of its inputs that fail, and ``parts``, that of each batch it met."""
        reference = self._injector.reference
        eligible = reference.eligible.numpy()
        batch = pl.LazyFrame({"input": eligible, "batch": np.arange(len(eligible)) // reference.batch})
        failed = pl.col(criterion).cast(pl.String).is_in(FAILURES)
        runs = runs.select(*keys, "input", failed=failed).join(batch, on="input", how="left")
        parts = runs.group_by(*keys, "batch").agg(pl.col("failed").sum(), met=pl.len()).sort(*keys, "batch")
        failed, met = pl.col("failed"), pl.col("met")
        shares = parts.group_by(*keys, maintain_order=True).agg(whole=failed.sum() / met.sum(), parts=failed / met)
        return shares.collect()

    @property
    def known(self) -> TwoStagePlan | None:
        """The split that was chosen, or will be: that of a stopped run."""
        return self.split or self._recorded

    def choose(self, tally: list[tuple[Floats, list[Floats]]], shares: Floats) -> None:
        """Choose the split that the pilot's outcomes make cheapest, or the one that a stopped run recorded.

        Args:
            tally: of the pilot.
            shares: of the strata.
        """
        of, self.split = len(self.sizes), self._recorded
        if self.split is not None:
            return
        fault_cost, batch_cost = _costs(self._injector)
        spreads = tuple(
            spread_of(shares.tolist(), [np.array(one).reshape(-1, self._pilot) for _, one in tally[other::2]], of=of)
            for other in (1, 0)
        )
        batches = tuple(cheapest(one, of=of, fault_cost=fault_cost, batch_cost=batch_cost) for one in spreads)
        self.split = TwoStagePlan(batches, of, self._pilot, spreads, fault_cost, batch_cost)  # type: ignore[arg-type]

    def effects(self, tally: list[tuple[Floats, list[Floats]]]) -> Floats:
        """Design effects for `SequentialSchedule.main_stage`: of each half, for faults of the *other* half's split.

        Shape ``(strata, 2)``. The plan of one half is made of what the other half shows, and for the inputs that its
        own faults meet.
        """
        assert self.split is not None
        found = []
        for half in (0, 1):
            chosen, spread = self.split.batches[1 - half], self.split.spreads[1 - half]
            shares = [share for share, _ in tally[half::2]]
            pilot = all(len(one) == self._pilot for _, faults in tally[half::2] for one in faults)
            found.append(
                effects(shares, pilot=spread if pilot else None, met=self._pilot, batches=chosen, of=self.split.of)
            )
        return np.stack(found, axis=1)


def _costs(injector: Injector) -> tuple[float, float]:
    """Of a fault, of a pass over one batch of inputs: the bytes that each has to touch.

    Counted and not timed, so that one seed gives the same split on any machine and after any stop. A fault makes the
    guards look once at all that they protect and hold; a pass reads the memory and writes the value of every operator.
    """
    program, batch = injector.reference.program, injector.reference.batch
    guards = ArmedMemory(program, injector.overlay).guards.values() if injector.overlay.protections else ()
    check = sum(guard.protected_bytes + guard.extra_bytes for guard in guards)
    values = batch * sum(site.numel * site.dtype.itemsize for site in program.value_sites)
    memory = sum(site.numel * site.dtype.itemsize for site in program.memory_sites)
    return float(check), float(max(values + memory, 1))
