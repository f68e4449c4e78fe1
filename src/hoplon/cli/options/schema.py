"""From plain values of a file or the command line to typed ones: pydantic checks, every wrong key is named at once."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from annotated_types import MinLen
from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, Strict, TypeAdapter, ValidationError
from torch import Tensor

from hoplon.cli.options.text import plain, positions
from hoplon.errors import DataError, HoplonError, StoreError, no_match, one_line
from hoplon.formats.base import NumberFormat
from hoplon.formats.dtypes import NATIVE_DTYPES, native
from hoplon.formats.named import format_named
from hoplon.importance.scores import Scores
from hoplon.registry import Reader

_Read = TypeVar("_Read")
Fields = Mapping[str, tuple[Any, Any]]
"""Annotation and default by name; ``inspect.Parameter.empty`` for a field that must be given."""


class ValuesError(HoplonError):
    """Everything that is wrong with some values.

    Args:
        problems: by key what was expected, what was given and the way out.
        source: the file that they stand in.
    """

    def __init__(self, problems: Sequence[tuple[str, str]], *, source: str = "") -> None:
        self.problems = tuple(problems)
        lines = [f"{key}: {text}".removeprefix(": ") for key, text in problems]
        place = f"{source}: " if source else ""
        super().__init__(place + "; ".join(lines))
        if len(lines) > 1:
            several = "".join(f"\n  {one_line(line)}" for line in lines)
            self.args = (f"{one_line(place)}{len(lines)} values are wrong:{several}",)

    def below(self, key: str) -> list[tuple[str, str]]:
        """Return the problems with their keys as parts of another one: "count" below "fault" is "fault.count"."""
        dots = ("" if not part or part.startswith("[") else "." for part, _ in self.problems)
        return [(f"{key}{dot}{part}", text) for dot, (part, text) in zip(dots, self.problems, strict=True)]


class Problems:
    """What is wrong with the options of a command, gathered so that all of it is said at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def of(self, read: Callable[..., _Read], *given: Any, **more: Any) -> _Read:
        """Return what ``read`` makes of something; where it refuses, None, until :meth:`refuse` says why."""
        try:
            return read(*given, **more)
        except ValuesError as error:
            self._found += error.problems
        except (DataError, StoreError):
            raise
        except HoplonError as error:
            self._found.append(("", str(error)))
        return None  # type: ignore[return-value]

    def add(self, key: str, text: str) -> None:
        """Keep what is wrong with an option."""
        self._found.append((key, text))

    def refuse(self) -> None:
        """Raise what was kept.

        Raises:
            ValuesError: all of it.
        """
        if self._found:
            raise ValuesError(list(dict.fromkeys(self._found)))


_LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def _dtype(value: str) -> torch.dtype:
    return {native(dtype).name: dtype for dtype in NATIVE_DTYPES}[value]


_READERS: Mapping[Any, Reader] = {
    NumberFormat: Reader("the name of a number format", format_named),
    torch.dtype: Reader("the name of a dtype, such as 'int8'", _dtype),
    Mapping[str, Tensor]: Reader("a file of scores", lambda path: Scores.load(Path(path).expanduser()).values),
}
"""By annotation, how a plain value becomes a value that files cannot hold."""


def check_values(values: Mapping[str, Any], fields: Fields, *, missing: str = "give it") -> dict[str, Any]:
    """Check plain values against annotated fields and bring them into their final form.

    Args:
        missing: the way out where a field that must be given is not.
    Raises:
        ValuesError: unknown names, missing ones, values of another type or out of range; all of them.
    Example:
        >>> check_values({"bits": 3}, {"bits": (tuple[int, ...] | None, None)})
        {'bits': (3,)}
        >>> check_values({"bit": 3, "flips": "x"}, {"bits": (tuple[int, ...], ()), "flips": (int, 1)})
        Traceback (most recent call last):
        hoplon.cli.options.schema.ValuesError: 2 values are wrong:
          bit: no option matches 'bit'; near names: bits (2 in all)
          flips: expected an integer, got 'x'
    """
    options = {name: annotation for name, (annotation, _) in fields.items() if expected(annotation)}
    problems = [(name, str(no_match("option", name, [*options]))) for name in values if name not in options]
    for name, (annotation, default) in fields.items():
        if default is inspect.Parameter.empty and name not in values:
            problems.append((name, f"expected {expected(annotation)}, got nothing; {missing}"))
    typed: dict[str, Any] = {}
    causes: list[Any] = []
    for name, value in values.items():
        if name not in options:
            continue
        try:
            typed[name] = _adapter(options[name]).validate_python(value)
        except ValidationError as error:
            problems += _problems(name, value, options[name], error)
            causes.append(error.errors()[0].get("ctx", {}).get("error"))
    if len(problems) == 1 and causes and isinstance(causes[0], DataError | StoreError):
        raise type(causes[0])(": ".join(problems[0]))  # a file that is not there is no wrong value
    if problems:
        raise ValuesError(problems)
    return typed


def from_text(annotation: Any, text: Any) -> Any:
    """Read the value of a field from a text, where files have types: "1%" and "16" for numbers, "23-30" for integers.

    What the field does not take comes back as it is, for :func:`check_values` to refuse.
    """
    if not isinstance(text, str):
        return text
    leaves = _leaves(annotation)
    origins = {get_origin(part) for part in (annotation, *_parts(annotation))}
    several = not origins.isdisjoint((tuple, Sequence))
    if int in leaves and several and not text.startswith("["):
        return _converted(positions, text, otherwise=text)
    number = text.removesuffix("%")
    for kind in (int, float):
        if kind in leaves and (found := _converted(kind, number)) is not None:
            return found / 100 if text.endswith("%") else found
    found = plain(text)
    if any(found is leaf for leaf in leaves):
        return found
    return found if isinstance(found, bool) or several or Mapping in origins else text


def _converted(convert: Callable[[str], Any], text: str, *, otherwise: Any = None) -> Any:
    try:
        return convert(text)
    except ValueError:
        return otherwise


def is_file(annotation: Any) -> bool:
    """Return True for a field whose plain value is a path."""
    return hasattr(annotation, "load") or annotation == Mapping[str, Tensor]


def _problems(name: str, value: Any, annotation: Any, error: ValidationError) -> list[tuple[str, str]]:
    """What is wrong with the value of a field: what its reader says, or else what was expected."""
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ValuesError):
            return cause.below(name)
        if isinstance(cause, HoplonError):
            return [(name, str(cause))]
    return [(name, f"expected {expected(annotation)}, got {value!r}")]


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_readable(annotation), config=ConfigDict(arbitrary_types_allowed=True))


def _readable(annotation: Any) -> Any:
    """The annotation as pydantic reads it from a file: strict, one value for a tuple of one, readers at its leaves."""
    origin, parts = get_origin(annotation), _parts(annotation)
    if (reader := _reader(annotation)) is not None and reader.read is not None:
        return Annotated[Any, PlainValidator(_guarded(reader.read))]
    if origin is Annotated:
        return Annotated[_readable(parts[0]), *annotation.__metadata__]
    if origin in (Union, types.UnionType) and len(parts) == 1:
        return _readable(parts[0])
    if origin in (Union, types.UnionType):
        union: Any = Union[tuple(_readable(part) for part in parts)]  # noqa: UP007
        return Annotated[union, Field(union_mode="left_to_right")]
    if origin is tuple and parts[-1] is not Ellipsis:
        return tuple[tuple(_readable(part) for part in parts)]  # type: ignore[misc]
    if origin is tuple or origin is Sequence:
        return Annotated[tuple[_readable(parts[0]), ...], BeforeValidator(_several), MinLen(1)]  # type: ignore[misc]
    if origin is Mapping:
        return dict[_readable(parts[0]), _readable(parts[1])]  # type: ignore[misc]
    if annotation is str:
        return Annotated[str, Strict(), MinLen(1)]
    return Annotated[annotation, Strict()] if annotation in _WORDS else annotation


def expected(annotation: Any) -> str:
    """Return what a file may hold for an annotation, in words; nothing for what no file can, such as a function."""
    origin, parts = get_origin(annotation), _parts(annotation)
    if (reader := _reader(annotation)) is not None:
        return reader.expected
    if origin is Annotated:
        limits = [
            f" {words} {getattr(limit, key)}"
            for limit in annotation.__metadata__
            for key, words in _LIMITS.items()
            if hasattr(limit, key)
        ]
        return expected(parts[0]) + " and".join(limits)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(expected, parts))))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple or origin is Sequence:
        return f"{expected(parts[0])} or a list of such"
    if origin is Mapping:
        return f"a table with {expected(parts[1])} for each name"
    return _WORDS.get(annotation, "")


def _reader(annotation: Any) -> Reader | None:
    """The reader of a value that files hold in another form."""
    for note in getattr(annotation, "__metadata__", ()):
        if isinstance(note, Reader):
            return note
    if inspect.isclass(annotation) and hasattr(annotation, "load"):
        return Reader(f"a file of {annotation.__name__.lower()}", lambda path: _loaded(annotation, path))
    try:
        return _READERS.get(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return None


def _loaded(kind: Any, path: Any) -> Any:
    return path if isinstance(path, kind) else kind.load(Path(path).expanduser())


def _guarded(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The reader, its errors of any kind as the one that pydantic collects."""

    def guarded(value: Any) -> Any:
        try:
            return read(value)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error

    return guarded


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _parts(annotation: Any) -> tuple[Any, ...]:
    return tuple(part for part in get_args(annotation) if part is not types.NoneType)


def _leaves(annotation: Any) -> list[Any]:
    parts = _parts(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]
