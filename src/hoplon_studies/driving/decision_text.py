"""What one struck decision becomes: tables and sentences from records."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from hoplon.stats.intervals import Interval, clustered, wilson
from hoplon_studies.driving.settings import Setting
from hoplon_studies.driving.single_frames import AFTERWARDS, ASIDE, FRAMES, THRESHOLDS
from hoplon_studies.driving.statistics import tally
from hoplon_studies.driving.text import percent
from hoplon_studies.driving.trials import Record
from hoplon_studies.driving.world.simulator import SECONDS_PER_DECISION
from hoplon_studies.framework.findings import Table
from hoplon_studies.framework.rows import Value

_TOP = 30  # the bit that most faults have which turn a decision aside


def deviations(records: Sequence[Record]) -> Table:
    """How many of the faults drawn turn a decision aside, and by how much."""
    found = [record for record in records if "drawn" in record]
    rows: list[dict[str, Value]] = []
    for key, name in (
        *((f"wheel-{limit}", f"steering wheel off by more than {limit} degrees") for limit in THRESHOLDS),
        ("direction", f"direction of the aim off by more than {ASIDE:g} degrees"),
    ):
        share = _share(found, key)
        rows.append(
            {
                "one decision's": name,
                "faults drawn": sum(record["drawn"] for record in found),
                "of them": sum(record[key] for record in found),
                "share, %": f"{100 * share.estimate:.2g} [{100 * share.low:.2g}, {100 * share.high:.2g}]",
                "episodes": len(found),
                "with such a fault": sum(record[key] > 0 for record in found),
            }
        )
    return Table.of("Faults in one decision", rows, "Intervals: faults of one episode are a cluster.")


def driven_on(setting: Setting, records: Sequence[Record]) -> Table:
    """What becomes of the car, row by row."""
    rows: list[dict[str, Value]] = []
    for arm in setting.arms:
        mine = [record for record in records if record["arm"] == arm.name]
        if not mine:
            continue
        farthest, off = [record["widest"] for record in mine], [record.get("off", 0.0) for record in mine]
        counts = tally(records, arm.name)
        rows.append(
            {
                "row": arm.title,
                "episodes": len(mine),
                "off by, median, degrees": round(median(off), 1),
                f"off by more than {ASIDE:g}": sum(one > ASIDE for one in off),
                "crashes": counts.crashes,
                "crash, %": percent(counts.crash),
                "farthest from the centre line, median, units": round(median(farthest), 1),
            }
        )
    return Table.of(
        "Driven on from there",
        rows,
        "Off: the steering wheel, at the struck decision. Intervals: Wilson, 95 %, an episode each.",
    )


def said_of_one_decision(setting: Setting, records: Sequence[Record]) -> tuple[str, ...]:
    """What is struck, what counts as aside, and how many crash."""
    found, struck = [record for record in records if "drawn" in record], _of(records, "aside")
    top = sum(record["bit"] == _TOP for record in struck)
    shares = {arm.name: tally(records, arm.name) for arm in setting.arms}
    seconds = AFTERWARDS * SECONDS_PER_DECISION
    one, four = shares["aside"], shares["aside-4"]
    meant = (
        "One bit of one value of one decision, drawn from all operator outputs and all bits; the decision is uniform "
        f"among an episode's first {FRAMES}. *Off by more than {ASIDE:g} degrees*: the steering wheel, against the "
        "fault-free decision on the same frame, where the wheel turns 15 degrees for one of the front wheels, as is "
        "common in passenger cars (our choice: the simulator has none; full lock is 344 degrees, and "
        f"{ASIDE:g} are {ASIDE / 15:g} at the front wheels). *In direction*: the point that is steered for, seen from "
        f"the car, is off by more than {ASIDE:g}: rarer and worse. Of the faults drawn for a decision, the first one "
        f"that is off is driven on from there for {seconds:.1f} seconds, in every row; what was decided before is "
        "fault-free. *In a row*: the same bit of the same value is struck in so many decisions. A policy meets the "
        "faults that are off without it."
    )
    if not one.episodes:
        return (meant,)
    drawn, wheel = sum(record["drawn"] for record in found), sum(record["wheel-60"] for record in found)
    return (
        meant,
        f"Of {drawn:,} faults drawn, {wheel:,} turn the wheel by more than {ASIDE:g} degrees "
        f"({_short(_share(found, 'wheel-60'))} %); of the {one.episodes} that were driven on, one for each episode "
        f"that has one, {top} are in bit {_TOP}. **{one.crashes} of {one.episodes} end in a crash, "
        f"{_short(one.crash)} %**; struck four times in a row, 0.32 seconds, {four.crashes} do, "
        f"{_short(four.crash)} %. The latest crash of all rows came {_latest_crash(records):.1f} seconds after the "
        "struck frame.",
    )


def _latest_crash(records: Sequence[Record]) -> float:
    """Seconds from a struck frame to a crash, the longest; records of an episode follow that of its frame."""
    latest, frame = 0.0, 0
    for record in records:
        frame = record.get("frame", frame)
        if record["ending"] == "crash":
            latest = max(latest, record["seconds"] - frame * SECONDS_PER_DECISION)
    return latest


def _of(records: Sequence[Record], arm: str) -> list[Record]:
    return [record for record in records if record["arm"] == arm]


def _share(found: Sequence[Record], key: str) -> Interval:
    drawn = np.array([record["drawn"] for record in found])
    shares = np.array([record[key] for record in found]) / drawn
    return clustered(shares, drawn) if len(found) > 1 else wilson(int(found[0][key]), int(drawn[0]))


def _short(interval: Interval) -> str:
    return f"{100 * interval.estimate:.2g} [{100 * interval.low:.2g}, {100 * interval.high:.2g}]"
