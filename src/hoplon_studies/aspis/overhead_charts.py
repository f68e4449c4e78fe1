"""Overheads as charts and in words: bars by network, and what the published run times come to per weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.figures import Figure, Series, bars
from hoplon_studies.framework.study import Published

IMAGES, BATCHES = 50_000, {"vgg19": 256, "resnet50": 512, "inception_v3": 512}
"""Images of the paper's data set, and of its batches."""

_SECONDS_PER_HOUR = 3600
_SHOWN_CHECK = "tmr"
Found = Mapping[str, Mapping[str, Any]]
"""What was measured, by network."""


def charts(found: Found, names: Sequence[str]) -> Iterator[Figure]:
    """Bars of time and of memory by network, of the protections that were measured on all; none without a network."""
    time, memory = [], []
    for key in names if found else ():
        costs = [one["costs"][key] for one in found.values() if key in one["costs"]]
        if len(costs) == len(found):
            time.append(Series(key, *(tuple(_positive(100 * cost["time"][at]) for cost in costs) for at in range(3))))
            memory.append(Series(key, tuple(_positive(cost["extra_bytes"] / 1e6) for cost in costs)))
    for name, title, series, unit, of in (
        ("time", "Time added to a forward pass of a small batch (Figs. 4 and 17)", time, "%", " of a forward pass"),
        ("memory", "Additional memory (Figs. 5 and 19)", memory, "MB", ""),
    ):
        if found:
            yield bars(
                name,
                title=title,
                alt="; ".join(f"{one.name}: {', '.join(_told(value, unit) for value in one.values)}" for one in series),
                groups=[LABELS[model] for model in found],
                series=series,
                y_title=f"{unit}{of}",
                log_y=True,
            )


def _positive(value: float) -> float | None:
    """A value that a logarithmic axis can show; no bar for any other."""
    return value if value > 0 else None


def _told(value: float | None, unit: str) -> str:
    return "none" if value is None else f"{value:.3g} {unit}"


def added_per_weight(published: Published, name: str) -> tuple[float, float]:
    """Hours that TMR adds in the paper, and microseconds per weight and check that they come to.

    The network that takes longest has the least share: 121 % of VGG19's hours, 299 % of the fewest of the others.
    """
    hours, shares = (
        [float(digits) for digits in re.findall(r"[\d.]+", published[key])]
        for key in (f"fig4/hours/{name}", "fig4/tmr/time")
    )
    added = hours[0] * (shares[0] if name == "vgg19" else shares[-1]) / 100
    checks = -(-IMAGES // BATCHES[name])
    return added, 1e6 * added * _SECONDS_PER_HOUR / checks / published[f"table2/{name}/weights"]


def told(found: Found, published: Published) -> Iterator[str]:
    """What the arms are, and what the paper's figures are of."""
    each = ", ".join(f"{LABELS[name]} {one['forward_ms'] / one['batch']:.3g} ms" for name, one in found.items())
    yield f"{_ARMS} Time per image in such a batch: {each}." if found else _ARMS
    (vgg, per_vgg), (resnet, per_resnet) = (added_per_weight(published, name) for name in ("vgg19", "resnet50"))
    text = (
        f"Why TMR costs the paper so much, as far as its figures tell: if 121 % is of VGG19's 10 hours and 299 % of "
        f"ResNet50's 4, {vgg:.1f} and {resnet:.1f} hours are added, about the same whatever the network. Over one pass "
        f"through ImageNet that is, per weight and check, {per_vgg:.0f} and {per_resnet:.0f} microseconds, as of "
        "a loop over elements in Python"
    )
    timed = {name: one["costs"][_SHOWN_CHECK] for name, one in found.items() if _SHOWN_CHECK in one["costs"]}
    cold = {name: cost["check_ms"] for name, cost in timed.items()}
    warm = {name: cost["layer_ms"] * published[f"table2/{name}/layers"] for name, cost in timed.items()}
    if timed:
        text += (
            f"; a vote over whole tensors takes {_nanoseconds(cold, published)} nanoseconds here between forward "
            f"passes, as in Fig. 17, and {_nanoseconds(warm, published)} repeated layer by layer, as in Fig. 18"
        )
    yield f"{text}."
    process = published["table5/process"]
    yield (
        f"The paper's memory shares are of {process:.0f} GB, as 15.6 % are 2.5 GB: not of the weights. The published "
        "guards repair the main tensor by subtraction, which does not bring back a weight whose bit 30 has flipped."
    )


def _nanoseconds(checks: Mapping[str, float], published: Published) -> str:
    """Milliseconds of a check of all layers, by network, as a span of nanoseconds per weight."""
    each = sorted(1e6 * ms / published[f"table2/{name}/weights"] for name, ms in checks.items())
    return " to ".join(dict.fromkeys(f"{end:.2g}" for end in (each[0], each[-1])))


_ARMS = (
    "tmr: three copies of the convolution weights, a vote per tensor; tmr-sparse: the paper's Aspis-100 %; "
    "published-x %: Aspis in sparse tensors, as published; aspis-x %: with a flat index; structural coding (in exact "
    "arithmetic), radar (which loses weights where it repairs), checksum (of its class, detection alone), known-bits "
    "and parity guard all memory. A check costs the same whatever the batch, a forward pass of more images more: "
    "shares of one pass of a small batch are upper limits. What is *derived* carries the measured times over to "
    "50,000 images in batches of 256 (VGG19) and 512, initialisation included, as if a pass took time in proportion to "
    "its images, and stands beside the paper's; the next part measures whole data sets on networks with "
    "weights, and checks and passes at the paper's batch. A repair is of the tensor of median size, what a "
    "check takes longer when it finds a fault, in the slowest of three cases: a copy is wrong, the main tensor is, or "
    "both."
)
