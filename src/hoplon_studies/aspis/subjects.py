"""The networks that the study of Aspis strikes: those with weights here, and what they stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from hoplon.errors import DataError, HoplonError
from hoplon.faults.single_word import BitFlip
from hoplon.importance._taylor import taylor
from hoplon.importance.damage.score import expected_damage
from hoplon.importance.scores import Scores
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.resolve import resolve_model
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.training.recipes import RECIPES
from hoplon_studies.training.weights import trained

CONVOLUTIONS = Memory("*.weight", kind="conv")
NO_WEIGHTS = "no weights here"
NO_DATA = "no data here"
WAITS = "waits for hoplon study aspis --profile networks"
LABELS = {"vgg19": "VGG19", "inception_v3": "Inception v3", "resnet50": "ResNet50"}
_LISTED = {
    "resnet20-cifar10": ("ResNet-20", "resnet50", "cifar10"),
    "resnet56-cifar10": ("ResNet-56", "resnet50", "cifar10"),
    "vgg11-cifar10": ("VGG11", "vgg19", "cifar10"),
    "vgg19-cifar10": ("VGG19", "vgg19", "cifar10"),
    "resnet50-cifar10": ("ResNet50", "resnet50", "cifar10"),
    "inception-v3-cifar10": ("Inception v3", "inception_v3", "cifar10-75"),
    "efficientnet-lite0": ("EfficientNet-Lite0", "", "imagenet-samples"),
}
_DATA_LABELS = {"imagenet-samples": "ImageNet"}


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A network with its weights and data.

    Attributes:
        name: of its folders.
        label: on the page.
        data: what it classifies, on the page.
        stands_for: the paper's network it is set beside; empty for the user's own.
        program: captured.
        known: inputs that scores and ranges come from; the network may have seen them.
        calibration: all inputs that those are drawn from.
        met: held-out inputs that faults meet.
        held_out: all held-out inputs.
    """

    name: str
    label: str
    data: str
    stands_for: str
    program: Program
    module: nn.Module
    known: Inputs
    calibration: Inputs
    met: Inputs
    held_out: Inputs

    @property
    def title(self) -> str:
        """It and its data, on the page."""
        return f"{self.label} on {self.data}"

    def row(self, where: str, what: str, unit: str = "%", **known: Any) -> Row:
        """A row about it with what is ``known``, by name."""
        return Row(where, self.label, self.data, what, unit, stands_for=LABELS.get(self.stands_for, ""), **known)

    def scores(self, inputs: Inputs | None = None) -> Scores:
        """Taylor scores of its convolution weights, on what is known, or on these inputs."""
        return taylor(self.program, self.known if inputs is None else inputs, loss=F.cross_entropy, sites=CONVOLUTIONS)

    def scores_of_half(self) -> Scores:
        """Taylor scores on the first half of what is known."""
        return self.scores(self.known.take(torch.arange(len(self.known) // 2)))

    def damage(self) -> Scores:
        """Expected damage of its convolution weights under two random bits, on what is known."""
        return expected_damage(
            self.program, self.known, loss=F.cross_entropy, sites=CONVOLUTIONS, fault_model=BitFlip(2)
        )


@final
@dataclass(frozen=True)
class Absent:
    """A network without weights or data here, and what it lacks."""

    label: str
    data: str
    stands_for: str
    why: str

    def row(self, where: str, what: str, unit: str = "%", **known: Any) -> Row:
        """A row about it with nothing found here."""
        return Row(where, self.label, self.data, what, unit, why=self.why, **known)


def each_subject(context: Context) -> Iterator[Subject | Absent]:
    """The networks of the profile, then the user's own, loaded one after the other."""
    counts = context.profile.aspis
    for name in (*counts.models, *counts.waiting):
        label, stands_for, data_name = _LISTED[name]
        names = (label, _DATA_LABELS.get(data_name, "CIFAR-10"), stands_for)
        if name in counts.waiting:
            yield Absent(*names, WAITS)
            continue
        try:
            model, data = loaded(name, context), context.data(data_name)
        except DataError:
            yield Absent(*names, NO_WEIGHTS)
            continue
        yield subject_of(context, model, data, (name, *names))
    if context.own is not None:
        model, data = context.own
        yield subject_of(context, model, data, ("own", model.name, data.name, ""))


def stood_for(context: Context) -> set[str]:
    """The paper's networks for which one of the profile stands in."""
    return {_LISTED[name][1] for name in context.profile.aspis.models}


def of_each(
    context: Context,
    present: Callable[[Subject, Context], Iterable[Finding]],
    absent: Callable[[Absent], Iterable[Row]],
) -> Iterator[Finding]:
    """Findings about each network, or its rows where it is absent."""
    for subject in each_subject(context):
        yield from absent(subject) if isinstance(subject, Absent) else present(subject, context)


def loaded(name: str, context: Context) -> ZooModel:
    """A network with weights that are here already, or trained now where the profile trains."""
    if name not in RECIPES:
        return resolve_model(name)
    return trained(name, make=context.profile.aspis.train, progress=context.training(name))


def subject_of(context: Context, model: ZooModel, inputs: ZooData, names: tuple[str, str, str, str]) -> Subject:
    """A network by the first four fields of a subject."""
    counts = context.profile.aspis
    if inputs.held_out.y is None or inputs.calibration.y is None:
        raise HoplonError(f"expected labelled data, got {inputs.name} without labels; importance is that of a loss")
    return Subject(
        *names,
        program=capture(model.module, model.example, name=model.name),
        module=model.module,
        known=inputs.calibration.sample(counts.calibration, seed=context.seed),
        calibration=inputs.calibration,
        met=inputs.held_out.sample(counts.inputs, seed=context.seed),
        held_out=inputs.held_out,
    )
