"""Tables I, II and III: networks and data, accuracy without and with Ranger, floating-point operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from hoplon.comparison.costs.flops import count_flops
from hoplon.program.capturing import capture
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.ranger import Ranger
from hoplon.stats.intervals import wilson
from hoplon.zoo.datasets._driving import trivial_errors
from hoplon_studies.framework.findings import Findings, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.networks.architectures import ARCHITECTURES, untrained
from hoplon_studies.ranger.angles import LIMITS, MEASURES, against_trivial, angle_errors, how_chosen
from hoplon_studies.ranger.networks import Absent, Network, each_network, outputs
from hoplon_studies.ranger.runs import papers_own, row_of

_PROFILER_LOST = {
    "alexnet": "the paper's figure is far below what its published graph computes",
    "squeezenet": "TensorFlow's profiler left out the last convolution, whose shape it did not know",
    "comma": "TensorFlow's profiler left out the first fully connected layer, whose shape it did not know",
}


def subjects(context: Context) -> Findings:
    """Table I: which networks and data the paper has, and what is here."""
    rows: list[Row] = []
    for network in each_network(context):
        rows += papers_own("Table I", network, "accuracy or error, fault-free")
        what = "accuracy, fault-free" if network.listing.data != "driving" else "RMSE, fault-free"
        if isinstance(network, Absent):
            rows.append(row_of("Table I", network, what).missing(network.why))
            continue
        if network.is_classifier:
            right, count = _right(network, outputs(network.module, network.held_out))
            row = row_of("Table I", network, what)
            rows.append(row.found(wilson(right, count), n=count, seed=context.seed))
        else:
            rows.append(angle_errors(context, "Table I", network, what, network.module, "RMSE", None))
            rows += against_trivial(context, network)
    rows.append(_memory(context))
    table = Table(
        "The paper's networks as they are built here",
        ("network", "data of the paper", "parameters", "operators listed", "struck"),
        tuple(_size(context, key) for key in ARCHITECTURES),
        "Convolution and bias, product and bias, and reshapes are operators of their own, as TensorFlow draws them.",
    )
    tables = (table, how_chosen()) if "comma" in context.profile.ranger.models else (table,)
    return Findings(rows=tuple(rows), tables=tables, text=_told_of_trivial(rows))


def accuracy(context: Context) -> Findings:
    """Table II: accuracy of the best class and, where the paper has it, of the best five, or error in degrees."""
    rows: list[Row] = []
    for network in each_network(context):
        for arm in ("without", "with"):
            rows += _accuracies(context, network, arm)
    text = "Bounds are the largest values seen on a random 20 % of the training data; accuracy is on held-out data."
    return Findings(rows=tuple(rows), text=(text, *_told_of_trivial(rows)))


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
            yield row_of("Table II", network, what, unit, paper=given).missing(network.why)
        elif network.is_classifier:
            right, count = _right(network, outputs(module, network.held_out), best=int(name.removeprefix("top")))
            row = row_of("Table II", network, what, paper=given)
            yield row.found(wilson(right, count), n=count, seed=context.seed)
        else:
            yield angle_errors(context, "Table II", network, what, module, measure, given)


def _told_of_trivial(rows: Sequence[Row]) -> tuple[str, ...]:
    """Errors of the trivial predictors, in words, where there are errors in degrees to hold against them."""
    if not any(row.data == "driving frames" and row.here is not None for row in rows):
        return ()
    errors = trivial_errors()
    return (
        f"On the last 20 % of the drive, always 0 has an RMSE of {errors.always_zero:.2f} degrees and the mean of "
        f"the first 80 % one of {errors.training_mean:.2f}; a network that is not below both is refused.",
        LIMITS,
    )


def _right(network: Network, found: Tensor, *, best: int = 1) -> tuple[int, int]:
    """Inputs whose label is among the ``best`` classes, and all."""
    y = network.held_out.y
    assert y is not None, network.listing.key
    return int((found.topk(best).indices == y[:, None]).any(1).sum()), len(found)


@dataclass(frozen=True)
class _Measured:
    """Counts of an architecture without weights: operators listed, operations, and those of Ranger."""

    listed: int
    total: int
    protection: int


@cache
def _measured(key: str, batch: int = 1) -> _Measured:
    """Count on a network with random weights: no count depends on them, nor on the bounds."""
    architecture, network = ARCHITECTURES[key], untrained(key)
    program = capture(network.module, network.example, name=architecture.title)
    functions = ACTIVATION_KINDS - {"atan", "softmax"}
    sites = [site for site in program.value_sites if site.kind in functions]
    ranger = Ranger(Ranges({site.name: Bound(-1.0, 1.0) for site in sites}), unprofiled="leave")
    found = count_flops(program, [ranger], batch=batch)
    listed = [site for site in program.value_sites if architecture.kinds is None or site.kind in architecture.kinds]
    return _Measured(len(listed), found.total, found.protection)


def _size(context: Context, key: str) -> tuple[str | int | None, ...]:
    architecture = ARCHITECTURES[key]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in architecture.build().parameters())
    traced = key in context.profile.ranger.architectures
    listed = _measured(key, _batch(key)).listed if traced else None
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


def operations(context: Context) -> Findings:
    """Table III: floating-point operations without and with Ranger, counted as TensorFlow's profiler counts."""
    rows: list[Row] = []
    for key, architecture in ARCHITECTURES.items():
        if key == "dave-degrees":
            continue
        name, batch = key.removesuffix("-radians"), _batch(key)
        what = f"of one forward pass of {batch}" if batch > 1 else "of one forward pass"
        if key not in context.profile.ranger.architectures:
            row = Row("Table III", architecture.title, "-", f"operations {what}", "million")
            rows.append(row.missing("left out of this profile"))
            continue
        found = _measured(key, batch)
        overhead = 100 * found.protection / found.total
        figures: Mapping[str, tuple[float, str, str]] = {
            "without": (found.total / 1e6, f"operations {what}, without Ranger", "million"),
            "with": ((found.total + found.protection) / 1e6, f"operations {what}, with Ranger", "million"),
            "overhead": (overhead, f"operations that Ranger adds {what}", "%"),
        }
        for arm, (here, words, unit) in figures.items():
            paper = context.published[f"table3/{name}/{arm}"]
            why = _PROFILER_LOST.get(
                name, "the paper's count leaves out the bound of the last ReLU" if arm != "without" else ""
            )
            row = Row("Table III", architecture.title, "-", words, unit, paper=paper, here=round(here, 3))
            differs = abs(here - paper) > (0.51 if paper > 10_000 else 5.1e-4)  # of what is printed
            rows.append(replace(row, why=why if differs else ""))
    text = (
        "Counts are exact, so they have no interval. Rules: 2 operations per multiply-accumulate, 1 per bias or "
        "addition, the window per output of a pooling, none for a ReLU; a bound is a minimum and a maximum. VGG16 and "
        "ResNet-18 are counted for a batch of 10, which is what gives the paper's figures.",
    )
    return Findings(rows=tuple(rows), text=text)
