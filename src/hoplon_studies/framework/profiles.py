"""How much a study runs: counts for continuous integration, for an hour, and the papers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from hoplon.errors import no_match

GUARDS = (
    *("tmr", "tmr-sparse", "published-10%", "published-1%", "aspis-100%", "aspis-10%", "aspis-1%"),
    *("checksum", "known-bits", "parity", "ranger"),
)
LARGE = ("vgg19", "resnet50", "inception_v3")
STAND_INS = ("resnet20-cifar10", "resnet56-cifar10", "vgg11-cifar10")
NETWORKS = (
    *("lenet", "alexnet", "vgg11", "vgg16", "resnet18", "squeezenet", "resnet20", "resnet56"),
    *("dave-radians", "comma", "dave-degrees"),
)
DRAWN = (
    *("lenet", "alexnet", "vgg11", "vgg16", "resnet18", "squeezenet"),
    *("dave-radians", "dave-degrees", "comma"),
)
CONVERGING = ("vgg16", "vgg11", "lenet")


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
        guards: protections whose overheads are measured, as `hoplon_studies.aspis.overheads.NAMES` has them.
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
    guards: tuple[str, ...]
    architectures: tuple[str, ...]
    models: tuple[str, ...]


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
    inputs: int
    accuracy_inputs: int
    convergence_inputs: int
    converging: tuple[str, ...]
    models: tuple[str, ...]
    architectures: tuple[str, ...]
    train: bool


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


_NAMES = ("quick", "standard", "paper")
_Counts = Mapping[str, tuple[Any, Any, Any]]
"""Counts by field: quick, standard, paper."""

_ASPIS: _Counts = {
    "faults": (8, 300, 1000),
    "magnitude_faults": (4, 100, 100),
    "important": (500, 500, 500),
    "important_faults": (8, 300, 500),
    "compared_faults": (6, 200, 1000),
    "inputs": (16, 64, 10_000),
    "calibration": (64, 1000, 10_000),
    "batch": (1, 2, 256),
    "repeats": (6, 6, 50),
    "whole_inputs": (32, 1024, 10_000),
    "guards": (("tmr", "published-1%", "aspis-1%", "checksum", "ranger"), GUARDS, GUARDS),
    "architectures": (("resnet50",), LARGE, LARGE),
    "models": (("resnet20-cifar10",), STAND_INS, STAND_INS),
}
_RANGER: _Counts = {
    "faults": (200, 5000, 50_000),
    "float_faults": (200, 10_000, 50_000),
    "inputs": (10, 10, 10),
    "accuracy_inputs": (200, 4000, 10_000),
    "convergence_inputs": (256, 4000, 10_000),
    "converging": (("lenet-quick",), CONVERGING, CONVERGING),
    "models": (("lenet-quick", "resnet20"), NETWORKS, NETWORKS),
    "architectures": (("lenet", "alexnet", "vgg11", "dave-radians", "comma"), DRAWN, DRAWN),
    "train": (False, True, True),
}
_DRIVING: _Counts = {
    "students": ((0,), (0, 1, 2), (0, 1, 2)),
    "main": (8, 100, 370),
    "other": (2, 30, 120),
    "range_tracks": (6, 40, 80),
    "score_tracks": (3, 10, 20),
}


def _profile(at: int) -> Profile:
    aspis, ranger, driving = ({name: row[at] for name, row in table.items()} for table in (_ASPIS, _RANGER, _DRIVING))
    return Profile(_NAMES[at], AspisCounts(**aspis), RangerCounts(**ranger), DrivingCounts(**driving))


PROFILES: Mapping[str, Profile] = {name: _profile(at) for at, name in enumerate(_NAMES)}


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
