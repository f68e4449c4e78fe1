"""Figures 4, 5 and 17 to 19, and Table V: what protections cost on the paper's architectures."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, final

import torch
from torch import Tensor, nn

from hoplon.comparison.costs.guard_latency import (
    armed,
    check_ms_per_layer,
    interleaved,
    repair_ms,
    repairs_of_one_tensor,
)
from hoplon.comparison.costs.latency import measure
from hoplon.importance.scores import Scores
from hoplon.program.capturing import capture
from hoplon.program.sites import Values
from hoplon.protections.base import Overlay, Protection, overlay
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.baselines.radar import Radar
from hoplon.protections.guards.baselines.structural_coding import StructuralCoding
from hoplon.protections.guards.baselines.tmr_sparse import TMRSparse
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.memory.arena import lay_end_to_end
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.values.ranger import Ranger
from hoplon.zoo.resolve import resolve_model
from hoplon_studies.aspis.overhead_charts import BATCHES, IMAGES, charts, told
from hoplon_studies.aspis.sizes import convolutions
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context, Published

RANGER = "ranger"
_PIXELS = {"inception_v3": 299}
CODING = "structural coding"
_BASELINES = (CODING, "radar", "checksum")
_ANY_MEMORY = (*_BASELINES, "known-bits", "parity")
_GUARDS: dict[str, tuple[str, Callable[[Scores], Protection]]] = {
    "tmr": ("TMR of the convolution weights, a vote per tensor", lambda _: TMR(vote="tensor")),
    "tmr-sparse": ("TMR-sparse, which is the paper's Aspis-100%", lambda scores: TMRSparse(scores, 1.0)),
    "published-10%": ("Aspis-10% in sparse tensors, as published", lambda scores: TMRSparse(scores, 0.1)),
    "published-1%": ("Aspis-1% in sparse tensors, as published", lambda scores: TMRSparse(scores, 0.01)),
    "aspis-100%": ("Aspis-100% with a flat index", lambda scores: Aspis(scores, 1.0)),
    "aspis-10%": ("Aspis-10% with a flat index", lambda scores: Aspis(scores, 0.1)),
    "aspis-1%": ("Aspis-1% with a flat index", lambda scores: Aspis(scores, 0.01)),
    CODING: ("Structural Coding in exact arithmetic, all memory", lambda _: StructuralCoding()),
    "radar": ("RADAR's signatures of the high bits, all memory, groups set to zero", lambda _: Radar()),
    "checksum": ("checksums of the class of RADAR, all memory, detection", lambda _: Checksum()),
    "known-bits": ("known bits, all memory", lambda _: KnownBits()),
    "parity": ("parity across blocks, all memory", lambda _: Parity()),
}
NAMES = {name: words for name, (words, _) in _GUARDS.items()} | {RANGER: "Ranger"}
_PAIRS = {"tmr-sparse": "aspis-100%", "published-10%": "aspis-10%", "published-1%": "aspis-1%"}
"""Guards as published, and those of the same weights with a flat index."""

ADDED = "time added"
DERIVED = "time added over 50,000 images"
MEMORY, OF_PROCESS = "additional memory", "additional memory, of the paper's 16 GB"
OF_WEIGHTS = "additional memory, of all weights"
REPAIR = "a check of all layers that finds and repairs one weight"
ONE_REPAIR = "repair of one tensor"
_BEYOND_THE_PAPER = "main tensor, bit 30"  # a case of repair that it does not name

_SHOWN_BESIDE = "known-bits"  # of what the paper does not have
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
    why = f"not in the profile {context.profile.name}"
    yield from (Row("Fig. 17", LABELS[name], "-", ADDED, "%", why=why) for name in LABELS if name not in found)
    yield context.source(
        "times and bytes",
        fault_model="none; random weights, which time does not depend on, memory laid end to end; a batch of "
        f"{counts.batch}, {counts.repeats} blocks in which a plain forward pass and each check with a pass after it "
        "alternate; ratios within a block, limits of their median",
        seed=context.seed,
    )
    yield from charts(found, tuple(NAMES))
    yield from told(found, context.published)


def protections(scores: Scores) -> dict[str, Protection]:
    """The guards by name; ``scores`` of the convolution weights choose which Aspis holds."""
    return {name: make(scores) for name, (_, make) in _GUARDS.items()}


def measured(name: str, guards: Sequence[str], batch: int, blocks: int, seed: int) -> dict[str, Any]:
    """Costs on one of torchvision's networks as plain values.

    Returns:
        ``forward_ms``, ``weight_bytes``, and by protection ``time`` (check over forward pass, or what Ranger adds:
        median, low, high), ``check_ms``, ``extra_bytes``, ``set_up_ms``, ``layer_ms``, ``repair_ms``, ``repairs``,
        ``blocks``.
    """
    model, memory, layers = untrained(name, seed)
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


def untrained(name: str, seed: int) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """One of torchvision's networks with random weights, its memory, and the names of its convolutions' weights."""
    model = resolve_model(f"torchvision:{name}", seed=seed).module.eval()
    lay_end_to_end(model)  # as harden() and guard() hand models out
    named = (*model.named_parameters(), *model.named_buffers())
    memory = {key: tensor.detach() for key, tensor in named}
    return model, memory, tuple(f"{path}.weight" for path in convolutions(name))


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
            "repairs": {} if key in _ANY_MEMORY else _repairs(chosen[key], own, layers),
            "blocks": cost.blocks,
        }
    return found, 1e3 * median(times.forward)


def _repairs(protection: Protection, memory: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Any]:
    """The cases of repair by name: milliseconds (median, low, high), outcome, repeats."""
    found = repairs_of_one_tensor(protection, memory, layers)
    return {case: {"ms": one.ms, "outcome": one.outcome, "repeats": one.repeats} for case, one in found.items()}


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
    costs, published = measured_here["costs"], context.published
    of = _Overheads(name, measured_here, context)
    for key in ("tmr", "tmr-sparse"):  # the page has them in figure 19
        yield replace(of.sized("Fig. 5", key, published[f"fig5/{key}/memory"]), detail=True)
    for key in NAMES:
        yield of.timed(key, published.get(TIMES[key]) if key == RANGER else None)
        if key in costs and key != RANGER:
            row = of.whole("Fig. 17", key, published.get(TIMES.get(key, "")))
            yield replace(row, detail=key not in (*TIMES, "aspis-1%", _SHOWN_BESIDE))
    yield from of.breakdown()
    for key in NAMES:
        more = published.get(f"fig19/{name}/aspis-100%", published["fig19/aspis-100%"])
        row = of.sized("Fig. 19", key, more if key == "tmr-sparse" else None)
        yield replace(row, detail=key not in (*TIMES, _SHOWN_BESIDE))
    if name == "resnet50":
        yield from _table_five(of, published)


@final
class _Overheads:
    """Rows about one architecture; a protection that was not measured says so."""

    def __init__(self, name: str, measured_here: Mapping[str, Any], context: Context) -> None:
        self._name, self._label, self._context = name, LABELS[name], context
        self._here, self.costs = measured_here, measured_here["costs"]

    def row(self, where: str, what: str, unit: str, arm: str, **known: Any) -> Row:
        """A row of one protection; without a figure, it was not measured."""
        left_out = "" if "here" in known else f"not in the profile {self._context.profile.name}"
        return Row(where, self._label, "-", what, unit, **{"arm": arm, "why": left_out, **known})

    def timed(self, key: str, paper: Any) -> Row:
        """Time that it adds to one forward pass, as measured."""
        what = f"{ADDED} to a pass of {self._here['batch']} images"
        if key not in self.costs:
            return self.row("Fig. 17", what, "%", key, paper=paper)
        here, low, high = (100 * value for value in self.costs[key]["time"])
        known = {"here": here, "low": low, "high": high, "n": self.costs[key]["blocks"], "seed": self._context.seed}
        return self.row("Fig. 17", what, "%", key, paper=paper, setting="measured", detail=True, **known)

    def whole(self, where: str, key: str, paper: Any) -> Row:
        """Derived, not measured: initialisation and a check per batch over the whole of ImageNet's validation set."""
        if key not in self.costs:
            return self.row(where, DERIVED, "%", key, paper=paper)
        cost, batches = self.costs[key], -(-IMAGES // BATCHES[self._name])
        passes = IMAGES / self._here["batch"]  # as measured, of so many images
        once = cost["set_up_ms"] / self._here["forward_ms"] / passes
        here, low, high = (100 * (once + batches / passes * time) for time in cost["time"])
        known = {"here": here, "low": low, "high": high, "n": cost["blocks"], "seed": self._context.seed}
        return self.row(where, DERIVED, "%", key, paper=paper, **known)

    def sized(self, where: str, key: str, paper: Any) -> Row:
        """Bytes that it adds."""
        if key not in self.costs:
            return self.row(where, MEMORY, "MB", key, paper=paper)
        return self.row(where, MEMORY, "MB", key, paper=paper, here=self.costs[key]["extra_bytes"] / 1e6)

    def share(self, what: str, key: str, whole: float, paper: Any = None) -> Row:
        """Bytes that it adds as a share."""
        if key not in self.costs:
            return self.row("Table V", what, "%", key, paper=paper)
        return self.row("Table V", what, "%", key, paper=paper, here=100 * self.costs[key]["extra_bytes"] / whole)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return int(self._here["weight_bytes"])

    def breakdown(self) -> Iterator[Row]:
        """Initialisation, check of a layer, detection with repair."""
        parts = {"set_up_ms": "initialisation", "layer_ms": "check of one layer, mean", "repair_ms": REPAIR}
        for part, what in parts.items():
            for key, cost in self.costs.items():
                if part not in cost or (part == "layer_ms" and cost[part] is None):
                    continue
                cannot = "" if cost[part] is not None else f"{key} finds it, but does not repair it to the bit"
                aside = key not in TIMES or part == "repair_ms"  # no guard of the paper, or not what it times
                yield self.row("Fig. 18", what, "ms", key, here=cost[part], why=cannot, detail=aside)
        for key, cost in self.costs.items():
            yield from self._repairs(key, cost.get("repairs", {}))

    def _repairs(self, key: str, cases: Mapping[str, Any]) -> Iterator[Row]:
        """The slowest of the paper's three cases, and each case by itself."""
        paper = self._context.published["fig18/correction"]
        named = {case: one for case, one in cases.items() if case != _BEYOND_THE_PAPER}
        slowest = max(named, key=lambda case: named[case]["ms"][0], default="")
        for case, one in ({"": named[slowest], **cases} if named else {}).items():
            here, low, high = one["ms"]
            known = {"here": here, "low": low, "high": high, "n": one["repeats"], "seed": self._context.seed}
            what = f"{ONE_REPAIR}, {case}: {one['outcome']}" if case else ONE_REPAIR
            printed = paper if key in TIMES and case != _BEYOND_THE_PAPER else None
            yield self.row("Fig. 18", what, "ms", key, paper=printed, detail=bool(case) or key not in TIMES, **known)


def _table_five(of: _Overheads, published: Published) -> Iterator[Row]:
    process = 1e9 * published["table5/process"]
    keys = _PAIRS | {CODING: "structural-coding"}
    for key in (*_BASELINES, *_PAIRS, *_PAIRS.values()):
        time, memory = (published.get(f"table5/{keys.get(key)}/{kind}") for kind in ("time", "memory"))
        detail = key not in (*TIMES, "aspis-1%", CODING)
        yield replace(of.whole("Table V", key, time), detail=detail)
        own, whole = (memory, None) if key == CODING else (None, memory)  # the printed share fits the weights alone
        yield replace(of.share(OF_PROCESS, key, process, whole), detail=detail)
        yield replace(of.share(OF_WEIGHTS, key, of.weight_bytes, own), detail=detail)
