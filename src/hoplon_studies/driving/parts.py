"""The parts of the study, from counts to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from hoplon.campaign.executors import Executor, Processes, Serial, workers_that_fit
from hoplon.errors import HoplonError
from hoplon_studies.driving.decision_text import deviations, driven_on, said_of_one_decision
from hoplon_studies.driving.episodes import Blind, Driver, Expert, drive
from hoplon_studies.driving.film_strip import draw_film
from hoplon_studies.driving.settings import Setting, prepare
from hoplon_studies.driving.single_frames import drawn_frame
from hoplon_studies.driving.statistics import crashes_of_one, record_of
from hoplon_studies.driving.student import TRAINED, Student, trained
from hoplon_studies.driving.text import (
    comparisons,
    crash_figure,
    crash_rows,
    difference_rows,
    endings,
    per_student,
    text_of,
)
from hoplon_studies.driving.training import lessons, mean_error, waypoint_error
from hoplon_studies.driving.trials import Classroom, Record, School, Task
from hoplon_studies.driving.world.camera import SIZE
from hoplon_studies.driving.world.control import WAYPOINTS
from hoplon_studies.driving.world.simulator import Roads, Scenario
from hoplon_studies.framework.figures import Figure
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.study import Context

_BLOCK, _PIECE = 64, 8  # episodes that are kept together, and that a process runs at a time
_LONG_ENOUGH = 2.0  # seconds until a crash, for pictures in which something happens
_FILMED = {
    **dict.fromkeys(("main", "straight"), ("important", "ranger")),
    "single": ("aside", "aside-4", "aside-4-ranger"),
}
"""Arms of which a strip is drawn; the last but one crashes, the last one finishes."""
_TEST_SEED = 3_000_000  # of tracks on which waypoints are compared


def _students(context: Context, roads: Roads = "winding") -> Mapping[int, nn.Module]:
    """By training seed, taught on such roads; the user's own model stands in for all of them."""
    if context.own is None:
        return {seed: trained(seed, roads) for seed in context.profile.driving.students if seed in TRAINED[roads]}
    name, module = context.own[0].name, context.own[0].module
    try:
        with torch.no_grad():
            got = f"shape {tuple(module(torch.zeros(1, 3, SIZE, SIZE)).shape)}"
    except RuntimeError as error:
        got = str(error)
    if got != f"shape {(1, 2 * WAYPOINTS)}":
        raise HoplonError(
            f"expected a student that makes five waypoints, shape (1, {2 * WAYPOINTS}), of a picture, shape "
            f"(1, 3, {SIZE}, {SIZE}), got {got} from {name}; hoplon_studies.driving.student.Student is one"
        )
    return {0: module}


def _model_name(context: Context) -> str:
    if context.own is not None:
        return context.own[0].name
    return f"student ({sum(weight.numel() for weight in Student().parameters()):,} weights)"


def _school(context: Context, roads: Roads = "winding") -> School:
    """Students with their guards and their attackers, kept from part to part."""
    counts = context.profile.driving
    tracks = {"range_tracks": counts.range_tracks, "score_tracks": counts.score_tracks}

    def make() -> School:
        students = _students(context, roads).items()
        return School({seed: Classroom(prepare(student, seed, roads=roads, **tracks)) for seed, student in students})

    return context.once(f"school of {roads} roads", make)


def drivers(context: Context) -> Iterator[Finding]:
    """Who drives, without faults: the students must be worth hitting."""

    def measure() -> list[list[Any]]:
        frames = lessons(_TEST_SEED, tracks=context.profile.driving.score_tracks)
        found: list[list[Any]] = [
            ["the expert, which sees the road", 0.0, *_driven(context, Expert())],
            ["straight on, always", mean_error(frames, None), *_driven(context, Blind())],
            ["the mean of the waypoints, always", mean_error(frames, frames), None, None],
        ]
        for seed, student in _students(context).items():
            name = f"student, training seed {seed}" if context.own is None else "your own model"
            found.append([name, waypoint_error(student, frames), None, None])
        return found

    rows = context.kept("drivers", measure)
    yield Table(
        "Drivers without faults, on tracks that no student was taught on",
        ("driver", "mean distance from the expert's waypoints, units", "crashes", "episodes"),
        tuple(tuple(row) for row in rows),
        "How often students crash without faults is the row “no faults” of each setting.",
    )
    yield context.source("distances", fault_model="none", runs=["drivers.json"])


def _driven(context: Context, driver: Driver) -> tuple[int, int]:
    count, seed = context.profile.driving.main, _episode_seed(context.seed, 0)
    found = [drive(Scenario.drawn(seed, number), driver).ending for number in range(count)]
    return found.count("crash"), count


def one_setting(setting: Setting, context: Context) -> Iterator[Finding]:
    """All arms under one setting, pooled over students."""
    counts = context.profile.driving
    count = counts.main if setting.often else counts.other
    if setting.roads == "straight":
        count = counts.obstacle
    if setting.one_decision:
        setting, count = replace(setting, count=counts.single_faults), counts.single
    records = _records(context, setting, count)
    together = [record for own in records.values() for record in own]
    yield from crash_rows(setting, together, context.published, model=_model_name(context), seed=context.seed)
    yield from difference_rows(setting, together, model=_model_name(context), seed=context.seed)
    yield from (endings(setting, together), comparisons(setting, together))
    if setting.one_decision:
        yield from (deviations(together), driven_on(setting, together))
    if len(records) > 1:
        yield per_student(setting, records)
    yield from crash_figure(setting, together)
    if setting.name in _FILMED:
        yield from _film(context, setting, records)
    yield from said_of_one_decision(setting, together) if setting.one_decision else (text_of(setting, together),)
    yield context.source(
        "all episodes, as records",
        fault_model=(
            f"{setting.text}, {setting.fault_model.name}; random ones uniform, important ones over the top 5 % of the "
            "weights"
        ),
        seed=context.seed,
        runs=[f"{_block_name(seed, first)}.json" for seed in records for first in range(0, count, _BLOCK)],
    )


def _records(context: Context, setting: Setting, count: int) -> dict[int, list[Record]]:
    """By training seed. Scenarios and faults of students differ, so that pooled episodes are independent."""
    found: dict[int, list[Record]] = {seed: [] for seed in _drivers_of(setting, context)}
    with ExitStack() as stack:
        start = cache(partial(_started, context, setting.roads, stack))
        for place, seed in enumerate(found):
            for first in range(0, count, _BLOCK):
                task = Task(setting, _episode_seed(context.seed, seed), first, min(_BLOCK, count - first))
                found[seed] += context.kept(_block_name(seed, first), partial(_run, start, seed, task))
                done = place * count + first + task.count
                context.tell(f"{setting.name}: episodes", done, len(found) * count)
    return found


def _drivers_of(setting: Setting, context: Context) -> Iterator[int]:
    """Training seeds of the students that drive a setting."""
    for seed in _students(context, setting.roads):
        if not setting.one_decision or seed in context.profile.driving.single_students:
            yield seed


def _started(context: Context, roads: Roads, stack: ExitStack) -> Executor:
    """Executor of episodes, made once there is one to run."""
    school, workers = _school(context, roads), workers_that_fit(torch.get_num_threads(), threads=1)
    chosen = Serial(school) if workers == 1 else Processes(school, workers=workers, threads=1)
    return stack.enter_context(chosen)


def _run(start: Callable[[], Executor], seed: int, task: Task) -> list[Record]:
    """A block, in pieces that processes share."""
    end = task.first + task.count
    starts = range(task.first, end, _PIECE)
    pieces = {first: (seed, replace(task, first=first, count=min(_PIECE, end - first))) for first in starts}
    results = dict(start().run(pieces))
    return [record for first in starts for record in results[first]]


def _block_name(training_seed: int, first: int) -> str:
    return f"student-{training_seed}-from-{first:05d}"


def _episode_seed(seed: int, training_seed: int) -> int:
    """Seed of scenarios and faults; far from those of lessons."""
    return 10**9 + seed * 1000 + training_seed


def _film(context: Context, setting: Setting, records: Mapping[int, Sequence[Record]]) -> Iterator[Figure]:
    """The first crash, after two seconds if there is one, whose twin under Ranger finished; driven again.

    On a road with an obstacle the first one into it, if there is one.
    """
    arms, shown = {arm.name: arm for arm in setting.arms}, _FILMED[setting.name]
    found = [(seed, number) for seed in records for number in crashes_of_one(records[seed], *shown[-2:])]

    def liked(place: tuple[int, int]) -> tuple[bool, bool]:
        record = record_of(records[place[0]], shown[-2], place[1])
        return not record.get("hit"), record["seconds"] < _LONG_ENOUGH

    for seed, number in sorted(found, key=liked)[:1]:
        room = _school(context, setting.roads).rooms[seed]
        task = Task(setting, _episode_seed(context.seed, seed), number, 1)
        films = [(arms[name].title, room.film(task, arms[name])) for name in shown]
        title = f"Episode {number} of training seed {seed}. Blue: where the car was. Red: the waypoints it follows."
        first = max(drawn_frame(task.seed, number) - 1, 0) if setting.one_decision else 0
        yield draw_film("strip", title=title, films=films, first=first)
