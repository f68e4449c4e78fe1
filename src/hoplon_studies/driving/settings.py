"""Faults that an episode begins with, and protections of the student: the settings and the rows of the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import polars as pl
from torch import nn

from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Population, Sampling, draw_faults, unit_generator
from hoplon.faults.sampling.measures import ElementUniform, TopScore
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable
from hoplon.importance._taylor import taylor
from hoplon.importance.scores import Scores
from hoplon.injection.replay.golden import Arrival
from hoplon.program.capturing import capture
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.ranges.profiling import profile_ranges
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.driving.training import Frames, lesson_seed, lessons, squared_error

WEIGHTS = Memory(kind=("conv", "linear"))
"""Sites that are struck and scored: weights and biases of convolutions and linear layers, all that a student has."""

ATTACKED, PROTECTED = 0.05, 0.01
"""Shares of the weights: the most important ones that are struck, and that Aspis keeps copies of.

They are scored on different tracks, and the first is wider: a guard of exactly what is attacked leaves nothing.
"""

_SPARE_DRAWS = 2  # times as many words are drawn as a fault has, since one may come up twice
_ATTACKER_SEED = 2_000_000


@final
@dataclass(frozen=True)
class Setting:
    """One way to strike: ``weights`` different ones at the start of an episode, each as ``fault_model`` says."""

    name: str
    title: str
    weights: int
    fault_model: FaultModel
    arrival: Arrival = "before"

    @property
    def text(self) -> str:
        """In words."""
        when = "before the guards' first check" if self.arrival == "before" else "just after the guards' first check"
        each = "1 weight" if self.weights == 1 else f"{self.weights} weights"
        return f"{each} per episode, {self.fault_model.name} in each, {when}"


_BUT_30 = tuple(bit for bit in range(32) if bit != 30)
SETTINGS = (
    Setting("main", "20 weights, 2 bits each", 20, BitFlip(2)),
    Setting("one", "one weight, bit 30", 1, BitFlip(bits=(30,))),
    Setting("stress", "100 weights, 2 bits each", 100, BitFlip(2)),
    Setting("control", "20 weights, 2 bits each, never bit 30", 20, BitFlip(2, bits=_BUT_30)),
    Setting("late", "20 weights, 2 bits each, too late for the first check", 20, BitFlip(2), "after"),
)


@final
@dataclass(frozen=True)
class Arm:
    """A row: which weights are struck, and the protections in place, by name in :attr:`Class.protections`.

    ``title``: on the page; ``short``: under a bar.
    """

    name: str
    title: str
    short: str
    struck: str | None
    protections: tuple[str, ...] = ()


ARMS = (
    Arm("none", "no faults", "no faults", None),
    Arm("random", "random faults", "random", "random"),
    Arm("important", "important weights", "important", "important"),
    Arm("ranger", "important weights + Ranger", "+ Ranger", "important", ("ranger",)),
    Arm("aspis", "important weights + Aspis-1 %", "+ Aspis", "important", ("aspis",)),
    Arm("ranger+aspis", "important weights + Ranger + Aspis-1 %", "+ both", "important", ("ranger", "aspis")),
    Arm("known-bits", "important weights + KnownBits", "+ KnownBits", "important", ("known-bits",)),
    Arm("parity", "important weights + Parity", "+ Parity", "important", ("parity",)),
)


@final
@dataclass(frozen=True, eq=False)
class Class:
    """A student with all that is made for it: what guards it, and where it is struck."""

    program: Program
    samplings: Mapping[str, Sampling]
    protections: Mapping[str, Protection]

    def table(self, setting: Setting, struck: str, *, seed: int, episode: int) -> FaultTable:
        """The fault of an episode: a function of setting, seed and episode alone, whatever the arm.

        One fault of several rows, all words different: the draws are those of a campaign, a word that came up already
        left out.
        """
        population = Population(WEIGHTS.select(self.program), setting.fault_model)
        drawn = draw_faults(
            population,
            setting.weights * _SPARE_DRAWS,
            sampling=self.samplings[struck],
            generator=unit_generator(seed, episode),
        )
        words = drawn.frame.unique(["site", "element"], keep="first", maintain_order=True).head(setting.weights)
        if words.height < setting.weights:
            raise HoplonError(
                f"expected {setting.weights} different weights to strike, got {words.height} of the {struck} ones; "
                "drive with a larger student"
            )
        return FaultTable("memory", words.with_columns(fault=pl.lit(0, pl.Int64), probability=pl.lit(float("nan"))))


def prepare(student: nn.Module, training_seed: int, *, range_tracks: int, score_tracks: int) -> Class:
    """Bounds and scores for the guards from the student's own lessons, scores for the attacker from other tracks.

    Args:
        student: in eval mode.
        training_seed: whose lessons it had.
        range_tracks: of lessons over which bounds are profiled.
        score_tracks: of lessons, and of the attacker's tracks, on which weights are scored.
    """
    seen = lessons(lesson_seed(training_seed), tracks=range_tracks).inputs("lessons")
    own = lessons(lesson_seed(training_seed), tracks=score_tracks)
    others = lessons(_ATTACKER_SEED + training_seed, tracks=score_tracks)
    program = capture(student, seen.take([0, 1]).tensors)
    ranges = profile_ranges(program, seen)
    protections = {
        "ranger": Ranger(ranges),
        "aspis": Aspis(_scores(program, own), PROTECTED),
        "known-bits": KnownBits(),
        "parity": Parity(),
    }
    attacked = TopScore(_scores(program, others).values, fraction=ATTACKED)
    return Class(program, {"random": ElementUniform(), "important": attacked}, protections)


def _scores(program: Program, frames: Frames) -> Scores:
    return taylor(program, frames.labelled("lessons"), loss=squared_error, sites=WEIGHTS)
