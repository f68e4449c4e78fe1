"""The page's rows, tables and sentences, from records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hoplon.stats.intervals import Interval
from hoplon_studies.driving.settings import Setting
from hoplon_studies.driving.statistics import LEVEL, compared, tally
from hoplon_studies.driving.trials import Record
from hoplon_studies.driving.world.simulator import SECONDS_PER_DECISION
from hoplon_studies.framework.figures import Figure, bars, percent_series
from hoplon_studies.framework.findings import Table
from hoplon_studies.framework.rows import DIFFERENCE, Row, Value
from hoplon_studies.framework.study import Published

INTRODUCTION = (
    "A. Schmedding, L. Yang, A. Jog and E. Smirni, *Aspis: Lightweight Neural Network Protection Against Soft "
    "Errors*, section V-F and Table VI: an agent that drives by itself gets faults into its weights at the start, and "
    "crashes or not. Neither the simulator nor the agent of the paper is here; figures here answer the same question "
    "and are no reproduction.",
    "The paper drives LBC, a ResNet-34 with a branch for each command, along a straight road of the simulator CARLA; "
    "a crash is hitting an object. Here the loop is closed in gymnasium's CarRacing, on winding roads: an expert that "
    "sees the road teaches a student that sees pictures (learning by cheating); the student says five waypoints, 0.2 "
    "to 1 second ahead, and a controller pursues them at a constant speed. So a wrong output moves the car, and "
    "changes what is seen next. One part drives such a student along a straight road with an obstacle, as the paper "
    "does. No ResNet-34 with branches was trained.",
    "**An episode** begins rolling, at a random place of a random track that no student was taught on, and lasts 10 "
    "seconds, 125 decisions. *Crash*: all four wheels off the road, or the car's centre more than 2 units beyond its "
    "edge (the road is 13.3 units wide), or the obstacle hit, where there is one. *Stall*: no crash, but less than "
    "half of the way. *Stopped*: a guard reported memory that it cannot repair, so the student did not drive on. "
    "Waypoints are clipped to 0 to 30 units ahead and 25 to either side; while one of them is NaN or infinite, the "
    "last finite ones go on being followed (at the very start: straight on).",
    "**Faults** strike the live weights of `hoplon.harden`'s module, bit for bit those of campaigns, and stay for the "
    "episode; guards check all memory before every forward pass. All rows of a setting meet the same tracks and "
    "starts; all rows with important weights meet the same faults. *Important*: drawn from the 5 % of the weights with "
    "the highest Taylor score, while Aspis-1 % keeps copies of the highest 1 %, scored on other tracks; *top 1 % "
    "struck*: drawn from exactly these, as in section V-B; V-F does not say. Ranger's bounds are the extremes over "
    "lessons; a value outside becomes the nearest end of its bound, or zero, the median of its channel, a random value "
    "inside; *per channel*: each channel has its own bound. *Previous frame* (ours): where a value lies beyond an end "
    "of its bound by more than a tenth, or a waypoint has moved farther than ever between neighbouring frames of "
    "fault-free drives, the last sound decision is followed, as it was.",
    f"**Tables** compare rows on the same tracks by the exact McNemar test; a verdict needs p below {LEVEL:g} over the "
    "number of comparisons, so that all of a table hold together at 95 %, and rows that are *not told apart* carry no "
    "claim either way. An episode that a guard stopped has not crashed: such a car does not drive either, its weights "
    "would have to be loaded again. Under a bar, + is important weights and a protection.",
)

_PUBLISHED = {
    "random": "table6/random",
    "important": "table6/important",
    "ranger": "table6/ranger",
    "aspis": "table6/aspis-1",
    "inside": "table6/important",
    "inside-ranger": "table6/ranger",
    "inside-aspis": "table6/aspis-1",
}
_WIDER = "struck weights are drawn from the top 5 %, the guard holds the top 1 %; in section V-B it holds them all"
CRASHES = "crashes"
_TOLD_APART = 3  # different counts that a chart is worth


def crash_rows(
    setting: Setting, records: Sequence[Record], published: Published, *, model: str, seed: int
) -> tuple[Row, ...]:
    """A row per arm; the main setting's stand beside Table VI."""
    rows = []
    for arm in setting.arms:
        found = tally(records, arm.name)
        printed = arm.name in _PUBLISHED and setting.name in ("main", "inside", "straight")
        where, paper = ("Table VI", published[_PUBLISHED[arm.name]]) if printed else ("section V-F", None)
        why = _WIDER if printed and arm.name == "aspis" else ""
        row = Row(where, model, "CarRacing", CRASHES, "%", paper, why=why, arm=arm.title, setting=setting.title)
        failure, detail = arm.struck is not None, setting.one_decision
        row = replace(row, stands_for="LBC in CARLA", failure=failure, detail=detail)
        if found.episodes:
            rows.append(row.found(found.crash, n=found.episodes, seed=seed))
        else:
            rows.append(row.missing("no fault drawn turned a decision so far aside"))
    return tuple(sorted(rows, key=lambda row: row.paper is None))


def fewer(better: str, arm: str) -> str:
    """What a row of the paired difference between two arms counts, by their titles."""
    return f"{CRASHES}, {arm} minus {better}"


def difference_rows(setting: Setting, records: Sequence[Record], *, model: str, seed: int) -> Iterator[Row]:
    """The paired difference of each pair of arms, in the JSON."""
    titles = {arm.name: arm.title for arm in setting.arms}
    for first, second in setting.pairs:
        what, pair = fewer(titles[second], titles[first]), compared(records, first, second)
        row = Row("section V-F", model, "CarRacing", what, "points", arm=DIFFERENCE, setting=setting.title, detail=True)
        yield row.found(pair.difference, n=tally(records, first).episodes, seed=seed)


def endings(setting: Setting, records: Sequence[Record]) -> Table:
    """Endings of the episodes of each arm."""
    rows: list[dict[str, Value]] = []
    for arm in setting.arms:
        counts = tally(records, arm.name)
        rows.append(
            {
                "row": arm.title,
                "episodes": counts.episodes,
                "crashes": counts.crashes,
                "stalls": counts.stalls,
                "stopped by a guard": counts.stops,
                "non-finite waypoints": counts.nonfinite,
                "with repairs": counts.repaired,
                "crash, %": percent(counts.crash),
                "stall, %": percent(counts.share(counts.stalls)),
            }
        )
    table = Table.of("How episodes end", rows, "Intervals: Wilson, 95 %.")
    return replace(table, detail=setting.name != "main")


def comparisons(setting: Setting, records: Sequence[Record]) -> Table:
    """Rows against each other, paired by track and start."""
    rows: list[dict[str, Value]] = []
    titles = {arm.name: arm.title for arm in setting.arms}
    for first, second in setting.pairs:
        pair = compared(records, first, second)
        rows.append(
            {
                "first": titles[first],
                "second": titles[second],
                "only the first crashes": pair.only_first,
                "only the second crashes": pair.only_second,
                "difference, points": percent(pair.difference),
                "McNemar p": f"{pair.p_value:.2g}",
                "the first has": pair.verdict(len(setting.pairs)),
            }
        )
    return Table.of("Rows against each other", rows, detail=setting.brief)


def per_student(setting: Setting, records: Mapping[int, Sequence[Record]]) -> Table:
    """Crashes of each student."""
    columns = ("row", *(f"training seed {seed}, %" for seed in records))
    rows = tuple(
        (arm.title, *(percent(tally(own, arm.name).crash) for own in records.values())) for arm in setting.arms
    )
    return Table(
        "Crashes by student",
        columns,
        rows,
        "Students differ in initial weights, lessons, tracks and faults.",
        detail=True,
    )


def crash_figure(setting: Setting, records: Sequence[Record]) -> Iterator[Figure]:
    """Bars with their intervals; none where they would all be alike but one."""
    arms = [arm for arm in setting.arms if tally(records, arm.name).episodes]
    tallies = [tally(records, arm.name) for arm in arms]
    if len({one.crashes for one in tallies}) < _TOLD_APART:
        return
    series = [percent_series("crashes", [one.crash for one in tallies])]
    if any(one.stops for one in tallies):
        series.append(percent_series("stopped by a guard", [one.share(one.stops) for one in tallies]))
    yield bars(
        "crashes",
        title=f"How episodes end: {setting.title}",
        alt="; ".join(f"{arm.title} {100 * one.crash.estimate:.1f} %" for arm, one in zip(arms, tallies, strict=True)),
        groups=[arm.short for arm in arms],
        series=series,
        y_title="episodes, %",
    )


_CHANGE = {
    "more crashes": "less often than",
    "fewer crashes": "more often than",
    "not told apart": "not measurably less often than",
}


def text_of(setting: Setting, records: Sequence[Record]) -> str:
    """Sentences about the faults, and about what the figures show."""
    said = [f"{capital(setting.text)}."]
    arms = {arm.name: arm for arm in setting.arms}
    for first, second in setting.pairs:
        if len(arms[second].protections) == 1 and first != "aspis":
            change = _CHANGE[compared(records, first, second).verdict(len(setting.pairs))]
            left = tally(records, second)
            crashes = f"{left.crashes} of {left.episodes} {_limits(left.crash)}"
            said.append(f"{capital(arms[second].title)}: crashes {change} {arms[first].title}, {crashes}.")
    tallies = {arm.title: tally(records, arm.name) for arm in setting.arms if arm.struck}
    safe = {title: found for title, found in tallies.items() if not found.crashes and not found.stops}
    if safe:
        most = max(100 * found.crash.high for found in safe.values())
        said.append(f"No crash in: {', '.join(safe)}; more than {most:.2g} % is ruled out.")
    hits = [f"{title} {found.hits} of {found.crashes}" for title, found in tallies.items() if found.hits]
    if hits:
        said.append(f"Crashes into the obstacle, the others off the road: {', '.join(hits)}.")
    held = [f"{arm.title} {_held(records, arm.name)}" for arm in setting.arms if arm.protections == ("previous",)]
    if held:
        said.append(f"Decisions in whose place an earlier one was followed: {', '.join(held)}.")
    stopped = [f"{title} {found.stops} of {found.episodes}" for title, found in tallies.items() if found.stops]
    if stopped:
        said.append(f"Stopped by a guard: {', '.join(stopped)}.")
    return " ".join(said)


def _held(records: Sequence[Record], arm: str) -> str:
    mine = [record for record in records if record["arm"] == arm]
    decisions = sum(round(record["seconds"] / SECONDS_PER_DECISION) for record in mine)
    return f"{sum(record['held'] for record in mine):,} of {decisions:,}"


def capital(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def _limits(interval: Interval) -> str:
    return f"[{100 * interval.low:.2g}, {100 * interval.high:.2g}] %"


def percent(interval: Interval) -> str:
    """An estimate with its limits, per cent."""
    return f"{100 * interval.estimate:z.1f} [{100 * interval.low:z.1f}, {100 * interval.high:z.1f}]"
