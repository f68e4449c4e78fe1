"""Many episodes: the same scenarios and faults for every arm, block by block, here or in processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from hoplon.faults.table import Target
from hoplon.zoo.seeding import one_thread
from hoplon_studies.driving.episodes import DECISIONS, Episode, drive
from hoplon_studies.driving.film_strip import Film
from hoplon_studies.driving.injected_driver import StruckStudent, Word
from hoplon_studies.driving.settings import Arm, Class, Setting
from hoplon_studies.driving.single_frames import StruckFrame, drawn_frame, drive_on, strike_one_frame
from hoplon_studies.driving.world.simulator import Scenario

Record = dict[str, Any]
"""One episode of one arm: ``episode``, ``arm``, the fields of :class:`Episode`, and what the guards found in words
(``corrected``, ``mitigated``, ``uncorrectable``)."""


@final
@dataclass(frozen=True)
class Task:
    """Episodes ``first`` up to ``first + count`` of a setting, all arms; ``seed`` decides scenarios and faults."""

    setting: Setting
    seed: int
    first: int
    count: int
    decisions: int = DECISIONS


class Classroom:
    """Runs tasks with one ``student``: called with a task, gives its records, in the order of episodes and arms.

    Where two arms leave the student computing the same thing in the same scenario, it is driven once: a parity that
    repaired every word drives as if nothing had struck.
    """

    def __init__(self, student: Class) -> None:
        self.student = student
        self._drivers: dict[tuple[Target, tuple[str, ...]], StruckStudent] = {}

    def __call__(self, task: Task) -> list[Record]:
        """All arms of each episode, one after the other."""
        numbers = range(task.first, task.first + task.count)
        all_arms = self._one_decision if task.setting.one_decision else self._all
        with one_thread():
            return [record for number in numbers for record in all_arms(task, number)]

    def driver(self, arm: Arm, target: Target = "memory") -> StruckStudent:
        """The student as this arm protects it; ``target``: what faults strike."""
        if (target, arm.protections) not in self._drivers:
            chosen = [self.student.protections[name] for name in arm.protections]
            self._drivers[target, arm.protections] = StruckStudent(self.student.program, chosen, target)
        return self._drivers[target, arm.protections]

    def faults(self, task: Task, number: int) -> dict[str | None, list[Word]]:
        """Faults at the start of an episode, by :attr:`Arm.struck`."""
        kinds = dict.fromkeys(arm.struck for arm in task.setting.arms if arm.struck is not None)
        tables = {kind: self.student.table(task.setting, kind, seed=task.seed, episode=number) for kind in kinds}
        return {None: [], **{kind: list(table.frame.iter_rows(named=True)) for kind, table in tables.items()}}

    def film(self, task: Task, arm: Arm) -> Film:
        """The first episode of a task, driven once more by one arm, all of it kept."""
        driver = self.driver(arm, task.setting.target)
        if task.setting.one_decision:
            with one_thread():
                struck = self._struck(task, task.first)
                word = struck.first(arm.struck or "")
                assert word is not None, "an arm without this episode"
                return drive_on(self._scenario(task, task.first), driver, struck, word, frames=arm.frames)[0]
        fault = self.faults(task, task.first)[arm.struck]
        with one_thread(), driver.under(fault, task.setting.arrival):
            return Film(self._scenario(task, task.first), driver, decisions=task.decisions)

    def __getstate__(self) -> Mapping[str, Any]:
        """Without drivers, which each process makes for itself."""
        return {**self.__dict__, "_drivers": {}}

    def _all(self, task: Task, number: int) -> list[Record]:
        scenario = self._scenario(task, number)
        faults = self.faults(task, number)
        known: dict[str, Episode] = {}
        records = []
        for arm in task.setting.arms:
            driver = self.driver(arm, task.setting.target)
            with driver.under(faults[arm.struck], task.setting.arrival) as same:
                episode = known.get(same or "") or drive(scenario, driver, decisions=task.decisions)
                if same is not None:
                    known[same] = episode
            records.append(_record(number, arm, episode, driver))
        return records

    def _one_decision(self, task: Task, number: int) -> list[Record]:
        """What one decision becomes under faults drawn for it, then each arm with the first that turns it aside."""
        scenario, struck, (none, *arms) = self._scenario(task, number), self._struck(task, number), task.setting.arms
        records = [{**_record(number, none, struck.episode, self.driver(none, "values")), **struck.counts()}]
        for arm in arms:
            if (word := struck.first(arm.struck or "")) is not None:
                driver = self.driver(arm, "values")
                film, off = drive_on(scenario, driver, struck, word, frames=arm.frames)
                where = {"site": word["site"], "element": word["element"], "bit": int(word["flip"]).bit_length() - 1}
                records.append({**_record(number, arm, film.episode, driver), "off": round(off, 1), **where})
        return records

    def _struck(self, task: Task, number: int) -> StruckFrame:
        table = self.student.table(task.setting, "values", seed=task.seed, episode=number)
        words, driver = list(table.frame.iter_rows(named=True)), self.driver(task.setting.arms[0], "values")
        return strike_one_frame(self._scenario(task, number), driver, words, frame=drawn_frame(task.seed, number))

    @staticmethod
    def _scenario(task: Task, number: int) -> Scenario:
        return Scenario.drawn(task.seed, number, task.setting.roads)


def _record(number: int, arm: Arm, episode: Episode, driver: StruckStudent) -> Record:
    found = driver.found
    counts = {"corrected": found.corrected, "mitigated": found.mitigated, "uncorrectable": found.uncorrectable}
    return {"episode": number, "arm": arm.name, **asdict(episode), **counts, "held": driver.held}


@final
class School:
    """All students: called with a training seed and a task."""

    def __init__(self, rooms: Mapping[int, Classroom]) -> None:
        self.rooms = rooms

    def __call__(self, work: tuple[int, Task]) -> list[Record]:
        """The records of the task, by the student of that seed."""
        seed, task = work
        return self.rooms[seed](task)
