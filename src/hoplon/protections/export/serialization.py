"""Descriptions of protections and schedules as plain JSON, and back: no pickle, no names of code to import."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hoplon.errors import DataError, HoplonError
from hoplon.registry import Kind, components


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
    if type(value) not in _kinds().values():
        raise HoplonError(
            f"expected descriptions of hoplon's own kinds, got {type(value).__name__}; a file of it could not be read "
            "elsewhere: save the module without it"
        )
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return {"kind": type(value).__name__, **{name: described(item, tensors) for name, item in fields.items()}}


def restored(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Build what :func:`described` described.

    Raises:
        DataError: an unknown kind, another version's fields, or values that it refuses.
    """
    if not isinstance(content, dict):
        return content
    try:
        if "kind" in content:
            kind = _kinds()[content["kind"]]
            return kind(**{name: restored(item, tensors) for name, item in content.items() if name != "kind"})
        ((what, inner),) = content.items()
        return _READERS[what](inner, tensors)
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"expected a description that this version of hoplon can read, got {str(content)[:80]!r} ({error})"
        ) from error


def _tuple(content: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple(restored(item, tensors) for item in content)


def _mapping(content: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {restored(key, tensors): restored(item, tensors) for key, item in content}


_READERS: Mapping[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "float": lambda content, tensors: float(content),
    "tuple": _tuple,
    "mapping": _mapping,
    "tensor": lambda content, tensors: tensors[content],
}


def _kinds() -> dict[str, Any]:
    """Every class that may be described, by its name: protections, policies and schedules, and their parts."""
    kinds: tuple[Kind, ...] = ("protection", "policy", "schedule", "part")
    return {part.defined.__name__: part.defined for kind in kinds for part in components(kind).values()}
