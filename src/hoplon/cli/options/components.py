"""Components of the registry from names, short texts and tables: ``bitflip``, ``aspis:1%``, ``{name = "op", ...}``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, final

import torch

from hoplon.cli.options.schema import ValuesError, check_values, expected, from_text, is_file
from hoplon.cli.options.text import call, split
from hoplon.comparison.assessment import ArmPlan
from hoplon.comparison.learned import Learned
from hoplon.criteria.base import Criterion
from hoplon.criteria.combined import as_criterion
from hoplon.errors import DataError, HoplonError, StoreError, no_match
from hoplon.faults.model import FaultModel, WordModel
from hoplon.faults.multi_word import Mixture, spread
from hoplon.faults.sampling.base import Sampling
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.policy import Policy
from hoplon.registry import Component, Kind, Reader, components, fields_of as parameters_of, said_of

_Built = TypeVar("_Built")
_NESTED: Mapping[Any, Any] = {Policy: Annotated[Policy, Reader("a policy", lambda value: build("policy", value))]}
_SPREAD = ("elements", "words", "bytes", "lane")


def fields_of(component: Component) -> Mapping[str, tuple[Any, Any]]:
    """Return the fields that a file gives a component; models of one word also spread over several."""
    fields = {name: (_NESTED.get(note, note), default) for name, (note, default) in component.fields.items()}
    if inspect.isclass(component.defined) and issubclass(component.defined, WordModel):
        fields |= {name: entry for name, entry in parameters_of(spread).items() if name in _SPREAD}
    return fields


def about(component: Component, field: str) -> str:
    """Return what there is to say of a field, in a few words: the start of its entry in the docstring."""
    annotation, _ = fields_of(component)[field]
    if is_file(annotation):
        return f"{expected(annotation)}, learned from calibration data where left out"
    text = component.about(field) or said_of(field, spread) or expected(annotation)
    return re.split(r"; |(?<!e\.g)\. ", text)[0].rstrip(".,;")


def described(component: Component) -> dict[str, Any]:
    """Describe a component in plain values: name, label, sentence, and what it expects of each option."""
    fields = dict(fields_of(component)) if component.kind != "score" else {}
    for name in _NOTHING_LEARNED.keys() & fields.keys():  # learned from calibration data where they are left out
        fields = {name: (fields.pop(name)[0], None), **parameters_of(_NOTHING_LEARNED[name]), **fields}
    words = {
        name: {
            "expected": expected(annotation),
            "required": default is inspect.Parameter.empty,
            "about": about(component, name) if name in fields_of(component) else "",
        }
        for name, (annotation, default) in fields.items()
        if expected(annotation)
    }
    return {"name": component.name, "label": component.label, "sentence": component.sentence, "options": words}


def build(kind: Kind, value: Any, *, learn: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """Build the component that a name, a short text, or a table with a name and fields describes.

    Args:
        value: "bitflip", "aspis:1%", "ranger(policy=zero)", or ``{"name": "bitflip", "count": 2}``.
        learn: by field, what gives it to components that have it where the description does not. Its own parameters
            are further fields of the description, such as the quantile of ranges.
    Raises:
        ValuesError: no such name, or fields that do not fit; all of them.
    Example:
        >>> build("fault", "bitflip(count=2)"), build("schedule", "rotating:4")
        (BitFlip(format=None, count=2, bits=None, field=None), Rotating(turns=4))
    """
    component, plain = table_of(kind, value)
    fields = dict(fields_of(component))
    sources = {name: give for name, give in (learn or {}).items() if name in fields and name not in plain}
    of_source = {name: parameters_of(give) for name, give in sources.items()}
    for name, parameters in of_source.items():
        annotation, _ = fields.pop(name)
        fields |= {name: (annotation, None)} | {key: entry for key, entry in parameters.items() if key not in fields}
    if isinstance(value, str):
        plain = {key: from_text(fields[key][0], one) if key in fields else one for key, one in plain.items()}
    options = check_values(plain, fields)
    spreading = {key: options.pop(key) for key in _SPREAD if key not in component.fields and key in options}
    try:
        for name, give in sources.items():
            given = give(**{key: options[key] for key in of_source[name] if key in options})
            bare = isinstance(given, Scores) and component.fields[name][0] is not Scores
            options[name] = given.values if bare else given
        options = {key: option for key, option in options.items() if key in component.fields}
        built = component.build(**options)
        return spread(built, **spreading) if spreading else built
    except (DataError, StoreError):
        raise
    except HoplonError as error:
        raise ValuesError([("", str(error))]) from error


def table_of(kind: Kind, value: Any) -> tuple[Component, dict[str, Any]]:
    """Return the component that a description names, and its fields as plain values.

    Raises:
        ValuesError: no such name, or a text that cannot be read.
    Example:
        >>> component, fields = table_of("protection", "aspis:1%")
        >>> component.name, fields
        ('aspis', {'fraction': 0.01})
    """
    known = components(kind)
    names = ", ".join(known)
    try:
        table = _read(value, known) if isinstance(value, str) else value
    except HoplonError as error:
        raise ValuesError([("", str(error))]) from error
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ValuesError([("", f"expected a name or a table with a name out of {names}, got {value!r}")])
    name = table["name"]
    if name not in known:
        raise ValuesError([("", f"{no_match(kind, name, [*known])}; choose one of {names}")])
    return known[name], {key: option for key, option in table.items() if key != "name"}


def _read(text: str, known: Mapping[str, Component]) -> dict[str, Any]:
    """The table of a text: of the name in files, of the class, or of what reports print, such as "aspis-1%"."""
    name, short, given = call(text)
    name = next((one for one, component in known.items() if component.defined.__name__ == name), name)
    if name not in known:
        if (printed := _printed(text, known)) is not None:
            return printed
        start = max((one for one in known if text.startswith(f"{one}-")), key=len, default=None)
        if start is None:
            return {"name": name}
        name, short = start, text.removeprefix(f"{start}-")
    fields = fields_of(known[name])
    table = {key: from_text(fields[key][0], one) if key in fields else one for key, one in given.items()}
    if short is not None:
        plain = [key for key, (annotation, _) in fields.items() if not is_file(annotation) and expected(annotation)]
        if not plain:
            raise HoplonError(f"expected {name} alone, got {short!r} after it")
        table[plain[0]] = from_text(fields[plain[0]][0], short)
    return {"name": name, **table}


def _printed(text: str, known: Mapping[str, Component]) -> dict[str, Any] | None:
    """The table of a component that knows the text as one of its own names, such as "top-5"."""
    for component in known.values():
        if (found := getattr(component.defined, "named", lambda text: None)(text)) is not None:
            values = {key: getattr(found, key) for key in component.fields}
            return {"name": component.name, **{key: value for key, value in values.items() if value is not None}}
    return None


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
    known, built, used = guard_components(), [], False
    for text in texts:
        try:
            component, _ = table_of("protection", text)
        except HoplonError as error:
            raise HoplonError(
                f"--guard {text}: {no_match('guard', call(text)[0], [*known])}; one of {', '.join(known)}"
            ) from error
        name = component.name
        if name not in known:
            raise HoplonError(f"--guard {text}: expected a guard, got {name}; one of {', '.join(known)}")
        if scored := "scores" in known[name].fields:
            used = True
        if scores is None and scored and "scores" not in table_of("protection", text)[1]:
            raise HoplonError(f"--guard {text}: expected a file of scores, got none; --scores FILE, from hoplon rank")
        learn = {} if scores is None else {"scores": lambda: Scores.load(scores.expanduser())}
        built.append(named("--guard", text, "protection", learn=learn))
    if scores is not None and not used:
        raise HoplonError(f"expected --scores beside a guard that uses them, got {scores} and none; --guard aspis:1%")
    return built


@final
@dataclass(frozen=True)
class Described(Generic[_Built]):
    """The checked description of a component that may have to learn from calibration data.

    Calling it with what there is to learn builds it.
    """

    kind: Kind
    value: Any
    learn: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        build(self.kind, self.value, learn={**self.learn, **_NOTHING_LEARNED})  # refused before hours of work

    @property
    def component(self) -> Component:
        """The component that is described."""
        return table_of(self.kind, self.value)[0]

    def __call__(self, learned: Learned) -> _Built:
        """Build it."""
        sources: dict[str, Callable[..., Any]] = {**self.learn, "ranges": learned.ranges, "scores": learned.scores}
        built: _Built = build(self.kind, self.value, learn=sources)
        return built


class _Nothing:
    """In the place of what is learned, where a description is only checked; asked for the same options."""

    @wraps(Learned.ranges)
    def ranges(self, **options: Any) -> Ranges:
        return Ranges({"any": Bound(0.0, 1.0)})

    @wraps(Learned.scores)
    def scores(self, *, score: str = "taylor", **options: Any) -> Scores:
        if score not in components("score"):
            raise no_match("score", score, [*components("score")])
        return _many_scores()


@cache
def _many_scores() -> Scores:
    """As many weights as a description is likely to ask for by number."""
    return Scores({"any": torch.ones(2**24, dtype=torch.float16)})


_NOTHING_LEARNED: Mapping[str, Callable[..., Any]] = {"ranges": _Nothing().ranges, "scores": _Nothing().scores}


def protections(value: Any) -> tuple[Described[Protection], ...]:
    """Check the protections that a text, joined by "+", a table or a list of them describes."""
    listed = value if isinstance(value, list) else [value]
    texts = [split(part, "+") if isinstance(part, str) else [part] for part in listed]
    flat = [part for several in texts for part in several if part != "none"]
    return tuple(_each(flat if len(flat) != 1 or value is flat else flat[0], partial(Described, "protection")))


def sampling(value: Any) -> Described[Sampling]:
    """Check the sampling that a name or a table describes."""
    return Described("sampling", value)


def arm(text: str, *, learn: Mapping[str, Callable[..., Any]] | None = None) -> tuple[str, ArmPlan]:
    """Return name and content of the arm that ``--arm`` describes: ``NAME=PROTECTION+PROTECTION@SCHEDULE``.

    The name may be left out; "none" is the arm without protections.

    Raises:
        HoplonError: an unknown protection or schedule, or an option that it does not take.
    """
    try:
        name, *content = split(text, "=")
        described = "=".join(content) or name
        spec, *schedule = split(described, "@")
        if len(schedule) > 1:
            raise HoplonError(f"expected one schedule after @, got {', '.join(schedule)}")
        parts = (
            []
            if spec == "none"
            else [Described[Protection]("protection", one, learn or {}) for one in split(spec, "+")]
        )
        when = build("schedule", schedule[0]) if schedule else None
        if schedule and not any(part.component.name in guard_components() for part in parts):
            raise HoplonError(f"expected a guard that checks, got @{schedule[0]} and none; add one, such as +parity")
    except HoplonError as error:
        kind = type(error) if isinstance(error, DataError | StoreError) else HoplonError
        raise kind(f"--arm {text}: {error}") from error
    return name if content else described, ArmPlan(lambda learned: tuple(part(learned) for part in parts), when)


def named(option: str, text: str, kind: Kind, *, learn: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """Build the component that an option of the command line names.

    Raises:
        HoplonError: names the option and its text.
    """
    try:
        return build(kind, text, learn=learn)
    except HoplonError as error:
        kind_ = type(error) if isinstance(error, DataError | StoreError) else HoplonError
        raise kind_(f"{option} {text}: {error}") from error
