"""Figures 4, 5 and 17 to 19, and Table V: what protections cost on the paper's architectures."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hoplon.comparison.costs.guard_latency import armed, check_ms_per_layer, interleaved, repair_ms
from hoplon.comparison.costs.latency import measure
from hoplon.importance.scores import Scores
from hoplon.program.capturing import capture
from hoplon.program.sites import Values
from hoplon.protections.base import Overlay, Protection, overlay
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.baselines.tmr_sparse import TMRSparse
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.memory.arena import lay_end_to_end
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.values.ranger import Ranger
from hoplon.zoo.resolve import resolve_model
from hoplon_studies.aspis.sizes import convolutions
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.figures import Figure, Series, bars
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context, Published

RANGER = "ranger"
_PIXELS = {"inception_v3": 299}
_IMAGES, _BATCH = 50_000, {"vgg19": 256, "resnet50": 512, "inception_v3": 512}  # the paper's data set and batches
_ANY_MEMORY = ("checksum", "known-bits", "parity")
_GUARDS: dict[str, tuple[str, Callable[[Scores], Protection]]] = {
    "tmr": ("TMR of the convolution weights, a vote per tensor", lambda _: TMR(vote="tensor")),
    "tmr-sparse": ("TMR-sparse, which is the paper's Aspis-100%", lambda scores: TMRSparse(scores, 1.0)),
    "published-10%": ("Aspis-10% in sparse tensors, as published", lambda scores: TMRSparse(scores, 0.1)),
    "published-1%": ("Aspis-1% in sparse tensors, as published", lambda scores: TMRSparse(scores, 0.01)),
    "aspis-100%": ("Aspis-100% with a flat index", lambda scores: Aspis(scores, 1.0)),
    "aspis-10%": ("Aspis-10% with a flat index", lambda scores: Aspis(scores, 0.1)),
    "aspis-1%": ("Aspis-1% with a flat index", lambda scores: Aspis(scores, 0.01)),
    "checksum": ("checksums of the class of RADAR, all memory, detection", lambda _: Checksum()),
    "known-bits": ("known bits, all memory", lambda _: KnownBits()),
    "parity": ("parity across blocks, all memory", lambda _: Parity()),
}
NAMES = {name: words for name, (words, _) in _GUARDS.items()} | {RANGER: "Ranger"}
_PAIRS = {"tmr-sparse": "aspis-100%", "published-10%": "aspis-10%", "published-1%": "aspis-1%"}
"""Guards as published, and those of the same weights with a flat index."""

TIMES = {"tmr": "fig17/tmr", RANGER: "fig17/ranger", **dict.fromkeys(_PAIRS, "fig17/aspis")}


def time_and_memory(context: Context) -> Iterator[Finding]:
    """Time and memory of each protection on each architecture, measured together."""
    counts = context.profile.aspis
    found = {}
    for name in LABELS:
        if name in counts.architectures:
            make = partial(measured, name, counts.guards, counts.batch, counts.repeats, context.seed)
            found[name] = context.timed(name, make, stage=f"overheads of {name}")
            yield from _rows(name, found[name], context)
    what, why = "time of a check over that of a forward pass", f"not in the profile {context.profile.name}"
    yield from (Row("Fig. 17", LABELS[name], "-", what, "%", why=why) for name in LABELS if name not in found)
    yield context.source(
        "times and bytes",
        fault_model="none; random weights, which time does not depend on, memory laid end to end; a batch of "
        f"{counts.batch}, {counts.repeats} blocks in which a plain forward pass and each check with a pass after it "
        "alternate; ratios within a block, limits of their median",
        seed=context.seed,
    )
    yield from _figures(found)
    yield _TEXT


def protections(scores: Scores) -> dict[str, Protection]:
    """The guards by name; ``scores`` of the convolution weights choose which Aspis holds."""
    return {name: make(scores) for name, (_, make) in _GUARDS.items()}


def measured(name: str, guards: Sequence[str], batch: int, blocks: int, seed: int) -> dict[str, Any]:
    """Costs on one of torchvision's networks as plain values.

    Returns:
        ``forward_ms``, ``weight_bytes``, and by protection ``time`` (check over forward pass, or what Ranger adds:
        median, low, high), ``check_ms``, ``extra_bytes``, ``set_up_ms``, ``layer_ms``, ``repair_ms``, ``blocks``.
    """
    model = resolve_model(f"torchvision:{name}", seed=seed).module.eval()
    lay_end_to_end(model)  # as harden() and guard() hand models out
    named = (*model.named_parameters(), *model.named_buffers())
    memory = {key: tensor.detach() for key, tensor in named}
    layers = tuple(f"{path}.weight" for path in convolutions(name))
    generator = torch.Generator().manual_seed(seed)
    pixels = _PIXELS.get(name, 224)
    x = torch.randn(batch, 3, pixels, pixels, generator=generator)
    scores = Scores({key: memory[key].abs() for key in layers})  # time depends on how many weights are held alone
    chosen = {key: one for key, one in protections(scores).items() if key in guards}
    forward = torch.inference_mode()(partial(model, x))
    found, forward_ms = _guards(chosen, forward, memory, layers, blocks=blocks, seed=seed)
    gc.collect()  # gigabytes of sparse copies, before the model is captured
    if RANGER in guards:
        found[RANGER] = _ranger(model, x, blocks=blocks, seed=seed)
    weight_bytes = sum(tensor.nbytes for tensor in memory.values())
    return {"forward_ms": forward_ms, "batch": batch, "weight_bytes": weight_bytes, "costs": found}


def _guards(
    chosen: Mapping[str, Protection],
    forward: Callable[[], object],
    memory: Mapping[str, Tensor],
    layers: Sequence[str],
    *,
    blocks: int,
    seed: int,
) -> tuple[dict[str, Any], float]:
    """Costs of each guard, and the median time of a plain forward pass in milliseconds."""
    own = {key: memory[key] for key in layers}
    guards = {key: armed(one, memory if key in _ANY_MEMORY else own) for key, one in chosen.items()}
    checks = {key: guard.check for key, guard in guards.items()}
    times = interleaved(forward, checks, blocks=blocks, seed=seed, device=memory[layers[0]].device)
    found = {}
    for key, guard in guards.items():
        cost = times.cost(key)
        found[key] = {
            "time": cost.over_forward,
            "check_ms": cost.check_ms,
            "extra_bytes": guard.guard.extra_bytes,
            "protected_bytes": guard.guard.protected_bytes,
            "set_up_ms": guard.set_up_ms,
            "layer_ms": None if key in _ANY_MEMORY else check_ms_per_layer(chosen[key], own, layers),
            "repair_ms": repair_ms(guard, chosen[key], memory, layers),
            "blocks": cost.blocks,
        }
    return found, 1e3 * median(times.forward)


def _ranger(model: nn.Module, x: Tensor, *, blocks: int, seed: int) -> dict[str, Any]:
    """Costs that bounds add to the same lowering without them."""
    program = capture(model, x[:2] if len(x) > 1 else x.repeat(2, 1, 1, 1))
    observed = profile_activations(program, x[:2], sites=Values(), quantiles=False, tolerance=math.inf)
    bounds = overlay(program, [Ranger(observed.ranges())])
    arms = {"none": lower(program, Overlay(), copy=False), RANGER: lower(program, bounds, copy=False)}
    ratio = measure(arms, x, baseline="none", blocks=blocks, calls=1, seed=seed)[RANGER]
    return {
        "time": (ratio.ratio - 1, ratio.low - 1, ratio.high - 1),
        "extra_bytes": sum(effect.extra_bytes for effect in bounds.values.values()),
        "blocks": ratio.blocks,
    }


def _rows(name: str, measured_here: Mapping[str, Any], context: Context) -> Iterator[Row]:
    label, costs = LABELS[name], measured_here["costs"]
    why = f"CPU, batch {measured_here['batch']}; the paper: GPU, batch {_BATCH[name]}"
    published = context.published

    left_out = f"not in the profile {context.profile.name}"

    def timed(where: str, key: str, paper: Any) -> Row:
        what = f"{NAMES[key]}: time that it adds to a forward pass"
        if key not in costs:
            return Row(where, label, "-", what, "%", paper, why=left_out)
        time, low, high = (100 * value for value in costs[key]["time"])
        n, seed = costs[key]["blocks"], context.seed
        return Row(where, label, "-", what, "%", paper, time, low, high, n, seed, why)

    def sized(where: str, key: str, paper: Any, reason: str = "") -> Row:
        what = f"{NAMES[key]}: additional memory"
        if key not in costs:
            return Row(where, label, "-", what, "MB", paper, why=left_out)
        return Row(where, label, "-", what, "MB", paper, costs[key]["extra_bytes"] / 1e6, why=reason)

    yield timed("Fig. 4", "tmr", published["fig4/tmr/time"])
    yield timed("Fig. 4", "tmr-sparse", published["fig4/tmr-sparse/time"])
    three = "two more copies; the paper's figure is near that of three"
    yield sized("Fig. 5", "tmr", published["fig5/tmr/memory"], three)
    yield sized("Fig. 5", "tmr-sparse", published["fig5/tmr-sparse/memory"])
    for key in NAMES:
        yield timed("Fig. 17", key, published.get(TIMES.get(key, "")))
        if key in costs and key != RANGER:
            yield _whole(name, key, measured_here)
    yield from _breakdown(label, costs, context, why)
    for key in NAMES:
        paper = published.get(f"fig19/{name}/aspis-100%") if key == "tmr-sparse" else None
        yield sized("Fig. 19", key, paper)
    if name == "resnet50":
        yield from _table_five(measured_here, published, timed)


def _whole(name: str, key: str, measured_here: Mapping[str, Any]) -> Row:
    """Derived, not measured: initialisation and a check per batch over the whole of ImageNet's validation set."""
    cost, batches = measured_here["costs"][key], -(-_IMAGES // _BATCH[name])
    plain = measured_here["forward_ms"] / measured_here["batch"] * _IMAGES
    added = 100 * (cost["set_up_ms"] + batches * cost["check_ms"]) / plain
    what = f"{NAMES[key]}: derived for {_IMAGES:,} images in batches of {_BATCH[name]}, initialisation included"
    return Row("Fig. 17", LABELS[name], "-", what, "%", here=added, why="from the measured times above")


def _breakdown(label: str, costs: Mapping[str, Any], context: Context, why: str) -> Iterator[Row]:
    """Initialisation, check of a layer, detection with repair."""
    parts = {
        "set_up_ms": ("(a) initialisation", None),
        "layer_ms": ("(b) check of one layer, mean", None),
        "repair_ms": ("(c) a check of all layers that finds and repairs one weight", "fig18/correction"),
    }
    for part, (text, paper) in parts.items():
        for key, cost in costs.items():
            if part not in cost or (part == "layer_ms" and cost[part] is None):
                continue
            reason = "the paper times the repair of one tensor alone" if paper else why
            if cost[part] is None:
                reason = "finds it, but does not repair it to the bit"
            published = context.published[paper] if paper and key in TIMES else None
            yield Row("Fig. 18", label, "-", f"{text}: {NAMES[key]}", "ms", published, cost[part], why=reason)


def _table_five(
    measured_here: Mapping[str, Any], published: Published, timed: Callable[[str, str, Any], Row]
) -> Iterator[Row]:
    label, costs = LABELS["resnet50"], measured_here["costs"]
    for what, kind in (("time that it adds", "time"), ("additional memory", "memory")):
        paper = published[f"table5/structural-coding/{kind}"]
        why_not = "published figures only; not implemented here"
        yield Row("Table V", label, "-", f"Structural Coding: {what}", "%", paper, why=why_not)
    for key in (*_PAIRS, *_PAIRS.values(), "checksum"):
        of_time, of_memory = (published.get(f"table5/{_PAIRS.get(key)}/{kind}") for kind in ("time", "memory"))
        yield timed("Table V", key, of_time)
        if key not in costs:
            continue
        share = 100 * costs[key]["extra_bytes"] / measured_here["weight_bytes"]
        reason = "of the bytes of all weights; the paper's share is of its process, about 16 GB"
        yield Row("Table V", label, "-", f"{NAMES[key]}: additional memory", "%", of_memory, share, why=reason)


def _figures(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Figure]:
    """Bars of time and of memory by network, of the protections that were measured on all; none without a network."""
    time, memory = [], []
    for key in NAMES if found else ():
        costs = [one["costs"][key] for one in found.values() if key in one["costs"]]
        if len(costs) == len(found):
            parts = (tuple(100 * max(cost["time"][at], 0.0) for cost in costs) for at in range(3))
            time.append(Series(key, *parts))
            memory.append(Series(key, tuple(cost["extra_bytes"] / 1e6 for cost in costs)))
    for name, title, series, unit, of in (
        ("time", "Time added to a forward pass (Figs. 4 and 17)", time, "%", " of a forward pass"),
        ("memory", "Additional memory (Figs. 5 and 19)", memory, "MB", ""),
    ):
        if found:
            yield bars(
                name,
                title=title,
                alt="; ".join(
                    f"{one.name}: {', '.join(f'{value:.3g} {unit}' for value in one.values)}" for one in series
                ),
                groups=[LABELS[model] for model in found],
                series=series,
                y_title=f"{unit}{of}",
                log_y=True,
            )


_TEXT = (
    "The paper's overheads are those of whole data sets on a GPU. A check costs the same whatever the batch, a forward "
    "pass in proportion to it: shares of one forward pass at a small batch are upper limits. Rows of Fig. 17 that are "
    "*derived* carry the measured times over to the paper's data set and batch; the next part measures whole data "
    "sets on networks with weights."
)
