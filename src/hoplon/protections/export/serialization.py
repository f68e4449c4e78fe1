"""Descriptions of protections and schedules as plain JSON, and back: no pickle, no names of code to import."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from hoplon.errors import DataError, HoplonError, said
from hoplon.registry import Kind, components, fields_of


def described(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A description as JSON; the tensors in it are put into ``tensors``, and stand there by name.

    Raises:
        HoplonError: a value of a class that is not registered; names it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [described(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[described(key, tensors), described(item, tensors)] for key, item in value.items()]}
    if isinstance(value, Tensor):
        name = f"tensor{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    known = _kinds().get(type(value).__name__, [])
    if type(value) not in known:
        raise HoplonError(
            f"expected descriptions of hoplon's own kinds, got {type(value).__name__}; a file of it could not be read "
            "elsewhere: save the module without it"
        )
    _only(known)
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return {"kind": type(value).__name__, **{name: described(item, tensors) for name, item in fields.items()}}


def restored(content: Any, tensors: Mapping[str, Tensor], kind: type) -> Any:
    """Build what :func:`described` described.

    Raises:
        DataError: another kind than asked for, an unknown one, another version's fields, or values that it refuses.
    """
    try:
        value = _value(content, tensors)
        if not isinstance(value, kind):
            raise TypeError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        reason = "values inside values, too deep" if isinstance(error, RecursionError) else _line(error)
        named = content.get("kind") if isinstance(content, dict) else content
        raise DataError(
            f"expected a description that this version of hoplon can read, got {str(named)[:80]!r} ({reason})"
        ) from error
    return value


def _line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{error.title}: {first['msg']}"
    return said(error)


def _value(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(content, dict):
        return content
    if "kind" in content:
        described_kind = _only(_kinds()[content["kind"]])
        fields = {name: _value(item, tensors) for name, item in content.items() if name != "kind"}
        notes = fields_of(described_kind)
        for name, value in fields.items():
            if name not in notes:
                raise LookupError(f"no field {name!r}")
            _adapter(content["kind"], name, notes[name][0]).validate_python((value,))
        return described_kind(**fields)
    ((what, inner),) = content.items()
    return _READERS[what](inner, tensors)


@cache
def _adapter(kind: str, field: str, annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(
        tuple[annotation], config=ConfigDict(strict=True, arbitrary_types_allowed=True, title=f"{kind}.{field}")
    )


def _tuple(content: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple(_value(item, tensors) for item in content)


def _mapping(content: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {_value(key, tensors): _value(item, tensors) for key, item in content}


_READERS: Mapping[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "float": lambda content, tensors: float(content),
    "tuple": _tuple,
    "mapping": _mapping,
    "tensor": lambda content, tensors: tensors[content],
}


def _kinds() -> Mapping[str, list[Any]]:
    """Every class that may be described, by its name: protections, policies and schedules, and their parts."""
    kinds: tuple[Kind, ...] = ("protection", "policy", "schedule", "part")
    found: dict[str, list[Any]] = {}
    for part in (part for kind in kinds for part in components(kind).values()):
        same = found.setdefault(part.defined.__name__, [])
        same += [part.defined] if part.defined not in same else []
    return found


def _only(known: list[Any]) -> Any:
    """The one class of a name: another package might have given its own the name of one of ours."""
    if len(known) > 1:
        modules = " and ".join(one.__module__ for one in known)
        raise HoplonError(f"expected one class named {known[0].__name__}, got those of {modules}; rename or remove one")
    return known[0]
