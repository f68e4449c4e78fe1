"""Fault models, samplings, criteria and protections by the names that files and the command line use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from hoplon.cli.options.bounds import Bounded, PolicyName, ranger
from hoplon.cli.options.schema import (
    FLAG,
    INTEGER,
    NUMBER,
    TABLE,
    TEXT,
    ComponentSpec,
    OptionType,
    build_component,
    one_of,
    several,
)
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import as_criterion
from hoplon.criteria.detection import Detection
from hoplon.criteria.embedding import EmbeddingDistance
from hoplon.criteria.regression import Deviation
from hoplon.criteria.tokens import PerplexityChange, TokenMatch
from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel, WordModel
from hoplon.faults.multi_word import BitRate, Burst, Elements, Mixture
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import BottomScore, ElementUniform, LayerUniform, OpUniform, TopScore
from hoplon.faults.sampling.plans import Exhaustive, Explicit, Stratified
from hoplon.faults.single_word import AdjacentBits, BitFlip, RandomValue, StuckAt, Zero
from hoplon.formats.named import format_named
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.ranger import Ranger

_Built = TypeVar("_Built")

FORMAT = OptionType("the name of a number format", lambda value: format_named(TEXT.read(value)))
_BITS = {"count": INTEGER, "bits": several(INTEGER), "field": one_of("sign", "exponent", "mantissa"), "format": FORMAT}
_SPREAD = {"elements": INTEGER, "words": INTEGER, "bytes": INTEGER, "lane": FLAG}


def _spread(model: Callable[..., WordModel]) -> Callable[..., FaultModel]:
    """A fault of one word, or of several: ``elements`` anywhere, ``words`` in a row, a line of ``bytes``."""

    def build(
        *,
        elements: int | None = None,
        words: int | None = None,
        bytes: int | None = None,
        lane: bool | None = None,
        **options: Any,
    ) -> FaultModel:
        word = model(**options)
        if elements is not None:
            if words is not None or bytes is not None or lane is not None:
                raise HoplonError("expected elements, or words or bytes (with lane), got both")
            return Elements(elements, word)
        if words is not None or bytes is not None:
            return Burst(word, words=words, bytes=bytes, lane=bool(lane))
        if lane is not None:
            raise HoplonError("expected words or bytes beside lane, got neither")
        return word

    return build


FAULTS: Mapping[str, ComponentSpec] = {
    "bitflip": ComponentSpec(_spread(BitFlip), {**_BITS, **_SPREAD}),
    "stuck-at": ComponentSpec(_spread(StuckAt), {"value": INTEGER, **_BITS, **_SPREAD}, required=("value",)),
    "adjacent-bits": ComponentSpec(_spread(AdjacentBits), {"count": INTEGER, "format": FORMAT, **_SPREAD}),
    "random-value": ComponentSpec(_spread(RandomValue), {"low": NUMBER, "high": NUMBER, "format": FORMAT, **_SPREAD}),
    "zero": ComponentSpec(_spread(Zero), {"format": FORMAT, **_SPREAD}),
    "bit-rate": ComponentSpec(BitRate, {"rate": NUMBER, "at_least_one": FLAG, "format": FORMAT}, required=("rate",)),
}
"""Fault models by name, and what each takes; several of them in a list, with weights, make a mixture."""


def fault_model(value: Any) -> FaultModel:
    """Build the fault model that a name, a table, or a list of tables with weights describes."""
    if not isinstance(value, list):
        model: FaultModel = build_component(value, FAULTS, where="fault")
        return model
    models, weights = [], []
    for number, part in enumerate(value):
        table = dict(part) if isinstance(part, Mapping) else {"name": part}
        where = f"fault[{number}]"
        weight = table.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise HoplonError(f"{where}.weight: expected a number, got {weight!r}")
        weights.append(float(weight))
        models.append(build_component(table, FAULTS, where=where))
    try:
        return Mixture(tuple(models), tuple(weights))
    except HoplonError as error:
        raise HoplonError(f"fault: {error}") from error


def _ranked(sampling: type[TopScore] | type[BottomScore]) -> Callable[..., Sampling]:
    def build(*, scores: str, **options: Any) -> Sampling:
        return sampling(Scores.load(Path(scores).expanduser()).values, **options)

    return build


def _stratified(by: str, allocation: Mapping[str, Any] | None = None) -> Stratified:
    shares = None
    if allocation is not None:
        shares = {int(key) if by == "bit" and key.isdecimal() else key: value for key, value in allocation.items()}
    return Stratified(by, shares)  # type: ignore[arg-type]


def _place(value: Any) -> tuple[Any, ...]:
    site, element, *bits = value
    if len(bits) > 1:
        raise ValueError
    return (TEXT.read(site), INTEGER.read(element), *map(several(INTEGER).read, bits))


def _places(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_place, value))


def _shares(value: Any) -> dict[str, float]:
    return {key: NUMBER.read(share) for key, share in TABLE.read(value).items()}


_RANKED = {"scores": TEXT, "fraction": NUMBER, "count": INTEGER}
SAMPLINGS: Mapping[str, ComponentSpec] = {
    "element": ComponentSpec(ElementUniform),
    "op": ComponentSpec(OpUniform, {"kinds": several(TEXT), "drop_last": INTEGER}),
    "layer": ComponentSpec(LayerUniform),
    "exhaustive": ComponentSpec(Exhaustive),
    "stratified": ComponentSpec(
        _stratified,
        {"by": one_of("site", "layer", "bit"), "allocation": OptionType("a table of numbers", _shares)},
        required=("by",),
    ),
    "explicit": ComponentSpec(
        lambda faults: Explicit(faults),
        {"faults": OptionType("a list of [site, element] or [site, element, [bits]]", _places)},
        required=("faults",),
    ),
    "top-score": ComponentSpec(_ranked(TopScore), _RANKED, required=("scores",)),
    "bottom-score": ComponentSpec(_ranked(BottomScore), _RANKED, required=("scores",)),
}
"""Samplings by name, and what each takes."""


def sampling(value: Any) -> Sampling:
    """Build the sampling that a name or a table describes."""
    built: Sampling = build_component(value, SAMPLINGS, where="sampling")
    return built


_OUTPUT = {"outputs": INTEGER}
CRITERIA: Mapping[str, ComponentSpec] = {
    "top-k": ComponentSpec(TopK, {"k": INTEGER, "reference": one_of("golden", "label"), **_OUTPUT}),
    "deviation": ComponentSpec(
        Deviation,
        {"thresholds": several(NUMBER), "unit": TEXT, "scale": NUMBER, **_OUTPUT},
        required=("thresholds",),
    ),
    "steering": ComponentSpec(Deviation.steering, {"scale": NUMBER, **_OUTPUT}),
    "detection": ComponentSpec(
        Detection,
        {"iou": NUMBER, "score": NUMBER, "boxes": one_of("xyxy", "cxcywh"), "outputs": several(INTEGER)},
    ),
    "tokens": ComponentSpec(TokenMatch, {"share": NUMBER, **_OUTPUT}),
    "perplexity": ComponentSpec(PerplexityChange, {"factor": NUMBER, **_OUTPUT}),
    "embedding": ComponentSpec(
        EmbeddingDistance,
        {"threshold": NUMBER, "metric": one_of("cosine", "euclidean"), **_OUTPUT},
        required=("threshold",),
    ),
}
"""Criteria by name, and what each takes; beside them "top-1", "top-5", ... and "top-1-label", ..."""


def _each(value: Any, build: Callable[..., _Built], *, where: str) -> list[_Built]:
    """Build one component, or each of a list of them, whose messages then name its number."""
    if not isinstance(value, list):
        return [build(value, where=where)]
    return [build(part, where=f"{where}[{number}]") for number, part in enumerate(value)]


def criterion(value: Any) -> Criterion:
    """Build the criterion that a name, a table or a list of them describes."""
    criteria = _each(value, _criterion, where="criterion")
    try:
        return as_criterion(criteria if len(criteria) != 1 else criteria[0])
    except HoplonError as error:
        raise HoplonError(f"criterion: {error}") from error


def _criterion(value: Any, *, where: str) -> Criterion:
    if isinstance(value, str) and (top_k := TopK.named(value)) is not None:
        return top_k
    try:
        built: Criterion = build_component(value, CRITERIA, where=where)
    except HoplonError as error:
        raise HoplonError(f"{error}; or top-1, top-5, ..., top-1-label") from error
    return built


def _ranger(*, ranges: str, where: Bounded = "algorithm1", policy: PolicyName = "clamp", seed: int = 0) -> Ranger:
    return ranger(Ranges.load(Path(ranges).expanduser()), where=where, policy=policy, seed=seed)


PROTECTIONS: Mapping[str, ComponentSpec] = {
    "ranger": ComponentSpec(
        _ranger,
        {
            "ranges": TEXT,
            "where": one_of(*get_args(Bounded)),
            "policy": one_of(*get_args(PolicyName)),
            "seed": INTEGER,
        },
        required=("ranges",),
    ),
    "duplicate": ComponentSpec(Duplicate, {"sites": several(TEXT)}),
    "aspis": ComponentSpec(
        lambda scores, fraction: Aspis(Scores.load(Path(scores).expanduser()), fraction),
        {"scores": TEXT, "fraction": NUMBER},
        required=("scores", "fraction"),
    ),
    "tmr": ComponentSpec(TMR, {"vote": one_of("element", "tensor")}),
    "parity": ComponentSpec(Parity, {"group": INTEGER}),
    "known-bits": ComponentSpec(KnownBits, {"block": INTEGER}),
}
"""Protections by name, and what each takes."""


def protections(value: Any) -> tuple[Protection, ...]:
    """Build the protections that a name, a table or a list of them describes."""
    return tuple(_each(value, partial(build_component, specs=PROTECTIONS), where="protection"))
