"""From records of episodes to counts, intervals and comparisons of arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from hoplon.stats.intervals import Interval, mcnemar, paired_difference, wilson
from hoplon_studies.driving.trials import Record

LEVEL = 0.05
"""Significance level of all comparisons of a setting together."""


@final
@dataclass(frozen=True)
class Tally:
    """Episodes of one arm.

    ``crashes``, ``stalls``, ``stops``: by ending; ``nonfinite``: episodes with a waypoint that was NaN or infinite;
    ``repaired``: episodes in which guards corrected or mitigated a word; ``hits``: crashes into an obstacle; ``crash``:
    the probability, Wilson 95 %.
    """

    episodes: int
    crashes: int
    stalls: int
    stops: int
    nonfinite: int
    repaired: int
    hits: int = 0

    def share(self, count: int) -> Interval:
        """Interval of a count's share of the episodes."""
        return wilson(count, self.episodes)

    @property
    def crash(self) -> Interval:
        """The share of episodes that end in a crash."""
        return self.share(self.crashes)


@final
@dataclass(frozen=True)
class PairedOutcomes:
    """Two arms on the same scenarios: crashes of one alone, and whether that is more than chance.

    ``difference``: crash probability of the first minus that of the second; ``p_value``: exact McNemar.
    """

    only_first: int
    only_second: int
    difference: Interval
    p_value: float

    def verdict(self, comparisons: int) -> str:
        """In words, at a level that holds for so many comparisons together (Bonferroni)."""
        if self.p_value >= LEVEL / comparisons:
            return "not told apart"
        return "more crashes" if self.only_first > self.only_second else "fewer crashes"


def tally(records: Sequence[Record], arm: str) -> Tally:
    """The episodes of one arm."""
    episodes = [record for record in records if record["arm"] == arm]
    endings = Counter(record["ending"] for record in episodes)
    nonfinite = sum(record["nonfinite"] > 0 for record in episodes)
    repaired = sum(record["corrected"] + record["mitigated"] > 0 for record in episodes)
    hits = sum(record.get("hit", False) for record in episodes)
    return Tally(len(episodes), endings["crash"], endings["stall"], endings["stopped"], nonfinite, repaired, hits)


def compared(records: Sequence[Record], first: str, second: str) -> PairedOutcomes:
    """Two arms, paired by student and scenario: records of one student follow each other in the order of episodes."""
    sides = [[record for record in records if record["arm"] == arm] for arm in (first, second)]
    assert [record["episode"] for record in sides[0]] == [record["episode"] for record in sides[1]], "unpaired"
    pairs = Counter(zip(*([record["ending"] == "crash" for record in side] for side in sides), strict=True))
    only_first, only_second = pairs[True, False], pairs[False, True]
    difference = paired_difference(only_first, only_second, pairs.total())
    return PairedOutcomes(only_first, only_second, difference, mcnemar(only_first, only_second))


def crashes_of_one(records: Sequence[Record], first: str, second: str) -> list[int]:
    """Episodes in which the first arm crashed and the second finished."""
    ended = {(record["arm"], record["episode"]): record["ending"] for record in records}
    numbers = dict.fromkeys(record["episode"] for record in records)
    return [n for n in numbers if ended.get((first, n)) == "crash" and ended.get((second, n)) == "finished"]


def record_of(records: Sequence[Record], arm: str, episode: int) -> Record:
    """The record of an episode of an arm."""
    return next(one for one in records if (one["arm"], one["episode"]) == (arm, episode))
