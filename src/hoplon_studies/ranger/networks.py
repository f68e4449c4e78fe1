"""The networks that the study of Ranger strikes: the paper's, or what stands in where weights or data are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import as_criterion
from hoplon.criteria.regression import Deviation
from hoplon.errors import DataError
from hoplon.faults.sampling.measures import OpUniform
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.ranges.profile import Profile
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.ranger import last_linear
from hoplon.zoo.datasets._driving import TrivialErrors, trivial_errors
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.resolve import resolve_model
from hoplon_studies.framework.study import Context
from hoplon_studies.networks.architectures import ARCHITECTURES
from hoplon_studies.networks.efficientnet import LITE0
from hoplon_studies.training.recipes import RECIPES, training_set
from hoplon_studies.training.validation import rmse
from hoplon_studies.training.weights import trained
from hoplon_studies.training.wheel import NAME as RACING

DRIVE = "driving"  # the recorded drive's name in the zoo
NO_WEIGHTS = "no weights here"
WAITS = "waits for hoplon study ranger --profile networks"
_MISSED = ("HOPLON_DATA", "gymnasium")  # of what is missing, named on the page
_BATCH = 100


@final
@dataclass(frozen=True)
class Listing:
    """One network of the study before it is loaded.

    Attributes:
        key: of folders and of published values.
        label: on the page.
        weights: its name in the zoo.
        data: of the zoo.
        data_label: on the page.
        told: what it is, for the table of networks.
        paper: the network of the paper beside which it stands, and its data; empty where there is none.
        kinds, last: operators that are struck, as in :class:`hoplon_studies.networks.architectures.Architecture`.
    """

    key: str
    label: str
    weights: str
    data: str
    data_label: str
    told: str = ""
    paper: tuple[str, str] = ("", "")
    kinds: tuple[str, ...] | None = None
    last: int = 2

    @property
    def stands_for(self) -> str:
        """The paper's network and data, where this is another network or on other data; empty otherwise."""
        if self.steers:
            return f"{self.label} on frames of a car"
        own = self.paper[1] not in _ABSENT_DATA or self.data_label == self.paper[1]
        return "" if own else " on ".join(self.paper)

    @property
    def steers(self) -> bool:
        """True if its output is a steering angle."""
        return self.data in (RACING, DRIVE)

    @property
    def tanh(self) -> str:
        """Name in the zoo of the same network with hyperbolic tangents; empty where there is none."""
        return f"{self.weights}-tanh" if f"{self.weights}-tanh" in RECIPES else ""

    @property
    def top5(self) -> bool:
        """True if the paper also counts the five best classes."""
        return self.paper[1] == "ImageNet"


def _listing(key: str, label: str, weights: str, data: str, told: str) -> Listing:
    data_label = _DATA_LABELS[data]
    if (beside := ARCHITECTURES.get(key.removesuffix("-quick"))) is None:
        return Listing(key, label, weights, data, data_label, told)
    paper = (beside.title, beside.data)
    return Listing(key, label, weights, data, data_label, told, paper, beside.kinds, beside.last)


_ABSENT_DATA = ("GTSRB", "ImageNet")
_DATA_LABELS = {
    "mnist": "MNIST-10k",
    "cifar10": "CIFAR-10",
    "cifar10-plain": "CIFAR-10",
    "cifar10-64": "CIFAR-10",
    "cifar10-plain-64": "CIFAR-10",
    "gtsrb": "GTSRB",
    "imagenet-samples": "ImageNet",
    RACING: "CarRacing frames",
    DRIVE: "recorded frames",
}
_MNIST = "own weights, trained on 8,000 of MNIST's test images; 2,000 held out"
_QUICK = "own weights after one epoch on 8,000 of MNIST's test images"
_CIFAR = "trained on a fifth of CIFAR-10, as JPEG copies"
_GTSRB = _CIFAR
_IMAGENET = "likewise; 10 classes, so that five best ones say little"
_PRETRAINED = "not in the paper; pretrained weights of the CIFAR ResNets"
_FRAMES = "frames of CarRacing's bends, within 150 degrees to either side; the paper has frames of a car"

LISTINGS: dict[str, Listing] = {
    listing.key: listing
    for listing in (
        _listing("lenet", "LeNet", "lenet-mnist", "mnist", _MNIST),
        _listing("lenet-quick", "LeNet", "lenet-mnist-quick", "mnist", _QUICK),
        _listing("alexnet", "AlexNet", "alexnet-cifar10", "cifar10", f"own weights, {_CIFAR}"),
        _listing("vgg11", "VGG11", "vgg11-cifar10", "cifar10", _GTSRB),
        _listing("vgg16", "half-wide VGG16", "vgg16-half-cifar10", "cifar10-plain", _IMAGENET),
        _listing("resnet18", "ResNet-18", "resnet18-cifar10", "cifar10", _IMAGENET),
        _listing("squeezenet", "SqueezeNet", "squeezenet-cifar10", "cifar10", _IMAGENET),
        _listing("resnet20", "ResNet-20", "resnet20-cifar10", "cifar10", _PRETRAINED),
        _listing("resnet56", "ResNet-56", "resnet56-cifar10", "cifar10", _PRETRAINED),
        _listing("dave-radians", "Dave (radians)", "dave-radians-racing", RACING, _FRAMES),
        _listing("comma", "Comma", "comma-racing", RACING, "the frames that Dave sees"),
        _listing("dave-degrees", "Dave (degrees)", "dave-degrees-racing", RACING, "the frames of Dave in radians"),
    )
}

RECORDED: dict[str, Listing] = {
    key: replace(LISTINGS[key], weights=weights, data=DRIVE, data_label=_DATA_LABELS[DRIVE], told="")
    for key, weights in {
        "dave-radians": "dave-radians",
        "comma": "comma-driving",
        "dave-degrees": "dave-degrees",
    }.items()
}
"""The steering networks on a recorded drive, whose angles are almost all 0."""

_ALL = "own weights, trained on 48,000 of CIFAR-10's training images, as JPEG copies"
_ALL64 = f"{_ALL}, at 64 pixels; 10 classes, so that five best ones say little"
_SIGNS = "own weights, trained on nine in ten signs of the official training images"
_SEEN = "not in the paper; published weights, on images that they were trained with"

AT_LENGTH: dict[str, Listing] = {
    listing.key: listing
    for listing in (
        _listing("alexnet", "AlexNet", "alexnet-cifar10-all", "cifar10", _ALL),
        _listing("vgg11", "VGG11", "vgg11-gtsrb", "gtsrb", _SIGNS),
        _listing("vgg16", "half-wide VGG16", "vgg16-half-cifar10-all", "cifar10-plain-64", _ALL64),
        _listing("resnet18", "ResNet-18", "resnet18-cifar10-all", "cifar10-64", _ALL64),
        _listing("squeezenet", "SqueezeNet", "squeezenet-cifar10-all", "cifar10-64", _ALL64),
        _listing("lite0", "EfficientNet-Lite0", LITE0, "imagenet-samples", _SEEN),
    )
}
"""What the profile ``networks`` strikes in their places, or beside them."""


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A network with its weights, its data, and the bounds of its activations.

    Attributes:
        listing: what it is.
        module, program: itself, captured.
        task: as in :class:`ZooModel`.
        profile: of its activations and last product, on a random 20 % of the training data.
        met: inputs that faults meet: images it gets right, or frames.
        held_out: all that were held out, of images as many as the profile of the study takes, in random order; frames
            in the order of tracks, or of time.
        targets: true angles of ``held_out`` in degrees; None for a classifier.
        training_mean: the mean angle of all that it was trained on; nan for a classifier.
    """

    listing: Listing
    module: nn.Module
    program: Program
    task: str
    profile: Profile
    met: Inputs
    held_out: Inputs
    targets: Tensor | None
    training_mean: float = math.nan

    @property
    def is_classifier(self) -> bool:
        """True if its outputs are classes."""
        return self.task == "classification"

    @property
    def ranges(self) -> Ranges:
        """The largest and smallest values that were seen."""
        return self.profile.ranges()

    @property
    def criterion(self) -> Criterion:
        """Failure criterion: the class changes, or the angle by more than 15, 30, 60 and 120 degrees."""
        if not self.is_classifier:
            return Deviation.steering(scale=180 / math.pi if self.task == "radians" else 1.0)
        return as_criterion([TopK(1), TopK(5)] if self.listing.top5 else [TopK(1)])

    @property
    def sampling(self) -> OpUniform:
        """An operator first, then an element of its output; the last fully connected layer is left out."""
        return OpUniform(kinds=self.listing.kinds, drop_last=self.listing.last)

    @property
    def trivial(self) -> TrivialErrors:
        """Errors on the held-out frames of predictors that do not look; of a steering network alone."""
        assert self.targets is not None, self.listing.data
        return trivial_errors(self.targets, self.training_mean)

    @property
    def last(self) -> tuple[str, ...]:
        """The sites of the last fully connected layer: its product and, drawn apart, its bias."""
        owner = self.program.value_site(last_linear(self.program)[-1]).owner
        return tuple(site.name for site in self.program.value_sites if site.owner == owner)

    def degrees(self, outputs: Tensor) -> Tensor:
        """Its outputs as angles in degrees, shape ``(n,)``."""
        return outputs[:, 0] * (180 / math.pi if self.task == "radians" else 1.0)


@final
@dataclass(frozen=True)
class Absent:
    """A network without weights, or one that may not be used, and why."""

    listing: Listing
    why: str


def each_network(context: Context, *, classifiers: bool | None = None) -> Iterator[Network | Absent]:
    """The networks of the profile, one after the other.

    Args:
        classifiers: only classifiers (True), or only steering networks (False).
    """
    for key in context.profile.ranger.models:
        listing = _listed(context, key)
        if classifiers is None or classifiers != listing.steers:
            yield network(context, key)


def recorded_networks(context: Context) -> Iterator[Network | Absent]:
    """The steering networks of the profile on the recorded drive."""
    for key, listing in RECORDED.items():
        if key in context.profile.ranger.models:
            yield _loaded(context, listing, listing.weights)


def network(context: Context, key: str) -> Network | Absent:
    """One network of the study, or why it is not there; loaded once in a process.

    Steering networks that are no better than a predictor that does not look at the frame are refused.
    """
    listing = _listed(context, key)
    return _loaded(context, listing, listing.weights)


def waiting(context: Context) -> Iterator[Absent]:
    """The networks that only a profile with long trainings strikes, where this one trains but has none."""
    counts = context.profile.ranger
    if counts.train and not counts.at_length:
        yield from (Absent(listing, WAITS) for key, listing in AT_LENGTH.items() if key in (*counts.models, "lite0"))


def _listed(context: Context, key: str) -> Listing:
    return {**LISTINGS, **AT_LENGTH}[key] if context.profile.ranger.at_length else LISTINGS[key]


def in_profile(context: Context, key: str) -> Network | Absent:
    """One network of the study, absent where the profile leaves it out."""
    found = network(context, key)
    left_out = isinstance(found, Network) and key not in context.profile.ranger.models
    return Absent(found.listing, "left out of this profile") if left_out else found


def chosen(context: Context, keys: Sequence[str]) -> Iterator[Network]:
    """Those of the networks that the profile has and that are there."""
    for key in keys:
        if key in context.profile.ranger.models and isinstance(found := network(context, key), Network):
            yield found


def with_tanh(context: Context, key: str) -> Network | Absent | None:
    """The same network with hyperbolic tangents; None where the study has none."""
    listing = _listed(context, key)
    return _loaded(context, listing, listing.tanh) if listing.tanh else None


def own(context: Context) -> Network | None:
    """The user's model; None where there is none. All its operators are struck but the last linear layer."""
    if context.own is None:
        return None
    model, data = context.own
    listing = Listing("own", model.name, model.name, data.name, data.name, last=0)
    found = _network(context, listing, model, data)
    names = [site.name for site in found.program.value_sites if site.dtype.is_floating_point]
    first = names.index(last_linear(found.program)[0]) if last_linear(found.program) else len(names)
    return replace(found, listing=replace(listing, last=len(names) - first if first else 0))


def _loaded(context: Context, listing: Listing, weights: str) -> Network | Absent:
    make = context.profile.ranger.train or weights.endswith("-quick")
    try:
        recipe = weights in RECIPES
        model = trained(weights, make=make, progress=context.training(weights)) if recipe else resolve_model(weights)
        return context.once(f"{listing.key}, {weights}", partial(_checked, context, listing, model))
    except DataError as error:
        reason = str(error).partition(";")[0]
        return Absent(listing, f"{NO_WEIGHTS}: {reason}" if any(name in reason for name in _MISSED) else NO_WEIGHTS)


def _network(context: Context, listing: Listing, model: ZooModel, data: ZooData) -> Network:
    counts, seed = context.profile.ranger, context.seed
    program = capture(model.module, model.example, name=listing.weights)
    order = torch.randperm(len(data.held_out), generator=torch.Generator().manual_seed(seed))
    whole = data.held_out
    # frames stay whole, in the order of tracks or of time
    kept = whole if data.targets else whole.take(order[: counts.accuracy_inputs])
    met = kept.take(_right(program, kept, counts.inputs)) if kept.y is not None else whole.take(order[: counts.inputs])
    return Network(
        listing=listing,
        module=model.module,
        program=program,
        task=model.task,
        profile=profile_activations(
            program, known(data, seed), sites=profiled(program), quantiles=model.task != "classification"
        ),
        met=met,
        held_out=kept,
        targets=data.targets[1] if data.targets else None,
        training_mean=float(training_set(listing.data)[1].double().mean()) if listing.steers else math.nan,
    )


def known(data: ZooData, seed: int) -> Inputs:
    """What bounds are made from: a random fifth of the images, or all frames."""
    inputs = data.calibration
    return inputs if data.targets else inputs.sample(max(len(inputs) // 5, 1), seed=seed)


def profiled(program: Program) -> Values:
    """Activations and the last product."""
    functions = ACTIVATION_KINDS - {"atan", "softmax"}
    return Values((*(site.name for site in program.value_sites if site.kind in functions), *last_linear(program)))


def _right(program: Program, inputs: Inputs, count: int) -> Tensor:
    """The first samples that a classifier gets right."""
    found: list[Tensor] = []
    start = 0
    for part in inputs.batches(_BATCH):
        right = (program(*part.tensors).argmax(1) == part.y).nonzero()[:, 0] + start
        found, start = [*found, right], start + len(part)
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]


def _checked(context: Context, listing: Listing, model: ZooModel) -> Network | Absent:
    """A network; one for steering must be better than predictors that do not look, on all held-out frames."""
    found = _network(context, listing, model, context.data(listing.data))
    if found.is_classifier:
        return found
    assert found.targets is not None, found.listing.data
    trivial = found.trivial
    error = rmse(found.degrees(outputs(found.module, found.held_out)), found.targets)
    if error < trivial.best:
        return found
    named = f"always 0 ({trivial.always_zero:.2f}) and the mean of the training part ({trivial.training_mean:.2f})"
    return Absent(found.listing, f"refused: its RMSE of {error:.2f} degrees is not below those of {named}")


def training_inputs(context: Context, found: Network, count: int) -> Inputs:
    """So many inputs of the part that it may have been trained on, in random order."""
    known = context.data(found.listing.data).calibration
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(context.seed))
    return known.take(order[:count])


def outputs(module: nn.Module, inputs: Inputs) -> Tensor:
    """Outputs of a module for all inputs, shape ``(n, outputs)``."""
    with torch.inference_mode():
        return torch.cat([module(*part.tensors) for part in inputs.batches(_BATCH)])
