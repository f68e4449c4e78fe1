"""Pools: faults that were all run once, taken by ``statistics.py`` for a whole population whose truth is known."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

import hoplon as hp
from hoplon import zoo
from hoplon.campaign.campaign import Campaign
from hoplon.campaign.stratified.candidates import Candidates
from hoplon.campaign.stratified.masking import LocalPropagation
from hoplon.campaign.stratified.preview import LogitGradients
from hoplon.campaign.stratified.two_phase import default_strata, looking_again, wrong_without_fault
from hoplon.errors import HoplonWarning

PART = 16_384


@dataclass(frozen=True)
class Pool:
    """A population: the share and the failure probability of each stratum; ``known``: proven, never run.

    ``again``: see `hoplon.campaign.stratified.schedule.SequentialSchedule`.

    ``band``: of each stratum; ``frame``: one row per stratum and domain (``layer``, ``bit``), with ``faults`` and
    ``failed``.
    """

    arm: str
    faults: int
    again: float
    shares: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    band: np.ndarray
    frame: pl.DataFrame


def names() -> tuple[str, str]:
    """ResNet-20 on CIFAR-10 where its files are, else LeNet on the embedded digits."""
    return ("resnet20-cifar10", "cifar10") if os.environ.get("HOPLON_DATA") else ("lenet-digits", "digits")


def campaign_of(arm: str, chosen: tuple[str, str] | None = None) -> tuple[str, Campaign]:
    """Faults in the convolution outputs of a model; ``chosen``: model and data of the zoo, `names` by default."""
    name, data_name = chosen or names()
    model, data = zoo.model(name), zoo.data(data_name)
    program = hp.capture(model.module, model.example, name=name)
    protections = []
    if arm == "ranger":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HoplonWarning)
            calibration = data.calibration.take(range(min(2000, len(data.calibration))))
            protections = [hp.Ranger(hp.profile_ranges(program, calibration))]
    inputs = data.held_out.take(range(min(320, len(data.held_out))))
    return name, Campaign(program, inputs, sites=hp.Values(kind="conv"), protections=protections)


def recorded(
    arm: str, faults: int, folder: Path | None, *, seed: int, chosen: tuple[str, str] | None = None
) -> tuple[str, Pool]:
    """Run a pool, or read the one in the folder."""
    if folder is not None and (folder / f"{arm}.json").exists():
        meta = json.loads((folder / f"{arm}.json").read_text(encoding="utf-8"))
        return meta["model"], _pool(arm, meta["again"], pl.read_parquet(folder / f"{arm}.parquet"))
    name, campaign = campaign_of(arm, chosen)
    work = campaign._runner(seed)
    strata = default_strata(work.injector, work.population)
    drawn = Candidates(
        work.population,
        campaign.sampling,
        strata,
        seed=seed,
        arrive=LocalPropagation(work.injector, work.sites),
        slope=LogitGradients(work.injector, work.sites) if any(part.needs_slope for part in strata) else None,
        wrong=wrong_without_fault(work.injector),
    )
    again = looking_again(strata, work.injector.reference)
    begun = time.perf_counter()
    each = np.ceil(faults * np.array([band.weight for band in drawn.bands])).astype(np.int64)
    drawn.extend(each)
    first = drawn.first_phase
    assert np.allclose(each / each.sum(), first.weights), "each band is to have its own share of the pool"
    band = first.band[drawn.stratum]
    rows = np.sort(np.concatenate([np.flatnonzero(band == number)[:count] for number, count in enumerate(each)]))
    seen, parts, faults = time.perf_counter(), [], len(rows)
    for start in range(0, faults, PART):
        table = drawn.table(rows[start : start + PART])
        runs, _ = work.injector.runs(table)
        failed = runs[campaign.criterion.names[0]].cast(pl.String).is_in(["sdc", "nonfinite"])
        parts.append(table.frame.select(pl.col("site").cast(pl.String).alias("layer"), table.bits, failed=failed))
    stratum = drawn.stratum[rows]
    columns = {"stratum": stratum, "known": first.sure[stratum], "band": first.band[stratum]}
    frame = pl.concat(parts).with_columns(**{name: pl.Series(column) for name, column in columns.items()})
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(folder / f"{arm}.parquet")
        rates = {"faults_per_s": faults / (time.perf_counter() - seen), "candidates_per_s": len(drawn) / (seen - begun)}
        meta = {"model": name, "strata": drawn.labels, "seed": seed, "again": again, **rates}
        (folder / f"{arm}.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return name, _pool(arm, again, frame)


def _pool(arm: str, again: float, frame: pl.DataFrame) -> Pool:
    cells = frame.group_by("stratum", "layer", "bit").agg(
        pl.col("known", "band").first(), faults=pl.len(), failed=pl.col("failed").sum()
    )
    cells = cells.sort("stratum", "layer", "bit")
    strata = cells.group_by("stratum", maintain_order=True).agg(
        pl.col("known", "band").first(), pl.col("faults", "failed").sum()
    )
    sizes, failed = strata["faults"].to_numpy(), strata["failed"].to_numpy()
    known, truth = strata["known"].to_numpy(), failed / sizes
    assert not truth[known].any(), "a fault that was proven to be masked failed"
    return Pool(arm, frame.height, again, sizes / frame.height, truth, known, strata["band"].to_numpy(), cells)
