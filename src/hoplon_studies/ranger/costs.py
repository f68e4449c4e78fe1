"""Tables I, II and III: networks and data, accuracy without and with Ranger, floating-point operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from hoplon.comparison.costs.flops import count_flops
from hoplon.program.capturing import capture
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.ranger import Ranger
from hoplon.zoo.datasets._driving import trivial_errors
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.networks.architectures import ARCHITECTURES, untrained
from hoplon_studies.ranger.angles import LIMITS, MEASURES, against_trivial, angle_errors, how_chosen
from hoplon_studies.ranger.networks import Absent, Network, each_network
from hoplon_studies.ranger.runs import papers_own, right_of, row_of

_PROFILER_LOST = {
    "alexnet": "the paper's figure is far below what its published graph computes",
    "squeezenet": "TensorFlow's profiler left out the last convolution, whose shape it did not know",
    "comma": "TensorFlow's profiler left out the first fully connected layer, whose shape it did not know",
}


def subjects(context: Context) -> Iterator[Finding]:
    """Table I: which networks and data the paper has, and what is here."""
    rows: list[Row] = []
    for network in each_network(context):
        rows += papers_own("Table I", network, "accuracy or error, fault-free")
        what = "accuracy, fault-free" if network.listing.data != "driving" else "RMSE, fault-free"
        if isinstance(network, Absent):
            rows.append(row_of("Table I", network, what))
        elif network.is_classifier:
            rows.append(right_of(context, "Table I", network, network.module, what))
        else:
            rows.append(angle_errors(context, "Table I", network, what, network.module, "RMSE", None))
            rows += against_trivial(context, network)
    yield from (*rows, _memory(context))
    yield Table(
        "The paper's networks as they are built here",
        ("network", "data of the paper", "parameters", "operators listed", "struck"),
        tuple(_size(context, key) for key in ARCHITECTURES),
        "Convolution and bias, product and bias, and reshapes are operators of their own, as TensorFlow draws them.",
    )
    if "comma" in context.profile.ranger.models:
        yield how_chosen()
    yield from _told_of_trivial(rows)


def accuracy(context: Context) -> Iterator[Finding]:
    """Table II: accuracy of the best class and, where the paper has it, of the best five, or error in degrees."""
    arms = ("without", "with")
    rows = [row for network in each_network(context) for arm in arms for row in _accuracies(context, network, arm)]
    yield from rows
    yield "Bounds are the largest values seen on a random 20 % of the training data; accuracy is on held-out data."
    yield from _told_of_trivial(rows)


def _accuracies(context: Context, network: Network | Absent, arm: str) -> Iterator[Row]:
    """Rows of Table II for one network, ``"without"`` or ``"with"`` Ranger."""
    listing = network.listing
    known = {"top-1 accuracy": "top1"} | ({"top-5 accuracy": "top5"} if listing.top5 else {})
    names = MEASURES if listing.data == "driving" else known
    module: nn.Module = nn.Identity()
    if isinstance(network, Network):
        module = network.module if arm == "without" else harden(network.program, [Ranger(network.ranges)])
    for measure, name in names.items():
        what = f"{measure}, {arm} Ranger"
        paper = context.published.get(f"table2/{listing.key.removesuffix('-quick')}/{name}/{arm}")
        yield from papers_own("Table II", network, what, paper=paper)
        given = None if listing.stands_in else paper
        if isinstance(network, Absent):
            unit = "degrees" if listing.data == "driving" else "%"
            yield row_of("Table II", network, what, unit, paper=given)
        elif network.is_classifier:
            best = int(name.removeprefix("top"))
            yield right_of(context, "Table II", network, module, what, best=best, paper=given)
        else:
            yield angle_errors(context, "Table II", network, what, module, measure, given)


def _told_of_trivial(rows: Sequence[Row]) -> Iterator[str]:
    """Errors of the trivial predictors, in words, where there are errors in degrees to hold against them."""
    if any(row.data == "driving frames" and row.here is not None for row in rows):
        errors = trivial_errors()
        yield (
            f"On the last 20 % of the drive, always 0 has an RMSE of {errors.always_zero:.2f} degrees and the mean of "
            f"the first 80 % one of {errors.training_mean:.2f}; a network that is not below both is refused."
        )
        yield LIMITS


@cache
def _measured(key: str) -> tuple[int, int, int]:
    """Operators listed, operations of the forward pass that the paper counts, and those that Ranger adds.

    Counted on a network with random weights: no count depends on them, nor on the bounds.
    """
    architecture, network = ARCHITECTURES[key], untrained(key)
    program = capture(network.module, network.example, name=architecture.title)
    functions = ACTIVATION_KINDS - {"atan", "softmax"}
    sites = [site for site in program.value_sites if site.kind in functions]
    ranger = Ranger(Ranges({site.name: Bound(-1.0, 1.0) for site in sites}), unprofiled="leave")
    found = count_flops(program, [ranger], batch=_batch(key))
    listed = [site for site in program.value_sites if architecture.kinds is None or site.kind in architecture.kinds]
    return len(listed), found.total, found.protection


def _size(context: Context, key: str) -> tuple[str | int | None, ...]:
    architecture = ARCHITECTURES[key]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in architecture.build().parameters())
    traced = key in context.profile.ranger.architectures
    listed = _measured(key)[0] if traced else None
    struck = None if listed is None else listed - architecture.last
    return architecture.title, architecture.data, parameters, listed, struck


def _memory(context: Context) -> Row:
    """Size of VGG16, the only one that the paper states."""
    with torch.device("meta"):
        size = sum(tensor.numel() * tensor.itemsize for tensor in ARCHITECTURES["vgg16"].build().parameters())
    paper = context.published["size/vgg16"]
    return Row("section IV-C", "VGG16", "-", "memory of the weights", "MB", paper=paper, here=round(size / 1e6, 1))


def _batch(key: str) -> int:
    """Images in the forward pass that the paper counts."""
    return 10 if key in ("vgg16", "resnet18") else 1


def operations(context: Context) -> Iterator[Finding]:
    """Table III: floating-point operations without and with Ranger, counted as TensorFlow's profiler counts."""
    for key, architecture in ARCHITECTURES.items():
        if key == "dave-degrees":
            continue
        name, batch = key.removesuffix("-radians"), _batch(key)
        what = f"of one forward pass of {batch}" if batch > 1 else "of one forward pass"
        if key not in context.profile.ranger.architectures:
            left_out = "left out of this profile"
            yield Row("Table III", architecture.title, "-", f"operations {what}", "million", why=left_out)
            continue
        _, total, added = _measured(key)
        figures: Mapping[str, tuple[float, str, str]] = {
            "without": (total / 1e6, f"operations {what}, without Ranger", "million"),
            "with": ((total + added) / 1e6, f"operations {what}, with Ranger", "million"),
            "overhead": (100 * added / total, f"operations that Ranger adds {what}", "%"),
        }
        for arm, (here, words, unit) in figures.items():
            paper = context.published[f"table3/{name}/{arm}"]
            last_relu = "the paper's count leaves out the bound of the last ReLU" if arm != "without" else ""
            row = Row("Table III", architecture.title, "-", words, unit, paper=paper, here=round(here, 3))
            differs = abs(here - paper) > (0.51 if paper > 10_000 else 5.1e-4)  # of what is printed
            yield replace(row, why=_PROFILER_LOST.get(name, last_relu) if differs else "")
    yield (
        "Counts are exact, so they have no interval. Rules: 2 operations per multiply-accumulate, 1 per bias or "
        "addition, the window per output of a pooling, none for a ReLU; a bound is a minimum and a maximum. VGG16 and "
        "ResNet-18 are counted for a batch of 10, which is what gives the paper's figures."
    )
