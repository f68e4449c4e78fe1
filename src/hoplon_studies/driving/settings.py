"""Faults that an episode begins with, and protections of the student: the settings and the rows of the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import polars as pl
import torch
from torch import nn

from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Population, Sampling, draw_faults, unit_generator
from hoplon.faults.sampling.measures import ElementUniform, TopScore
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable, Target
from hoplon.importance._taylor import taylor
from hoplon.importance.scores import Scores
from hoplon.injection.replay.golden import Arrival
from hoplon.program.capturing import capture
from hoplon.program.program import Program
from hoplon.program.sites import Memory, Values
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.values.policy import Detect, RandomInRange, ToMedian, ToZero
from hoplon.protections.values.ranger import Ranger
from hoplon.zoo.seeding import one_thread
from hoplon_studies.driving.episodes import DECISIONS
from hoplon_studies.driving.film_strip import Film
from hoplon_studies.driving.injected_driver import StruckStudent
from hoplon_studies.driving.previous_frame import PreviousFrame, largest_jumps
from hoplon_studies.driving.training import Frames, lesson_seed, lessons, squared_error
from hoplon_studies.driving.world.roads import Floats
from hoplon_studies.driving.world.simulator import Roads, Scenario

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
class Arm:
    """A row: which weights are struck, and the protections in place, by name in :attr:`Class.protections`.

    ``title``: on the page; ``short``: under a bar; ``frames``: of one decision, how many in a row are struck.
    """

    name: str
    title: str
    short: str
    struck: str | None
    protections: tuple[str, ...] = ()
    frames: int = 1


_NONE = Arm("none", "no faults", "no faults", None)
_IMPORTANT = Arm("important", "important weights", "important", "important")
_RANGER = Arm("ranger", "important weights + Ranger", "+ Ranger", "important", ("ranger",))
_ZERO = Arm("zero", "important weights + Ranger zero", "+ zero", "important", ("zero",))
ARMS = (
    _NONE,
    Arm("random", "random faults", "random", "random"),
    _IMPORTANT,
    _RANGER,
    _ZERO,
    Arm("aspis", "important weights + Aspis-1 %", "+ Aspis", "important", ("aspis",)),
    Arm("ranger+aspis", "important weights + Ranger + Aspis-1 %", "+ both", "important", ("ranger", "aspis")),
    Arm("known-bits", "important weights + KnownBits", "+ KnownBits", "important", ("known-bits",)),
    Arm("parity", "important weights + Parity", "+ Parity", "important", ("parity",)),
)
_PAIRS = (
    *(("random", "none"), ("important", "random"), ("important", "ranger"), ("ranger", "zero")),
    *(("important", "aspis"), ("important", "known-bits"), ("important", "parity")),
    *(("aspis", "ranger"), ("ranger", "ranger+aspis")),
)
_PREVIOUS = Arm("previous", "important weights + previous frame", "+ previous", "important", ("previous",))
_HELD = (
    Arm("none-previous", "no faults + previous frame", "no faults", None, ("previous",)),
    _IMPORTANT,
    _RANGER,
    _PREVIOUS,
)
_POLICIES = (("zero", "zero"), ("median", "median"), ("random", "random"), ("channel", "per channel"))


def _with_bounds(name: str, title: str, short: str, struck: str) -> tuple[Arm, ...]:
    """Struck without protection, then with bounds for each of what a value outside becomes."""
    bounds = (("ranger", "Ranger", "+ Ranger"), *((key, f"Ranger {words}", f"+ {words}") for key, words in _POLICIES))
    guarded = (Arm(f"{name}-{key}", f"{title} + {words}", under, struck, (key,)) for key, words, under in bounds)
    return Arm(name, title, short, struck), *guarded


@final
@dataclass(frozen=True)
class Setting:
    """One way to strike: ``count`` different words, each as ``fault_model`` says.

    Attributes:
        name, title: of files and headings.
        count: weights, all struck at the start of an episode; of ``values``: one before each decision.
        arrival: before or after the guards' first check.
        target: ``"memory"``, or ``"values"``: outputs of operators, each of one decision.
        arms: the rows.
        pairs: of arms that are compared.
        often: driven as often as the main setting.
        roads: on which it is driven.
        brief: the page says in a sentence how rows compare; the table is in the JSON.
        one_decision: a single decision is struck, and of ``count`` faults drawn for it only the first one is driven
            that turns it aside.
        faults: in words; the title by default.
    """

    name: str
    title: str
    count: int
    fault_model: FaultModel
    arrival: Arrival = "before"
    target: Target = "memory"
    arms: tuple[Arm, ...] = ARMS
    pairs: tuple[tuple[str, str], ...] = _PAIRS
    often: bool = False
    roads: Roads = "winding"
    one_decision: bool = False
    brief: bool = False
    faults: str = ""

    @property
    def text(self) -> str:
        """In words."""
        faults = self.faults or self.title
        if self.target == "values":
            return faults
        return f"{faults}: struck {'just after' if self.arrival == 'after' else 'before'} the guards' first check"


_STRAIGHT = (
    *(arm for arm in ARMS if arm.name in ("none", "random", "important", "ranger", "zero", "aspis")),
    _PREVIOUS,
)
_BUT_30 = tuple(bit for bit in range(32) if bit != 30)
_INSIDE = (
    Arm("inside", "top 1 % struck", "struck", "inside"),
    Arm("inside-ranger", "top 1 % struck + Ranger", "+ Ranger", "inside", ("ranger",)),
    Arm("inside-zero", "top 1 % struck + Ranger zero", "+ zero", "inside", ("zero",)),
    Arm("inside-aspis", "top 1 % struck + Aspis-1 %", "+ Aspis", "inside", ("aspis",)),
)
_BOUNDED = _with_bounds("bit-30", "a weight's bit 30", "bit 30", "important")
_IN_FLIGHT = _with_bounds("value", "values struck", "struck", "values")
_ASIDE = (
    _NONE,
    Arm("aside", "one decision aside", "one aside", "wheel"),
    Arm("aside-ranger", "one decision aside + Ranger", "+ Ranger", "wheel", ("ranger",)),
    Arm("aside-zero", "one decision aside + Ranger zero", "+ zero", "wheel", ("zero",)),
    Arm("aside-channel", "one decision aside + Ranger per channel", "+ per channel", "wheel", ("channel",)),
    Arm("aside-previous", "one decision aside + previous frame", "+ previous", "wheel", ("previous",)),
    Arm("aside-direction", "one decision aside in direction", "direction", "direction"),
    Arm("aside-4", "4 decisions in a row", "4 in a row", "wheel", frames=4),
    Arm("aside-4-ranger", "4 decisions in a row + Ranger", "4 + Ranger", "wheel", ("ranger",), frames=4),
    Arm("aside-4-previous", "4 decisions in a row + previous frame", "4 + previous", "wheel", ("previous",), frames=4),
)


def _policies(arms: tuple[Arm, ...]) -> tuple[tuple[str, str], ...]:
    """Each protection against none, then against the clamp."""
    none, clamp, *others = (arm.name for arm in arms)
    return (none, clamp), *((clamp, other) for other in others)


_TWENTY = "20 weights, 2 bits each"
SETTINGS = (
    Setting("main", _TWENTY, 20, BitFlip(2), often=True),
    Setting(
        "inside",
        "20 weights of the protected 1 %, 2 bits each",
        20,
        BitFlip(2),
        arms=_INSIDE,
        pairs=(("inside", "inside-ranger"), ("inside-ranger", "inside-zero"), ("inside-ranger", "inside-aspis")),
        often=True,
    ),
    Setting("one", "one weight, bit 30", 1, BitFlip(bits=(30,))),
    Setting("stress", "100 weights, 2 bits each", 100, BitFlip(2)),
    Setting("control", "20 weights, 2 bits each, never bit 30", 20, BitFlip(2, bits=_BUT_30)),
    Setting("late", "20 weights, 2 bits each, too late for the first check", 20, BitFlip(2), "after", faults=_TWENTY),
    Setting(
        "policies",
        "one weight, bit 30: what a value outside of its bound becomes",
        1,
        BitFlip(bits=(30,)),
        arms=_BOUNDED,
        pairs=_policies(_BOUNDED),
        often=True,
        faults="one weight, bit 30",
    ),
    Setting(
        "values",
        "one value of each decision, bit 30",
        DECISIONS,
        BitFlip(bits=(30,)),
        target="values",
        arms=_IN_FLIGHT,
        pairs=_policies(_IN_FLIGHT),
        often=True,
        brief=True,
        faults="bit 30 of one value in each decision, drawn from all operator outputs",
    ),
    Setting(
        "previous",
        "20 weights, 2 bits each, held by the frame before",
        20,
        BitFlip(2),
        arms=_HELD,
        pairs=(("important", "previous"), ("previous", "ranger")),
        brief=True,
        faults=f"{_TWENTY}, as above",
    ),
    Setting(
        "straight",
        "a straight road with an obstacle, 20 weights, 2 bits each",
        20,
        BitFlip(2),
        arms=_STRAIGHT,
        pairs=(*_PAIRS[:5], ("important", "previous")),
        roads="straight",
        brief=True,
        faults=_TWENTY,
    ),
    Setting(
        "single",
        "one value of one decision, any bit",
        1,
        BitFlip(1),
        target="values",
        arms=_ASIDE,
        pairs=(
            *(("aside", f"aside-{policy}") for policy in ("ranger", "zero", "channel", "previous")),
            *(("aside-4", arm) for arm in ("aside", "aside-4-ranger", "aside-4-previous")),
        ),
        one_decision=True,
        brief=True,
        faults="one bit of one value of one decision, drawn from all operator outputs",
    ),
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
        left out. Of values, a row is the fault of one decision.
        """
        sites, inputs = (WEIGHTS, None) if setting.target == "memory" else (Values(), torch.zeros(1, dtype=torch.int64))
        population = Population(sites.select(self.program), setting.fault_model, inputs)
        drawn = draw_faults(
            population,
            setting.count * _SPARE_DRAWS,
            sampling=self.samplings[struck],
            generator=unit_generator(seed, episode),
        )
        words = drawn.frame.unique(["site", "element"], keep="first", maintain_order=True).head(setting.count)
        if words.height < setting.count:
            raise HoplonError(
                f"expected {setting.count} different words to strike, got {words.height} of the {struck} ones; "
                "drive with a larger student"
            )
        return FaultTable(
            setting.target, words.with_columns(fault=pl.lit(0, pl.Int64), probability=pl.lit(float("nan")))
        )


def prepare(
    student: nn.Module, training_seed: int, *, range_tracks: int, score_tracks: int, roads: Roads = "winding"
) -> Class:
    """Bounds and scores for the guards from the student's own lessons, scores for the attacker from other tracks.

    Args:
        student: in eval mode.
        training_seed: whose lessons it had.
        range_tracks: of lessons over which bounds are profiled.
        score_tracks: of lessons, and of the attacker's tracks, on which weights are scored.
        roads: of its lessons, and of all of these.
    """
    seen = lessons(lesson_seed(training_seed), tracks=range_tracks, roads=roads).inputs("lessons")
    own = lessons(lesson_seed(training_seed), tracks=score_tracks, roads=roads)
    others = lessons(_ATTACKER_SEED + training_seed, tracks=score_tracks, roads=roads)
    program = capture(student, seen.take([0, 1]).tensors)
    profile = profile_activations(program, seen, per_channel=True)
    ranges, scores = profile.ranges(), _scores(program, own)
    protections = {
        "ranger": Ranger(ranges),
        "zero": Ranger(ranges, policy=ToZero()),
        "median": Ranger(profile.ranges(medians=True), policy=ToMedian()),
        "random": Ranger(ranges, policy=RandomInRange()),
        "channel": Ranger(profile.ranges(per_channel=True)),
        "previous": PreviousFrame(
            Ranger(ranges, policy=Detect()),
            _jumps(program, [Scenario.drawn(lesson_seed(training_seed), n, roads) for n in range(range_tracks)]),
        ),
        "aspis": Aspis(scores, PROTECTED),
        "known-bits": KnownBits(),
        "parity": Parity(),
    }
    samplings = {
        "random": ElementUniform(),
        "values": ElementUniform(),
        "wheel": ElementUniform(),
        "important": TopScore(_scores(program, others).values, fraction=ATTACKED),
        "inside": TopScore(scores.values, fraction=PROTECTED),
    }
    return Class(program, samplings, protections)


def _jumps(program: Program, scenarios: Iterable[Scenario]) -> tuple[float, ...]:
    """The farthest that waypoints move from frame to frame while the fault-free student drives these."""
    drives: list[list[Floats]] = []
    driver = StruckStudent(program, ())
    for scenario in scenarios:
        with one_thread(), driver.under([]):
            film = Film(scenario, driver, decisions=DECISIONS)
        drives.append([moment.waypoints for moment in film.moments])
    return largest_jumps(drives)


def _scores(program: Program, frames: Frames) -> Scores:
    return taylor(program, frames.labelled("lessons"), loss=squared_error, sites=WEIGHTS)
