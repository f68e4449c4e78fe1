"""Fault models, samplings, criteria and protections by the names that files and the command line use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hoplon.cli.options.bounds import Bounded, PolicyName, ranger
from hoplon.cli.options.schema import FLAG, INTEGER, NUMBER, TABLE, TEXT, Kind, Recipe, made, one_of, several
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

FORMAT = Kind("the name of a number format", lambda value: format_named(TEXT.read(value)))
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


FAULTS: Mapping[str, Recipe] = {
    "bitflip": Recipe(_spread(BitFlip), {**_BITS, **_SPREAD}),
    "stuck-at": Recipe(_spread(StuckAt), {"value": INTEGER, **_BITS, **_SPREAD}, required=("value",)),
    "adjacent-bits": Recipe(_spread(AdjacentBits), {"count": INTEGER, "format": FORMAT, **_SPREAD}),
    "random-value": Recipe(_spread(RandomValue), {"low": NUMBER, "high": NUMBER, "format": FORMAT, **_SPREAD}),
    "zero": Recipe(_spread(Zero), {"format": FORMAT, **_SPREAD}),
    "bit-rate": Recipe(BitRate, {"rate": NUMBER, "at_least_one": FLAG, "format": FORMAT}, required=("rate",)),
}
"""Fault models by name, and what each takes; several of them in a list, with weights, make a mixture."""


def fault_model(given: Any) -> FaultModel:
    """The fault model that a name, a table, or a list of tables with weights describes."""
    if not isinstance(given, list):
        model: FaultModel = made(given, FAULTS, where="fault")
        return model
    models, weights = [], []
    for number, part in enumerate(given):
        table = dict(part) if isinstance(part, Mapping) else {"name": part}
        where = f"fault[{number}]"
        weight = table.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise HoplonError(f"{where}.weight: expected a number, got {weight!r}")
        weights.append(float(weight))
        models.append(made(table, FAULTS, where=where))
    try:
        return Mixture(tuple(models), tuple(weights))
    except HoplonError as error:
        raise HoplonError(f"fault: {error}") from error


def _ranked(kind: type[TopScore] | type[BottomScore]) -> Callable[..., Sampling]:
    def build(*, scores: str, **options: Any) -> Sampling:
        return kind(Scores.load(Path(scores).expanduser()).values, **options)

    return build


def _explicit(faults: tuple[Any, ...]) -> Explicit:
    return Explicit([(site, element, *([tuple(bits[0])] if bits else [])) for site, element, *bits in faults])


def _stratified(by: str, allocation: Mapping[str, Any] | None = None) -> Stratified:
    shares = None
    if allocation is not None:
        shares = {int(key) if by == "bit" and key.isdecimal() else key: value for key, value in allocation.items()}
    return Stratified(by, shares)  # type: ignore[arg-type]


def _place(value: Any) -> tuple[Any, ...]:
    site, element, *bits = value
    found = (TEXT.read(site), INTEGER.read(element), *(several(INTEGER).read(part) for part in bits))
    if len(found) > 3:
        raise ValueError
    return found


def _places(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_place, value))


def _shares(value: Any) -> dict[str, float]:
    return {key: NUMBER.read(share) for key, share in TABLE.read(value).items()}


_RANKED = {"scores": TEXT, "fraction": NUMBER, "count": INTEGER}
SAMPLINGS: Mapping[str, Recipe] = {
    "element": Recipe(ElementUniform),
    "op": Recipe(OpUniform, {"kinds": several(TEXT), "drop_last": INTEGER}),
    "layer": Recipe(LayerUniform),
    "exhaustive": Recipe(Exhaustive),
    "stratified": Recipe(
        _stratified,
        {"by": one_of("site", "layer", "bit"), "allocation": Kind("a table of numbers", _shares)},
        required=("by",),
    ),
    "explicit": Recipe(
        _explicit,
        {"faults": Kind("a list of [site, element] or [site, element, [bits]]", _places)},
        required=("faults",),
    ),
    "top-score": Recipe(_ranked(TopScore), _RANKED, required=("scores",)),
    "bottom-score": Recipe(_ranked(BottomScore), _RANKED, required=("scores",)),
}
"""Samplings by name, and what each takes."""


def sampling(given: Any) -> Sampling:
    """The sampling that a name or a table describes."""
    found: Sampling = made(given, SAMPLINGS, where="sampling")
    return found


_OUTPUT = {"outputs": INTEGER}
CRITERIA: Mapping[str, Recipe] = {
    "top-k": Recipe(TopK, {"k": INTEGER, "reference": one_of("golden", "label"), **_OUTPUT}),
    "deviation": Recipe(
        Deviation,
        {"thresholds": several(NUMBER), "unit": TEXT, "scale": NUMBER, **_OUTPUT},
        required=("thresholds",),
    ),
    "steering": Recipe(Deviation.steering, {"scale": NUMBER, **_OUTPUT}),
    "detection": Recipe(
        Detection,
        {"iou": NUMBER, "score": NUMBER, "boxes": one_of("xyxy", "cxcywh"), "outputs": several(INTEGER)},
    ),
    "tokens": Recipe(TokenMatch, {"share": NUMBER, **_OUTPUT}),
    "perplexity": Recipe(PerplexityChange, {"factor": NUMBER, **_OUTPUT}),
    "embedding": Recipe(
        EmbeddingDistance,
        {"threshold": NUMBER, "metric": one_of("cosine", "euclidean"), **_OUTPUT},
        required=("threshold",),
    ),
}
"""Criteria by name, and what each takes; beside them "top-1", "top-5", ... and "top-1-label", ..."""


def criterion(given: Any) -> Criterion:
    """The criterion that a name, a table or a list of them describes."""
    many = isinstance(given, list)
    found = [
        _criterion(part, where=f"criterion[{number}]" if many else "criterion")
        for number, part in enumerate(given if many else [given])
    ]
    try:
        return as_criterion(found if len(found) != 1 else found[0])
    except HoplonError as error:
        raise HoplonError(f"criterion: {error}") from error


def _criterion(given: Any, *, where: str) -> Criterion:
    match = re.fullmatch(r"top-([1-9]\d*)(-label)?", given) if isinstance(given, str) else None
    if match is not None:
        return TopK(int(match[1]), reference="label" if match[2] else "golden")
    try:
        found: Criterion = made(given, CRITERIA, where=where)
    except HoplonError as error:
        raise HoplonError(f"{error}; or top-1, top-5, ..., top-1-label") from error
    return found


def _ranger(*, ranges: str, where: str = "algorithm1", policy: str = "clamp", seed: int = 0) -> Ranger:
    return ranger(Ranges.load(Path(ranges).expanduser()), where=Bounded(where), policy=PolicyName(policy), seed=seed)


PROTECTIONS: Mapping[str, Recipe] = {
    "ranger": Recipe(
        _ranger,
        {
            "ranges": TEXT,
            "where": one_of(*Bounded),
            "policy": one_of(*PolicyName),
            "seed": INTEGER,
        },
        required=("ranges",),
    ),
    "duplicate": Recipe(Duplicate, {"sites": several(TEXT)}),
    "aspis": Recipe(
        lambda scores, fraction: Aspis(Scores.load(Path(scores).expanduser()), fraction),
        {"scores": TEXT, "fraction": NUMBER},
        required=("scores", "fraction"),
    ),
    "tmr": Recipe(TMR, {"vote": one_of("element", "tensor")}),
    "parity": Recipe(Parity, {"group": INTEGER}),
    "known-bits": Recipe(KnownBits, {"block": INTEGER}),
}
"""Protections by name, and what each takes."""


def protections(given: Any) -> tuple[Protection, ...]:
    """The protections that a name, a table or a list of them describes."""
    many = isinstance(given, list)
    return tuple(
        made(part, PROTECTIONS, where=f"protection[{number}]" if many else "protection")
        for number, part in enumerate(given if many else [given])
    )
