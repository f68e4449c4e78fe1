"""Tables I, II and III: networks and data, accuracy without and with Ranger, floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from hoplon.comparison.costs.flops import count_flops
from hoplon.program.capturing import capture
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.protections.base import overlay
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.exceedance import exceedances
from hoplon.protections.values.ranger import Ranger
from hoplon.stats.intervals import wilson
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.networks.architectures import ARCHITECTURES, untrained
from hoplon_studies.ranger.angles import MEASURES, TRACKS, against_trivial, angle_errors, told_of_steering
from hoplon_studies.ranger.networks import Absent, Network, each_network, outputs, waiting
from hoplon_studies.ranger.runs import right_of, row_of

_PROFILER_LOST = {
    "alexnet": "the paper's graph is larger than this figure of its profiler",
    "squeezenet": "TensorFlow's profiler left out the last convolution, whose shape it did not know",
    "comma": "TensorFlow's profiler left out the first fully connected layer, whose shape it did not know",
}
_OPERATIONS, ADDED = "operations of a forward pass", "added"
LAST_SHARE = "values of the last fully connected layer"
BEYOND = "images beyond a bound"
PROFILING, BOUNDS, BOUNDS_SHARE = "profiling", "memory of the bounds", "memory of the bounds, of the weights"
_NOT_BOUNDED = {
    "lenet": "the paper's count lacks the bound of the last ReLU, which Algorithm 1 has",
    "vgg16": "the paper's count lacks that of the reshape, which Algorithm 1 has",
}


def subjects(context: Context) -> Iterator[Finding]:
    """Table I: which networks and data the paper has, and what is here."""
    rows: list[Row] = []
    steering: list[tuple[Network, list[Row]]] = []
    for network in each_network(context):
        listing = network.listing
        if isinstance(network, Absent):
            rows.append(row_of("Table I", network, "RMSE" if listing.steers else "accuracy"))
        elif network.is_classifier:
            rows.append(right_of(context, "Table I", network, network.module, "accuracy", detail=True))
        else:
            known = {"detail": True}
            rows.append(angle_errors(context, "Table I", network, "RMSE", network.module, "RMSE", None, **known))
            steering.append((network, list(against_trivial(context, network))))
            rows += steering[-1][1]
    rows += [row_of("Table I", absent, "accuracy") for absent in waiting(context)]
    yield from (*rows, _memory(context), *_last_layer(context))
    yield Table(
        "The paper's networks as they are built here",
        ("network", "data of the paper", "parameters", "operators listed", "struck"),
        tuple(_size(context, key) for key in ARCHITECTURES),
        "Convolution and bias, product and bias, and reshapes are operators of their own, as TensorFlow draws them.",
        detail=True,
    )
    yield from told_of_steering(steering)


def accuracy(context: Context) -> Iterator[Finding]:
    """Table II: accuracy of the best class and, where the paper has it, of the best five, or error in degrees."""
    rows: list[Row] = []
    for network in each_network(context):
        for arm, published in {"none": "without", "ranger": "with"}.items():
            rows += _accuracies(context, network, arm, published)
        if isinstance(network, Network):
            rows += (*_beyond(context, network), *_once(context, network))
    yield from rows
    yield (
        "Bounds are the extremes of a random 20 % of the data that is kept for calibration; accuracy is on held-out "
        "data. Beyond a bound without any fault: images of which some activation exceeds what calibration has seen."
    )
    yield from _told_of_bounds(rows)
    if any(row.unit == "degrees" and row.here is not None for row in rows):
        yield TRACKS


def _accuracies(context: Context, network: Network | Absent, arm: str, published: str) -> Iterator[Row]:
    """Rows of Table II for one network and arm."""
    listing = network.listing
    known = {"top-1 accuracy": "top1"} | ({"top-5 accuracy": "top5"} if listing.top5 else {})
    names = MEASURES if listing.steers else known
    module: nn.Module = nn.Identity()
    if isinstance(network, Network):
        module = network.module if arm == "none" else harden(network.program, [Ranger(network.ranges)])
    for number, (measure, name) in enumerate(names.items()):
        why = listing.told if arm == "none" and not number else ""
        paper = context.published.get(f"table2/{listing.key.removesuffix('-quick')}/{name}/{published}")
        if isinstance(network, Absent):
            unit = "degrees" if listing.steers else "%"
            yield row_of("Table II", network, measure, unit, paper=paper, arm=arm)
        elif network.is_classifier:
            best = int(name.removeprefix("top"))
            yield right_of(context, "Table II", network, module, measure, best=best, paper=paper, arm=arm, why=why)
        else:
            yield angle_errors(context, "Table II", network, measure, module, measure, paper, arm=arm, why=why)


def _beyond(context: Context, network: Network) -> Iterator[Row]:
    """Held-out images with a value beyond its bound, and outputs that bounds change, without any fault."""
    ranger = Ranger(network.ranges)
    found = exceedances(network.program, [ranger], network.held_out)
    paper = 100 * context.published["exceedance/vgg16"] if network.listing.key == "vgg16" else None
    row = row_of("section III-B", network, BEYOND, paper=paper, detail=not network.is_classifier)
    yield row.found(found.image_rate, n=found.n_images, seed=context.seed)
    if network.is_classifier:
        bounded = harden(network.program, [ranger])
        classes = [outputs(module, network.held_out).argmax(1) for module in (network.module, bounded)]
        changed = int((classes[0] != classes[1]).sum())
        row = row_of("section III-B", network, "changed predictions")
        yield row.found(wilson(changed, found.n_images), n=found.n_images, seed=context.seed)


def _once(context: Context, network: Network) -> Iterator[Row]:
    """What bounds cost before and beside inference: time of profiling, and memory."""
    key, seen = network.listing.key, network.profile.n_samples
    seconds = context.kept(f"{key}-profiling", lambda: network.profile.seconds)
    paper = context.published.get(f"profiling/{key}")
    yield row_of("section IV-B", network, PROFILING, "s", paper=paper, here=seconds, n=seen, detail=True)
    bounds = overlay(network.program, [Ranger(network.ranges)])
    size = sum(bound.extra_bytes for bound in bounds.values.values())
    weights = sum(tensor.nbytes for tensor in network.program.memory().values())
    yield row_of("section IV-C", network, BOUNDS, "bytes", here=size, detail=True)
    yield row_of("section IV-C", network, BOUNDS_SHARE, here=100 * size / weights, detail=True)


def _told_of_bounds(rows: Sequence[Row]) -> Iterator[str]:
    """Time of profiling and memory of bounds of all networks, in a sentence."""
    found = ([row.here for row in rows if row.what == what] for what in (PROFILING, BOUNDS, BOUNDS_SHARE))
    seconds, sizes, shares = (sorted(float(one) for one in values if isinstance(one, int | float)) for values in found)
    if seconds:
        yield (
            f"Profiling takes {seconds[0]:.2g} to {seconds[-1]:.2g} seconds, once (the paper: about an hour, "
            f"VGG16). The bounds take {sizes[0]:,.0f} to "
            f"{sizes[-1]:,.0f} bytes beside the weights, at most {shares[-1]:.2g} % of them."
        )


@cache
def _measured(key: str) -> tuple[int, int, int, float]:
    """Operators listed, operations of the forward pass, those that Ranger adds, the last layer's share of all values.

    Counted on a network with random weights: no count depends on them, nor on the bounds.
    """
    architecture, network = ARCHITECTURES[key], untrained(key)
    program = capture(network.module, network.example, name=architecture.title)
    functions = ACTIVATION_KINDS - {"atan", "softmax"}
    sites = [site for site in program.value_sites if site.kind in functions]
    ranger = Ranger(Ranges({site.name: Bound(-1.0, 1.0) for site in sites}), unprofiled="leave")
    found = count_flops(program, [ranger], batch=_batch(key))
    listed = [site for site in program.value_sites if architecture.kinds is None or site.kind in architecture.kinds]
    sizes = [math.prod(site.shape) for site in listed]
    return len(listed), found.total, found.protection, sum(sizes[-architecture.last :]) / sum(sizes)


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


def _last_layer(context: Context) -> Iterator[Row]:
    """The share of VGG16's values that its last fully connected layer makes."""
    if "vgg16" in context.profile.ranger.architectures:
        paper, here = context.published["last-layer/vgg16"], 100 * _measured("vgg16")[3]
        yield Row("section IV-C", "VGG16", "-", LAST_SHARE, "%", paper, round(here, 5))


def operations(context: Context) -> Iterator[Finding]:
    """Table III: floating-point operations without and with Ranger, counted as TensorFlow's profiler counts."""
    shares = []
    for key, architecture in ARCHITECTURES.items():
        if key == "dave-degrees":
            continue
        name = key.removesuffix("-radians")
        if key not in context.profile.ranger.architectures:
            yield Row("Table III", architecture.title, "-", _OPERATIONS, "million", why="left out of this profile")
            continue
        _, total, added, _ = _measured(key)
        shares.append(100 * added / total)
        figures: Mapping[str, tuple[float, str, str]] = {
            "without": (total / 1e6, "none", "million"),
            "with": ((total + added) / 1e6, "ranger", "million"),
            "overhead": (shares[-1], ADDED, "%"),
        }
        for arm, (here, short, unit) in figures.items():
            paper = context.published[f"table3/{name}/{arm}"]
            row = Row("Table III", architecture.title, "-", _OPERATIONS, unit, paper, round(here, 3), arm=short)
            differs = abs(here - paper) > (0.51 if paper > 10_000 else 5.1e-4)  # of what is printed
            why = _PROFILER_LOST.get(name, "") if arm == "without" else _NOT_BOUNDED.get(name, "")
            yield replace(row, why=why if differs else "")
    if len(shares) == len(ARCHITECTURES) - 1:
        paper, here = context.published["table3/mean/overhead"], sum(shares) / len(shares)
        row = Row("Table III", f"mean of {len(shares)} networks", "-", _OPERATIONS, "%", paper, round(here, 3))
        yield replace(row, arm=ADDED)
    yield (
        "Counts are exact, so they have no interval. Rules: 2 operations per multiply-accumulate, 1 per bias or "
        "addition, the window per output of a pooling, none for a ReLU; a bound is a minimum and a maximum. VGG16 and "
        "ResNet-18 are counted for a batch of 10, which the paper does not state, but which gives its figures."
    )
