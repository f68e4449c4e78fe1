"""Tables I to IV: how many weights, faults and images there are, and how large the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, zip_longest
from math import comb
from operator import mul

from torch import nn

from hoplon.errors import DataError
from hoplon.importance.analysis import magnitudes
from hoplon.zoo.resolve import resolve_model
from hoplon_studies.aspis.subjects import LABELS, NO_DATA, NO_WEIGHTS, Subject, of_each, stood_for
from hoplon_studies.framework.findings import Finding, Table
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

_QUANTILES = {
    "min": "smallest",
    "q25": "quartile 1",
    "median": "median",
    "q75": "quartile 3",
    "max": "largest",
    "low_cutoff": "100th smallest",
    "high_cutoff": "100th largest",
}
_ASIDE = ("min", "low_cutoff")
"""Left to the JSON."""

_MAGNITUDES = "magnitudes of convolution weights"


def fault_space(context: Context) -> Iterator[Finding]:
    """Tables I to III: convolution weights, layers, fault sites of one, two and three bits; sets of images."""
    for name in _DRIVING:
        yield Row("Table I", name, "-", "convolution weights and fault sites", why=_CARS)
    true: list[tuple[str | int, ...]] = []
    for name in LABELS:
        sizes = convolutions(name)
        weights = sum(sizes.values())
        counts = (weights, len(sizes), *accumulate((weights * _BITS, _BITS - 1, _BITS), mul))
        for (key, (what, why)), here in zip(_COUNTED.items(), counts, strict=True):
            paper = context.published[f"table2/{name}/{key}"]
            yield Row("Table II", LABELS[name], "-", what, paper=paper, here=here, why=why)
        for which, here in {"smallest": min(sizes.values()), "largest": max(sizes.values())}.items():
            paper = context.published[f"layers/{name}/{which}"]
            yield Row("section II", LABELS[name], "-", f"weights of the {which} convolution layer", "", paper, here)
        true.append((LABELS[name], *(weights * comb(_BITS, bits) for bits in (1, 2, 3))))
    yield from _image_sets(context)
    yield Table(
        "Faults there are: sets of different bits in one weight",
        ("model", "one bit", "two bits", "three bits"),
        tuple(true),
        f"{comb(_BITS, 2)} sets of two bits and {comb(_BITS, 3):,} of three per weight.",
        detail=True,
    )
    yield (
        "The architectures are torchvision's; Inception's auxiliary classifier, which nothing reads in inference, "
        "does not count."
    )
    yield context.source("weights and layers", fault_model="none; counted on the modules")


def _image_sets(context: Context) -> Iterator[Row]:
    """Table III: images to test with, and labels."""
    try:
        data = context.data("cifar10")
        counts, why = [len(data.held_out), len(data.classes)], _UNREAD
    except DataError:
        counts, why = [], NO_DATA
    for what, count in zip_longest(("images to test with", "labels"), counts):
        yield Row("Table III", "-", "CIFAR-10", what, here=count, why=why, detail=True)
        yield Row("Table III", "-", "ImageNet", what, why=f"{NO_DATA}; {_UNREAD}")


def convolutions(name: str) -> Mapping[str, int]:
    """Weights of each convolution that inference reads, by the name of the layer.

    Args:
        name: of torchvision's network.
    """
    module = resolve_model(f"torchvision:{name}").module
    layers = ((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    return {path: layer.weight.numel() for path, layer in layers if not path.startswith(_AUXILIARY)}


def magnitude(context: Context) -> Iterator[Finding]:
    """Table IV: quantiles of the magnitudes of convolution weights."""
    name = "inception_v3"
    for key, what in _QUANTILES.items() if name not in stood_for(context) else ():
        if (paper := context.published.get(f"table4/{name}/{key}")) is not None:
            row = Row("Table IV", LABELS[name], "ImageNet", what, paper=paper, setting=_MAGNITUDES)
            yield row.missing(NO_WEIGHTS)
    whats = _QUANTILES.values()
    of_absent = {"unit": "", "setting": _MAGNITUDES}
    yield from of_each(
        context, _magnitudes, lambda subject: [subject.row("Table IV", what, **of_absent) for what in whats]
    )
    yield context.source("magnitudes", fault_model="none; read off the weights")


def _magnitudes(subject: Subject, context: Context) -> Iterator[Row]:
    quantiles = magnitudes(subject.program, subject.scores()).row(0, named=True)
    for key, what in _QUANTILES.items():
        paper = context.published.get(f"table4/{subject.stands_for}/{key}")
        known = {"paper": paper, "here": quantiles[key], "n": quantiles["n"], "setting": _MAGNITUDES}
        yield subject.row("Table IV", what, "", detail=key in _ASIDE, **known)
