"""What ``results.json`` of an assessment holds: names, types, and which names have to agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, Lt, MinLen
from pydantic import ConfigDict
from typing_extensions import TypedDict

_MOST = 1e18
_OPEN = ConfigDict(strict=True, extra="allow")
Number = Annotated[float, Ge(-_MOST), Le(_MOST)] | None
Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(0), Lt(2**63)]


class Rates(TypedDict):
    """What a share of failures and its parts are counted from; limits of a confidence that the document names."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    failure: Share
    failure_low: Share
    failure_high: Share
    sdc: Share
    nonfinite: Share
    crash: NotRequired[Share]
    crash_low: NotRequired[Share]
    crash_high: NotRequired[Share]
    n_faults: Count
    n_inputs: NotRequired[Count]
    n_runs: NotRequired[Count]


class OfBit(Rates):
    """Faults that flipped one bit; None: several."""

    bit: int | None


class OfLayer(Rates):
    """Faults that struck one layer; None: several."""

    layer: str | None


class Arm(Rates):
    """One arm under one fault table."""

    name: str
    faults: NotRequired[str]
    target: Literal["values", "memory"]
    outcomes: dict[str, Count]
    causes: NotRequired[dict[str, Count]]
    sdc_low: Share
    sdc_high: Share
    nonfinite_low: Share
    nonfinite_high: Share
    detected: Share
    corrected: Share
    acts_on_target: bool
    difference: Number
    difference_low: Number
    difference_high: Number
    p_value: Number
    reduction: Number
    reduction_low: Number
    reduction_high: Number
    accuracy: Number
    wrong_fault_free: Count | None
    latency_ratio: Number
    latency_low: Number
    latency_high: Number
    latency_ms: Number
    extra_bytes: Count
    bits_at_risk: NotRequired[Count]
    guard_bits: NotRequired[Count]
    guard_faults: NotRequired[Count]
    guard_harmful: NotRequired[Count]
    guard_present: NotRequired[Count]
    failing_bits: NotRequired[Number]
    failing_bits_low: NotRequired[Number]
    failing_bits_high: NotRequired[Number]


class Pair(TypedDict):
    """An arm over one with fewer protections."""

    name: str
    over: str
    difference: Number
    difference_low: Number
    difference_high: Number


class SiteAtRisk(TypedDict):
    """Bits of a site that upsets can hit, for which share of a forward pass."""

    structure: Literal["values", "weights", "buffers"]
    bits: Count
    word_bits: Annotated[int, Ge(1), Le(64)]
    live_share: Share


class AtRisk(TypedDict):
    """What a failure probability is multiplied with to be a rate per hour."""

    fault_model: str
    sampling: str
    sites: dict[str, SiteAtRisk]


class Population(TypedDict):
    """What the faults of a table were drawn from."""

    kinds: list[str]
    layers: list[str]
    elements: Count
    formats: list[str]
    at_risk: NotRequired[AtRisk]


class Table(TypedDict):
    """A fault table."""

    count: Count
    digest: str


class Calibration(TypedDict):
    """What protections learned from."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    data: str
    inputs: Count


class Assessment(TypedDict):
    """``results.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    format: Literal[1]
    arms: Annotated[list[Arm], MinLen(1)]
    by_bit: dict[str, dict[str, list[OfBit]]]
    by_layer: dict[str, dict[str, list[OfLayer]]]
    pairs: dict[str, list[Pair]]
    population: dict[str, Population]
    faults: dict[str, Table]
    protections: dict[str, list[str]]
    schedules: NotRequired[dict[str, str]]
    guarantees: NotRequired[dict[str, str]]
    calibration: Calibration
    criterion: str
    placement: str
    arrival: str
    model: str
    fingerprint: str
    data: str
    fault_model: str
    sampling: str
    sampling_text: list[str]
    inputs: Count
    eligible_inputs: Count
    accuracy_inputs: Count
    guard_faults: Count
    batch: Count
    threads: Count
    device: str
    seed: int
    confidence: float
    model_bytes: Annotated[int, Ge(1)]
    versions: dict[str, str]
    prediction: NotRequired[str | None]
    command: NotRequired[str]


def require_agreement(document: Mapping[str, Any]) -> None:
    """Refuse a document whose parts name different tables, arms or layers.

    Raises:
        ValueError: names what is missing where.
    """
    targets: dict[str, str] = {}
    for arm in document["arms"]:
        for quantity in ("difference", "latency"):
            values = [arm[name] for name in arm if name.startswith(quantity) and name != "latency_ms"]
            if None in values and any(value is not None for value in values):
                raise ValueError(f"{quantity} of {arm['name']} without one of its limits")
        if targets.setdefault(arm.get("faults", arm["target"]), arm["target"]) != arm["target"]:
            raise ValueError(f"two targets under {arm.get('faults', arm['target'])}")
        faults, name = arm.get("faults", arm["target"]), arm["name"]
        for part in ("by_bit", "by_layer"):
            _require(name, document[part].get(faults, {}), f"{part}.{faults}")
        _require(name, document["protections"], "protections")
        for part in ("population", "pairs", "faults"):
            _require(faults, document[part], part)
    for faults, pairs in document["pairs"].items():
        names = [arm["name"] for arm in document["arms"] if arm.get("faults", arm["target"]) == faults]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms of one name under {faults}")
        for pair in pairs:
            _require(pair["name"], names, f"arms under {faults}")
            _require(pair["over"], names, f"arms under {faults}")


def _require(name: str, known: Any, where: str) -> None:
    if name not in known:
        raise ValueError(f"no {name!r} in {where}")
