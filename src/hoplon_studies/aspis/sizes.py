"""Tables I to IV: how many weights, faults and images there are, and how large the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from math import comb
from operator import mul

from torch import nn

from hoplon.errors import DataError
from hoplon.importance.analysis import magnitudes
from hoplon.zoo.resolve import resolve_model
from hoplon_studies.aspis.subjects import LABELS, NO_DATA, NO_WEIGHTS, Absent, each_subject
from hoplon_studies.framework.findings import Findings, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

_BITS = 32
_DRIVING = ("OpenPilot", "Apollo")
_UNREAD = "the table's cells are not legible in the paper's text"
_CARS = f"{_UNREAD}; the networks of cars' software are not here"
_AUXILIARY = "AuxLogits."  # Inception's second classifier, which training alone reads
_COUNTED = {
    "weights": ("convolution weights", ""),
    "layers": ("convolution layers", ""),
    "single": ("single-bit fault sites: 32 per weight", ""),
    "double": (
        "double-bit fault sites, as the paper counts: 32 x 31 per weight",
        "counts ordered pairs, so each fault twice",
    ),
    "triple": (
        "triple-bit fault sites, as the paper counts: 32 x 31 x 32 per weight",
        "counts a third bit that may be one of the two, and orders",
    ),
}
"""Counts of Table II by key of the published values: what is counted, and why the paper counts otherwise."""

_MAGNITUDE = "magnitude of convolution weights"
_QUANTILES = {
    "min": "smallest",
    "q25": "quartile 1",
    "median": "median",
    "q75": "quartile 3",
    "max": "largest",
    "low_cutoff": "100th smallest",
    "high_cutoff": "100th largest",
}


def fault_space(context: Context) -> Findings:
    """Tables I to III: convolution weights, layers, fault sites of one, two and three bits; sets of images."""
    rows = [Row("Table I", name, "-", "convolution weights and fault sites").missing(_CARS) for name in _DRIVING]
    true: list[tuple[str | int, ...]] = []
    for name in LABELS:
        sizes = convolutions(name)
        weights = sum(sizes.values())
        counts = (weights, len(sizes), *accumulate((weights * _BITS, _BITS - 1, _BITS), mul))
        for (key, (what, why)), here in zip(_COUNTED.items(), counts, strict=True):
            paper = context.published[f"table2/{name}/{key}"]
            rows.append(Row("Table II", LABELS[name], "-", what, paper=paper, here=here, why=why))
        for which, here in {"smallest": min(sizes.values()), "largest": max(sizes.values())}.items():
            paper = context.published[f"layers/{name}/{which}"]
            counted = f"weights of the {which} convolution layer"
            rows.append(Row("section II", LABELS[name], "-", counted, paper=paper, here=here))
        true.append((LABELS[name], *(weights * comb(_BITS, bits) for bits in (1, 2, 3))))
    rows += _image_sets(context)
    table = Table(
        "Faults there are: sets of different bits in one weight",
        ("model", "one bit", "two bits", "three bits"),
        tuple(true),
        f"{comb(_BITS, 2)} sets of two bits and {comb(_BITS, 3):,} of three per weight.",
    )
    return Findings(
        rows=tuple(rows),
        tables=(table,),
        text=(
            "The architectures are torchvision's; Inception's auxiliary classifier, which nothing reads in inference, "
            "does not count.",
        ),
        sources=(context.source("weights and layers", fault_model="none; counted on the modules"),),
    )


def _image_sets(context: Context) -> Iterator[Row]:
    """Table III: images to test with, and labels."""
    whats = ("images to test with", "labels")
    found: tuple[int, ...] | None = None
    try:
        data = context.data("cifar10")
        found = (len(data.held_out), len(data.classes))
    except DataError:
        pass
    for number, what in enumerate(whats):
        row = Row("Table III", "-", "CIFAR-10", what)
        yield row.missing(NO_DATA) if found is None else replace(row, here=found[number], why=_UNREAD)
        yield Row("Table III", "-", "ImageNet", what).missing(f"{NO_DATA}; {_UNREAD}")


def convolutions(name: str) -> Mapping[str, int]:
    """Weights of each convolution that inference reads, by the name of the layer.

    Args:
        name: of torchvision's network.
    """
    module = resolve_model(f"torchvision:{name}").module
    layers = ((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    return {path: layer.weight.numel() for path, layer in layers if not path.startswith(_AUXILIARY)}


def magnitude(context: Context) -> Findings:
    """Table IV: quantiles of the magnitudes of convolution weights."""
    rows = list(_of_the_paper(context))
    for subject in each_subject(context):
        if isinstance(subject, Absent):
            rows += [subject.row("Table IV", f"{_MAGNITUDE}: {text}", "") for text in _QUANTILES.values()]
            continue
        quantiles = magnitudes(subject.program, subject.scores()).row(0, named=True)
        why = f"stands in for {LABELS[subject.stands_for]} on ImageNet" if subject.stands_for else ""
        for key, text in _QUANTILES.items():
            paper = context.published.get(f"table4/{subject.stands_for}/{key}")
            row = subject.row("Table IV", f"{_MAGNITUDE}: {text}", "", paper=paper, why=why)
            rows.append(replace(row, here=quantiles[key], n=quantiles["n"]))
    return Findings(rows=tuple(rows), sources=(context.source("magnitudes", fault_model="none; read off the weights"),))


def _of_the_paper(context: Context) -> Iterator[Row]:
    for name, label in LABELS.items():
        for key, text in _QUANTILES.items():
            published = f"table4/{name}/{key}"
            if published in context.published:
                what = f"{_MAGNITUDE}: {text}"
                yield Row("Table IV", label, "ImageNet", what, paper=context.published[published], why=NO_WEIGHTS)
