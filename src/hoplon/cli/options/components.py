"""Components of the registry from names, short texts and tables: ``bitflip``, ``aspis:1%``, ``{name = "op", ...}``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch

from hoplon.cli.options.schema import ValuesError, check_values, expected, from_text, is_file
from hoplon.criteria.base import Criterion
from hoplon.criteria.combined import as_criterion
from hoplon.errors import HoplonError, no_match
from hoplon.faults.model import FaultModel, WordModel
from hoplon.faults.multi_word import Mixture, spread
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.policy import Policy
from hoplon.registry import Component, Kind, Reader, components, fields_of as parameters_of

_Built = TypeVar("_Built")
_NESTED: Mapping[Any, Any] = {Policy: Annotated[Policy, Reader("a policy", lambda value: build("policy", value))]}
_SPREAD = ("elements", "words", "bytes", "lane")


def fields_of(component: Component) -> Mapping[str, tuple[Any, Any]]:
    """Return the fields that a file gives a component; models of one word also spread over several."""
    fields = {name: (_NESTED.get(note, note), default) for name, (note, default) in component.fields.items()}
    if inspect.isclass(component.defined) and issubclass(component.defined, WordModel):
        fields |= {name: entry for name, entry in parameters_of(spread).items() if name in _SPREAD}
    return fields


def described(component: Component) -> dict[str, Any]:
    """Describe a component in plain values: name, label, sentence, and what it expects of each option."""
    words = {
        name: {"expected": expected(annotation), "required": default is inspect.Parameter.empty}
        for name, (annotation, default) in fields_of(component).items()
        if component.kind != "score" and expected(annotation)
    }
    return {"name": component.name, "label": component.label, "sentence": component.sentence, "options": words}


def build(kind: Kind, value: Any, *, given: Mapping[str, Any] | None = None) -> Any:
    """Build the component that a name, a short text, or a table with a name and fields describes.

    Args:
        value: "bitflip", "aspis:1%", or ``{"name": "bitflip", "count": 2}``.
        given: fields by name for components that have them, such as scores that stand elsewhere.
    Raises:
        ValuesError: no such name, or fields that do not fit; all of them.
    Example:
        >>> build("fault", {"name": "bitflip", "count": 2}), build("schedule", "rotating:4")
        (BitFlip(format=None, count=2, bits=None, field=None), Rotating(turns=4))
    """
    known = components(kind)
    names = ", ".join(known)
    if isinstance(value, str):
        for component in known.values():
            if (short := getattr(component.defined, "named", lambda text: None)(value)) is not None:
                return short
    table = _table(value, known) if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ValuesError([("", f"expected a name or a table with a name out of {names}, got {value!r}")])
    name = table["name"]
    if name not in known:
        raise ValuesError([("", f"{no_match(kind, name, [*known])}; choose one of {names}")])
    fields = fields_of(known[name])
    plain = {key: option for key, option in (given or {}).items() if key in fields} | dict(table)
    del plain["name"]
    options = check_values(plain, fields)
    spreading = {key: options.pop(key) for key in _SPREAD if key not in known[name].fields and key in options}
    try:
        built = known[name].build(**options)
        return spread(built, **spreading) if spreading else built
    except HoplonError as error:
        raise ValuesError([("", str(error))]) from error


def _table(text: str, known: Mapping[str, Component]) -> dict[str, Any]:
    """The table of a short text: what follows the name is the first field that is not a file."""
    name, colon, rest = text.partition(":")
    if not colon or name not in known:
        return {"name": name}
    plain = {key: annotation for key, (annotation, _) in fields_of(known[name]).items() if not is_file(annotation)}
    if not plain:
        raise ValuesError([("", f"expected {name} alone, got {rest!r} after it")])
    field, annotation = next(iter(plain.items()))
    return {"name": name, field: from_text(annotation, rest)}


def _each(value: Any, read: Callable[[Any], _Built]) -> list[_Built]:
    """Build one component, or each of a list of them, whose messages then name its number."""
    if not isinstance(value, list):
        return [read(value)]
    built, problems = [], []
    for number, part in enumerate(value):
        try:
            built.append(read(part))
        except ValuesError as error:
            problems += error.below(f"[{number}]")
    if problems:
        raise ValuesError(problems)
    return built


def fault_model(value: Any) -> FaultModel:
    """Build the fault model that a name, a table, or a list of tables with weights describes."""
    parts = _each(value, _weighted)
    return parts[0][0] if not isinstance(value, list) else Mixture(*zip(*parts, strict=True))


def _weighted(value: Any) -> tuple[FaultModel, float]:
    table = dict(value) if isinstance(value, Mapping) else value
    weight = table.pop("weight", None) if isinstance(table, dict) else None
    options = check_values({} if weight is None else {"weight": weight}, {"weight": (float, 1.0)})
    return build("fault", table), options.get("weight", 1.0)


def criterion(value: Any) -> Criterion:
    """Build the criterion that a name, a table or a list of them describes."""
    criteria: list[Criterion] = _each(value, lambda part: build("criterion", part))
    return as_criterion(criteria if len(criteria) != 1 else criteria[0])


def protections(value: Any) -> tuple[Protection, ...]:
    """Build the protections that a name, a table or a list of them describes."""
    return tuple(_each(value, lambda part: build("protection", part)))


def guard_components() -> Mapping[str, Component]:
    """Return the protections that watch memory, by name."""
    return {
        name: component
        for name, component in components("protection").items()
        if getattr(component.defined, "arm", None) is not Protection.arm
    }


def guards(texts: Sequence[str], *, scores: Path | None) -> list[Protection]:
    """Build the guards that ``--guard`` options name, in their order.

    Args:
        scores: a file of scores, for guards of the most important weights.
    Raises:
        HoplonError: an unknown guard, an option that it does not take, or missing scores.
    """
    known, built = guard_components(), []
    for text in texts:
        name = text.partition(":")[0]
        if name not in known:
            raise HoplonError(f"--guard {text}: {no_match('guard', name, [*known])}; one of {', '.join(known)}")
        if scores is None and "scores" in known[name].fields:
            raise HoplonError(f"--guard {text}: expected a file of scores, got none; --scores FILE, from hoplon rank")
        built.append(named("--guard", text, "protection", given={"scores": scores}))
    if scores is not None and not any("scores" in known[text.partition(":")[0]].fields for text in texts):
        raise HoplonError(f"expected --scores beside a guard that uses them, got {scores} and none; --guard aspis:1%")
    return built


def arm(text: str) -> Callable[[Ranges, Scores], tuple[Protection, ...]]:
    """Return what builds the protections that ``--arm`` names, joined by "+", once there are ranges and scores.

    Raises:
        HoplonError: an unknown protection, or an option that it does not take.
    """

    def build_arm(ranges: Ranges, scores: Scores) -> tuple[Protection, ...]:
        given = {"ranges": ranges, "scores": scores}
        return tuple(named("--arm", part, "protection", given=given) for part in text.split("+"))

    build_arm(Ranges({"any": Bound(0.0, 1.0)}), Scores({"any": torch.ones(1)}))  # refused before hours of work
    return build_arm


def named(option: str, text: str, kind: Kind, *, given: Mapping[str, Any] | None = None) -> Any:
    """Build the component that an option of the command line names.

    Raises:
        HoplonError: names the option and its text.
    """
    try:
        return build(kind, text, given=given)
    except HoplonError as error:
        raise HoplonError(f"{option} {text}: {error}") from error
