"""Tables I, II and III: networks and data, accuracy without and with Ranger, floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from hoplon.capture import capture
from hoplon.flops import count_flops
from hoplon.harden import Ranger, harden
from hoplon.ranges import ACTIVATION_KINDS, Bound, Ranges
from hoplon.stats import wilson
from hoplon.studies.findings import Findings, Table
from hoplon.studies.ranger.networks import Absent, Network, networks, outputs
from hoplon.studies.ranger.runs import papers_own, row_of
from hoplon.studies.rows import Row
from hoplon.studies.study import Context
from hoplon.zoo import ARCHITECTURES, trivial_errors
from hoplon.zoo.architectures import untrained

MEASURES = {"RMSE": "rmse", "mean deviation": "deviation"}
"""Errors of angles, and what they are called in keys of published values."""

_PROFILER_LOST = {
    "alexnet": "the paper's figure is far below what its published graph computes",
    "squeezenet": "TensorFlow's profiler left out the last convolution, whose shape it did not know",
    "comma": "TensorFlow's profiler left out the first fully connected layer, whose shape it did not know",
}


def subjects(context: Context) -> Findings:
    """Table I: which networks and data the paper has, and what is here."""
    rows: list[Row] = []
    for network in networks(context):
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
    table = Table(
        "The paper's networks as they are built here",
        ("network", "data of the paper", "parameters", "operators listed", "struck"),
        tuple(_size(context, key) for key in ARCHITECTURES),
        "Convolution and bias, product and bias, and reshapes are operators of their own, as TensorFlow draws them.",
    )
    return Findings(rows=tuple(rows), tables=(table,))


def accuracy(context: Context) -> Findings:
    """Table II: accuracy, or error in degrees, without and with Ranger, fault-free."""
    rows: list[Row] = []
    for network in networks(context):
        where, key = "Table II", network.listing.key.removesuffix("-quick")
        for words in ("without Ranger", "with Ranger"):
            rows += papers_own(where, network, f"top-1 accuracy, {words}")
            if isinstance(network, Absent):
                rows.append(row_of(where, network, f"accuracy or RMSE, {words}").missing(network.why))
        if isinstance(network, Absent):
            continue
        bounded = harden(network.program, [Ranger(network.ranges)])
        for arm, module in {"without": network.module, "with": bounded}.items():
            published = None if network.listing.stands_in else context.published
            if network.is_classifier:
                right, count = _right(network, outputs(module, network.held_out))
                row = row_of(
                    where,
                    network,
                    f"top-1 accuracy, {arm} Ranger",
                    paper=published.get(f"table2/{key}/top1/{arm}") if published is not None else None,
                )
                rows.append(row.found(wilson(right, count), n=count, seed=context.seed))
            else:
                for measure, name in MEASURES.items():
                    given = published.get(f"table2/{key}/{name}/{arm}") if published is not None else None
                    rows.append(
                        angle_errors(context, where, network, f"{measure}, {arm} Ranger", module, measure, given)
                    )
    text = "Bounds are the largest values seen on a random 20 % of the training data; accuracy is on held-out data."
    trivial: tuple[str, ...] = ()
    if any(row.data == "driving frames" and row.here is not None for row in rows):
        errors = trivial_errors()
        trivial = (
            f"On the last 20 % of the drive, always 0 has an RMSE of {errors.always_zero:.2f} degrees and the mean of "
            f"the first 80 % one of {errors.training_mean:.2f}; a network that is not below both is refused.",
        )
    return Findings(rows=tuple(rows), text=(text, *trivial))


def _right(network: Network, found: Tensor) -> tuple[int, int]:
    assert network.held_out.y is not None, network.listing.key
    return int((found.argmax(1) == network.held_out.y).sum()), len(found)


def angle_errors(
    context: Context, where: str, network: Network, what: str, module: nn.Module, measure: str, paper: float | None
) -> Row:
    """RMSE or mean absolute error in degrees, with limits by resampling frames; ``measure`` is a key of MEASURES."""
    assert network.targets is not None, network.listing.key
    found = (network.degrees(outputs(module, network.held_out)) - network.targets).double()
    power = 2 if measure == "RMSE" else 1
    values = found.abs() ** power
    here, low, high = (float(end) ** (1 / power) for end in (values.mean(), *_resampled(values, seed=context.seed)))
    listing = network.listing
    return Row(
        *(where, listing.label, listing.data_label, what, "degrees", paper, here),
        *(min(low, here), max(high, here), len(values), context.seed, listing.why),
    )


def _resampled(values: Tensor, *, seed: int, times: int = 1000) -> tuple[float, float]:
    """95 % limits of the mean.

    Source:
        B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979: percentiles. Frames
        that neighbour each other in time are not independent: the limits are too narrow for another drive.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    means = torch.stack([values[torch.randint(count, (count,), generator=generator)].mean() for _ in range(times)])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True)
class _Measured:
    """What can be said of an architecture without weights: operators listed, operations, and those of Ranger."""

    listed: int
    total: int
    protection: int


@cache
def _measured(key: str, batch: int = 1) -> _Measured:
    """Of a network with random weights: none of these depends on them, nor on the bounds."""
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
            rows.append(Row(**{**row.stored(), "why": why if differs else ""}))
    text = (
        "Counts are exact, so they have no interval. Rules: 2 operations per multiply-accumulate, 1 per bias or "
        "addition, the window per output of a pooling, none for a ReLU; a bound is a minimum and a maximum. VGG16 and "
        "ResNet-18 are counted for a batch of 10, which is what gives the paper's figures.",
    )
    return Findings(rows=tuple(rows), text=text)
