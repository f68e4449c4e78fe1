"""What can happen between the choice of important weights and a fault: other inputs, more training, another network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError
from hoplon.importance.scores import Scores
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.zoo.cache import load_tensors, save_tensors
from hoplon.zoo.datasets._cifar10 import normalised, resized
from hoplon_studies.aspis.subjects import NO_DATA, WAITS, Subject, loaded, subject_of
from hoplon_studies.framework.study import Context
from hoplon_studies.training.recipes import Recipe, train

_DIGITS, _SIGNS = "mnist", "gtsrb"  # the first has ten classes, as many as networks of CIFAR-10 tell apart
OTHERS = {_DIGITS: "digits", _SIGNS: "signs"}
"""Data sets of the zoo other than a network's own, and what the page calls them."""

EPOCHS, STEP, BATCH = 2, 1e-4, 64
"""Of the little training."""

SAMPLED, TUNED, AWAY = "another sample", "tuned", f"tuned on {OTHERS[_DIGITS]}"
SCORED = {name: f"scored on {words}" for name, words in OTHERS.items()}
SEED, TWIN = "another seed", f"trained on {OTHERS[_SIGNS]}"
_TWINS = {"vgg11-cifar10": {SEED: ("vgg11-cifar10-again", "cifar10"), TWIN: ("vgg11-gtsrb", _SIGNS)}}
"""Networks of a subject's form, trained from another seed or on other data, and the data that they classify."""

_PREPARED = ((3, 32, 32), (3, 75, 75))  # shapes of networks that take images normalised as CIFAR-10's


@final
@dataclass(frozen=True, eq=False)
class Change:
    """A change since a guard chose its weights.

    Attributes:
        name: on the page.
        now: the network as it is now, and inputs that it knows.
        others: inputs which no guard was chosen on.
        stale: scores by which the guard chose.
        fresh: scores by which it would choose now.
        is_new: True for a network trained anew, in which a place holds another weight than it did.
    """

    name: str
    now: Subject
    others: Inputs
    stale: Scores = field(repr=False)
    fresh: Scores = field(repr=False)
    is_new: bool = False


@final
@dataclass(frozen=True)
class NoChange:
    """A change that cannot be made here: its name, and why."""

    name: str
    why: str
    is_new: bool = False


def changes_of(subject: Subject, context: Context) -> Iterator[Change | NoChange]:
    """Every change of a network, the mildest first: the same network by other inputs, then others."""
    subject, second, third = _three(subject, context)
    today = subject.scores()
    yield Change(SAMPLED, subject, third, subject.scores(second), today)
    for name in context.profile.aspis.other_data:
        try:
            inputs = context.data(name).calibration.sample(len(subject.known), seed=context.seed)
            stale = subject.scores(_predicted(as_pictures(inputs, subject), subject))
            yield Change(SCORED[name], subject, third, stale, today)
        except DataError as error:
            yield NoChange(SCORED[name], _why(error))
    for name, data in {TUNED: "", AWAY: _DIGITS}.items():
        try:
            among, _, unseen = _three(_among(data, subject, context) if data else subject, context)
            now = _tuned(among, name, context)
            yield Change(name, now, unseen, today, now.scores())
        except DataError as error:
            yield NoChange(name, _why(error))
    for name, (network, data) in _TWINS.get(subject.name, {}).items():
        try:
            names = (network, subject.label, subject.data, subject.stands_for)
            twin = subject_of(context, loaded(network, context), context.data(data), names)
            twin, _, unseen = _three(twin, context)
            yield Change(name, twin, unseen, today, twin.scores(), is_new=True)
        except DataError:
            yield NoChange(name, WAITS, is_new=True)


def _three(subject: Subject, context: Context) -> tuple[Subject, Inputs, Inputs]:
    """A network that knows one of three samples of its calibration inputs, and the others; each a third at most."""
    every = subject.calibration
    count = min(context.profile.aspis.calibration, len(every) // 3)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(context.seed))
    parts = [every.take(order[at : at + count].sort().values) for at in range(0, 3 * count, count)]
    return replace(subject, known=parts[0]), parts[1], parts[2]


def as_pictures(inputs: Inputs, subject: Subject) -> Inputs:
    """Digits of 28 pixels or pictures of 32, as large as those that the network takes, and normalised as they are.

    Raises:
        DataError: it takes no pictures of CIFAR-10.
    """
    x, known = inputs.x, subject.known.x
    if not (isinstance(known, Tensor) and isinstance(x, Tensor) and known.shape[1:] in _PREPARED):
        raise DataError(_OTHER_SHAPE)
    if x.shape[1] == 1:
        pixels = F.pad(x, (2, 2, 2, 2)).mul(255).round().to(torch.uint8)  # 28 to 32 pixels
        x = normalised(pixels.expand(-1, 3, -1, -1))
    return Inputs(resized(x, known.shape[-1]), inputs.y, name=inputs.name)


_OTHER_SHAPE = "other data are prepared for networks of CIFAR-10 alone"
_NONE_RIGHT = "so tuned, it gets no image right"


def _why(error: DataError) -> str:
    return str(error) if str(error) in (_OTHER_SHAPE, _NONE_RIGHT) else NO_DATA


def _predicted(inputs: Inputs, subject: Subject) -> Inputs:
    """The same inputs, labelled as the network itself classifies them."""
    return Inputs(inputs.x, _classes(subject.module, inputs), name=inputs.name)


def right(module: nn.Module, inputs: Inputs) -> int:
    """How many labelled inputs a network gets right."""
    assert isinstance(inputs.y, Tensor), inputs.name
    return int((_classes(module, inputs) == inputs.y).sum())


def _classes(module: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(part.x).argmax(1) for part in inputs.batches(BATCH)])


def _among(data: str, subject: Subject, context: Context) -> Subject:
    """The same network among other data."""
    counts, found = context.profile.aspis, context.data(data)
    drawn = found.calibration.sample(max(counts.tuning, 3 * counts.calibration), seed=context.seed)
    calibration, held_out = as_pictures(drawn, subject), as_pictures(found.held_out, subject)
    return replace(
        subject, calibration=calibration, met=held_out.sample(counts.inputs, seed=context.seed), held_out=held_out
    )


def _tuned(subject: Subject, name: str, context: Context) -> Subject:
    """The network after a little more training on its data; its weights are kept beside the runs.

    Raises:
        DataError: it gets none of the images right that faults would meet.
    """
    file = context.runs / subject.name / f"{name.replace(' ', '-')}.safetensors"
    net = copy.deepcopy(subject.module)
    if file.is_file():
        net.load_state_dict(load_tensors(file)[0])
    else:
        images = subject.calibration.sample(context.profile.aspis.tuning, seed=context.seed)
        if not (isinstance(images.y, Tensor) and isinstance(images.x, Tensor)):
            raise HoplonError(f"expected labelled images to train with, got {images.name}")
        recipe = Recipe(name, partial(copy.deepcopy, net), "", EPOCHS, STEP, batch_size=BATCH)
        net = train(recipe, images.x, images.y, progress=context.training(f"{subject.label}, {name}"))
        save_tensors(file, net.state_dict(), {})
    if not right(net, subject.met):
        raise DataError(_NONE_RIGHT)
    program = capture(net, subject.known.take(torch.arange(4)).x, name=f"{subject.program.name}, {name}")
    return replace(subject, name=f"{subject.name}-{name.replace(' ', '-')}", program=program, module=net)
