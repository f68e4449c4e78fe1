"""Sizes of a study: for continuous integration, for an hour, the papers' own or more, and with more networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, final

from hoplon.errors import no_match

GUARDS = (
    *("tmr", "tmr-sparse", "published-10%", "published-1%", "aspis-100%", "aspis-10%", "aspis-1%"),
    *("structural coding", "radar", "checksum", "known-bits", "parity", "ranger"),
)
LARGE = ("vgg19", "resnet50", "inception_v3")
STAND_INS = ("resnet20-cifar10", "resnet56-cifar10", "vgg11-cifar10")
NETWORKS = (
    *("lenet", "alexnet", "vgg11", "vgg16", "resnet18", "squeezenet", "resnet20", "resnet56"),
    *("dave-radians", "comma", "dave-degrees"),
)
TRAINED = ("vgg19-cifar10", "resnet50-cifar10", "inception-v3-cifar10", "efficientnet-lite0")
DRAWN = (*NETWORKS[:6], "dave-radians", "dave-degrees", "comma")
CONVERGING = ("vgg16", "vgg11", "lenet")


T = TypeVar("T", "AspisCounts", "RangerCounts", "DrivingCounts")


def by_profile(quick: Any, standard: Any, paper: Any, networks: Any = None) -> Any:
    """A field without a default, with its counts in the four profiles; in the last those of ``standard`` by default."""
    return field(metadata={"counts": (quick, standard, paper, standard if networks is None else networks)})


@final
@dataclass(frozen=True)
class AspisCounts:
    """Counts of the study of Aspis.

    Attributes:
        faults: random weights struck, per model and number of flipped bits.
        magnitude_faults: largest and smallest weights struck, each.
        important: the most important weights, which are struck.
        important_faults: how many of them.
        bit_faults: weights of which bit 30 is chosen or spared, per choice of weights.
        compared_faults: faults that all arms of a comparison meet.
        inputs: held-out inputs that a fault meets.
        calibration: inputs that scores and ranges come from.
        batch: inputs of a timed forward pass.
        repeats: blocks of interleaved timing.
        full_passes: timed forward passes at the paper's batch.
        whole_inputs: inputs of a timed run over a data set.
        whole_repeats: such runs.
        guards: protections whose overheads are measured, as `hoplon_studies.aspis.overheads.NAMES` has them.
        architectures: torchvision's networks that they are measured on.
        models: names of the zoo that faults are injected into.
        waiting: those that another profile has, of which rows say so.
        other_data: of the zoo, on which weights are scored beside the networks' own data.
        tuning: inputs on which a network is trained a little further, each twice.
        covered_faults: of each class that meet the guards of Table V.
        train: train the networks that have no weights yet, for up to 70 minutes each; otherwise their rows say so.
    """

    faults: int = by_profile(8, 300, 1000, 100)
    magnitude_faults: int = by_profile(4, 100, 100, 50)
    important: int = by_profile(500, 500, 500)
    important_faults: int = by_profile(8, 300, 500, 100)
    bit_faults: int = by_profile(4, 200, 500, 60)
    compared_faults: int = by_profile(6, 150, 1000, 60)
    inputs: int = by_profile(16, 64, 10_000, 32)
    calibration: int = by_profile(64, 1000, 10_000, 500)
    batch: int = by_profile(1, 2, 256)
    repeats: int = by_profile(6, 6, 50)
    full_passes: int = by_profile(0, 2, 6)
    whole_inputs: int = by_profile(32, 256, 10_000)
    whole_repeats: int = by_profile(6, 16, 50)
    guards: tuple[str, ...] = by_profile(("tmr", "published-1%", "aspis-1%", "checksum", "ranger"), GUARDS, GUARDS)
    architectures: tuple[str, ...] = by_profile(("resnet50",), LARGE, LARGE)
    models: tuple[str, ...] = by_profile(("resnet20-cifar10",), STAND_INS, STAND_INS, (STAND_INS[-1], *TRAINED))
    waiting: tuple[str, ...] = by_profile((), TRAINED, TRAINED, ())
    other_data: tuple[str, ...] = by_profile(("mnist",), *[("gtsrb", "mnist")] * 2)
    tuning: int = by_profile(128, 6400, 6400, 2560)
    covered_faults: int = by_profile(4, 100, 1000, 50)
    train: bool = by_profile(False, False, False, True)


@final
@dataclass(frozen=True)
class RangerCounts:
    """Counts of the study of Ranger.

    Attributes:
        faults: in fixed point, per network and arm.
        float_faults: in float32, likewise.
        weight_faults: weights struck, likewise.
        inputs: that faults meet, per network; the paper takes 10.
        accuracy_inputs: held-out inputs for accuracy, at most.
        convergence_inputs: training images of the paper's figure 5.
        converging: networks of that figure.
        models: networks of the study.
        architectures: of the paper, whose operations are counted.
        train: train the networks that have no weights yet, which takes minutes each; otherwise their rows say so.
        at_length: networks trained on all images there are, for up to 70 minutes each, in place of the others.
    """

    faults: int = by_profile(200, 5000, 50_000)
    float_faults: int = by_profile(200, 10_000, 50_000)
    weight_faults: int = by_profile(20, 400, 2000)
    inputs: int = by_profile(10, 10, 10)
    accuracy_inputs: int = by_profile(200, 4000, 10_000)
    convergence_inputs: int = by_profile(256, 4000, 10_000)
    converging: tuple[str, ...] = by_profile(("lenet-quick",), CONVERGING, CONVERGING)
    models: tuple[str, ...] = by_profile(("lenet-quick", "resnet20"), NETWORKS, NETWORKS, (*NETWORKS, "lite0"))
    architectures: tuple[str, ...] = by_profile(("lenet", "alexnet", "vgg11", "dave-radians", "comma"), DRAWN, DRAWN)
    train: bool = by_profile(False, True, True)
    at_length: bool = by_profile(False, False, False, True)


@final
@dataclass(frozen=True)
class DrivingCounts:
    """Counts of the study of closed-loop driving.

    Attributes:
        students: training seeds of the students.
        main: episodes of each student and each row in the main setting.
        other: the same in the other settings.
        single_students: those of them of which one decision is struck.
        single: episodes of each of these.
        single_faults: faults drawn for it, of which the first that turns the car aside is driven.
        obstacle: episodes on the straight road with an obstacle.
        range_tracks: lessons from which bounds are profiled, 200 frames each.
        score_tracks: lessons on which weights are scored.
    """

    students: tuple[int, ...] = by_profile((0,), (0, 1, 2), (0, 1, 2))
    main: int = by_profile(8, 100, 370)
    other: int = by_profile(2, 30, 120)
    single_students: tuple[int, ...] = by_profile((0,), (0, 1), (0, 1, 2))
    single: int = by_profile(4, 80, 1000)
    single_faults: int = by_profile(64, 128, 256)
    obstacle: int = by_profile(4, 100, 400)
    range_tracks: int = by_profile(6, 40, 80)
    score_tracks: int = by_profile(3, 10, 20)


@final
@dataclass(frozen=True)
class Profile:
    """Counts of all studies under one name."""

    name: str
    aspis: AspisCounts
    ranger: RangerCounts
    driving: DrivingCounts


def _counts(kind: type[T], at: int) -> T:
    return kind(**{field.name: field.metadata["counts"][at] for field in fields(kind)})


PROFILES: Mapping[str, Profile] = {
    name: Profile(name, _counts(AspisCounts, at), _counts(RangerCounts, at), _counts(DrivingCounts, at))
    for at, name in enumerate(("quick", "standard", "paper", "networks"))
}


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
