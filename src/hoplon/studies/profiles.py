"""How much a study runs: counts for continuous integration, for an hour, and the papers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from hoplon.errors import no_match


@final
@dataclass(frozen=True)
class AspisCounts:
    """Counts of the study of Aspis.

    Attributes:
        faults: random weights struck, per model and number of flipped bits.
        magnitude_faults: largest and smallest weights struck, each.
        important: the most important weights, which are struck.
        important_faults: how many of them.
        compared_faults: faults that all arms of a comparison meet.
        inputs: held-out inputs that a fault meets.
        calibration: inputs that scores and ranges come from.
        batch: inputs of a timed forward pass.
        repeats: blocks of interleaved timing, and runs over a whole data set.
        whole_inputs: inputs of a timed run over a data set.
        guards: protections whose overheads are measured, as `hoplon.studies.aspis.overheads.NAMES` has them.
        architectures: torchvision's networks that they are measured on.
        models: names of the zoo that faults are injected into.
    """

    faults: int
    magnitude_faults: int
    important: int
    important_faults: int
    compared_faults: int
    inputs: int
    calibration: int
    batch: int
    repeats: int
    whole_inputs: int
    guards: tuple[str, ...] = (
        "tmr",
        "tmr-sparse",
        "published-10%",
        "published-1%",
        "aspis-100%",
        "aspis-10%",
        "aspis-1%",
        "checksum",
        "known-bits",
        "parity",
        "ranger",
    )
    architectures: tuple[str, ...] = ("vgg19", "resnet50", "inception_v3")
    models: tuple[str, ...] = ("resnet20-cifar10", "resnet56-cifar10", "vgg11-cifar10")


@final
@dataclass(frozen=True)
class RangerCounts:
    """Counts of the study of Ranger.

    Attributes:
        faults: in fixed point, per network and arm.
        float_faults: in float32, likewise.
        inputs: that faults meet, per network; the paper takes 10.
        accuracy_inputs: held-out inputs for accuracy, at most.
        convergence_inputs: training images of the paper's figure 5.
        converging: networks of that figure.
        models: networks of the study.
        architectures: of the paper, whose operations are counted.
        train: train the networks that have no weights yet, which takes minutes each; otherwise their rows say so.
    """

    faults: int
    float_faults: int
    inputs: int = 10
    accuracy_inputs: int = 10_000
    convergence_inputs: int = 10_000
    converging: tuple[str, ...] = ("vgg16", "vgg11", "lenet")
    models: tuple[str, ...] = (
        *("lenet", "alexnet", "vgg11", "vgg16", "resnet18", "squeezenet", "resnet20", "resnet56"),
        *("dave-radians", "comma", "dave-degrees"),
    )
    architectures: tuple[str, ...] = (
        *("lenet", "alexnet", "vgg11", "vgg16", "resnet18", "squeezenet"),
        *("dave-radians", "dave-degrees", "comma"),
    )
    train: bool = True


@final
@dataclass(frozen=True)
class DrivingCounts:
    """Counts of the study of closed-loop driving.

    Attributes:
        students: training seeds of the students.
        main: episodes of each student and each row in the main setting.
        other: the same in the other settings.
        range_tracks: lessons from which bounds are profiled, 200 frames each.
        score_tracks: lessons on which weights are scored.
    """

    students: tuple[int, ...]
    main: int
    other: int
    range_tracks: int
    score_tracks: int


@final
@dataclass(frozen=True)
class Profile:
    """Counts of all studies under one name."""

    name: str
    aspis: AspisCounts
    ranger: RangerCounts
    driving: DrivingCounts


QUICK = Profile(
    name="quick",
    aspis=AspisCounts(
        faults=8,
        magnitude_faults=4,
        important=500,
        important_faults=8,
        compared_faults=6,
        inputs=16,
        calibration=64,
        batch=1,
        repeats=6,
        whole_inputs=32,
        guards=("tmr", "published-1%", "aspis-1%", "checksum", "ranger"),
        architectures=("resnet50",),
        models=("resnet20-cifar10",),
    ),
    ranger=RangerCounts(
        faults=200,
        float_faults=200,
        accuracy_inputs=200,
        convergence_inputs=256,
        converging=("lenet-quick",),
        models=("lenet-quick", "resnet20"),
        architectures=("lenet", "alexnet", "vgg11", "dave-radians", "comma"),
        train=False,
    ),
    driving=DrivingCounts(students=(0,), main=8, other=2, range_tracks=6, score_tracks=3),
)
STANDARD = Profile(
    name="standard",
    aspis=AspisCounts(
        faults=300,
        magnitude_faults=100,
        important=500,
        important_faults=300,
        compared_faults=200,
        inputs=64,
        calibration=1000,
        batch=2,
        repeats=6,
        whole_inputs=1024,
    ),
    ranger=RangerCounts(faults=5000, float_faults=10_000, accuracy_inputs=4000, convergence_inputs=4000),
    driving=DrivingCounts(students=(0, 1, 2), main=100, other=30, range_tracks=40, score_tracks=10),
)
PAPER = Profile(
    name="paper",
    aspis=AspisCounts(
        faults=1000,
        magnitude_faults=100,
        important=500,
        important_faults=500,
        compared_faults=1000,
        inputs=10_000,
        calibration=10_000,
        batch=256,
        repeats=50,
        whole_inputs=10_000,
    ),
    ranger=RangerCounts(faults=50_000, float_faults=50_000),
    driving=DrivingCounts(students=(0, 1, 2), main=370, other=120, range_tracks=80, score_tracks=20),
)

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (QUICK, STANDARD, PAPER)}


def profile_named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        SiteError: there is none; the message lists near names.
    Example:
        >>> profile_named("paper").aspis.faults
        1000
    """
    if name not in PROFILES:
        raise no_match("profile", name, tuple(PROFILES))
    return PROFILES[name]
