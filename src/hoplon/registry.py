"""Components by the names that files, the command line and pages use; each is registered where it is defined.

A fault model, a sampling, a criterion, a score, a protection, a policy or a schedule is one class or function below one
:func:`register`. Its fields, their types and their ranges are those of its signature.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal, TypeVar, final, get_type_hints

from hoplon.errors import HoplonError

Kind = Literal["fault", "sampling", "criterion", "score", "protection", "policy", "schedule", "part"]

GROUP = "hoplon.components"
"""Entry points of other packages: modules that register components when they are imported."""

_ROOMS: Mapping[Kind, str] = {
    "fault": "hoplon.faults",
    "sampling": "hoplon.faults",
    "criterion": "hoplon.criteria",
    "score": "hoplon.importance",
    "protection": "hoplon.protections",
    "policy": "hoplon.protections",
    "schedule": "hoplon.protections",
    "part": "hoplon.protections",
}
_registered: dict[tuple[Kind, str], Component] = {}
_Defined = TypeVar("_Defined", bound=Callable[..., Any])


@final
@dataclass(frozen=True)
class Component:
    """One entry of the registry.

    Args:
        kind: of component; a "part" stands in descriptions of others only.
        name: in files and on the command line.
        build: called with the fields; the class, one of its other constructors, or a function.
        defined: what was registered.
        label: name in reports.
        sentence: what it does, for reports and lists.
    """

    kind: Kind
    name: str
    build: Callable[..., Any]
    defined: Callable[..., Any]
    label: str
    sentence: str

    @property
    def fields(self) -> Mapping[str, tuple[Any, Any]]:
        """Annotation and default of each field, in the order of the signature; ``inspect.Parameter.empty``: required.

        Annotations keep their ``Annotated`` metadata: ranges, units, readers.
        """
        return fields_of(self.build)

    def about(self, field: str) -> str:
        """Return what the docstrings of the component say of a field, as :func:`said_of`."""
        return said_of(field, self.build, *getattr(self.defined, "__mro__", ()))


@final
@dataclass(frozen=True)
class Shorthand:
    """Metadata of an annotation: the field's own option on the command line, where its name means something else."""

    name: str


@final
@dataclass(frozen=True)
class Reader:
    """Metadata of an annotation: how a plain value of a file becomes the field's.

    Args:
        expected: the plain value, in words.
        read: raises LookupError, TypeError or ValueError for anything else; None: by the annotation.
    """

    expected: str
    read: Callable[[Any], Any] | None = None


def register(
    kind: Kind, name: str, *, build: str | None = None, label: str | None = None, sentence: str | None = None
) -> Callable[[_Defined], _Defined]:
    """Register the class or function below under a name.

    Args:
        build: the class method that builds it from fields; None: the class or function itself.
        label: name in reports; None: that in the code.
        sentence: for reports; None: the first line of the docstring.
    Raises:
        HoplonError: another component of that kind has the name.
    """

    def entered(defined: _Defined) -> _Defined:
        known = _registered.get((kind, name))
        origin = (defined.__module__, defined.__qualname__)
        if known is not None and (known.defined.__module__, known.defined.__qualname__) != origin:
            raise HoplonError(f"expected a new name for a {kind}, got {name!r}, which {known.defined.__module__} has")
        constructor = defined if build is None else getattr(defined, build)
        first = (inspect.getdoc(constructor) or "").partition("\n")[0]
        _registered[kind, name] = Component(
            kind, name, constructor, defined, label or defined.__name__, sentence or first
        )
        return defined

    return entered


def fields_of(build: Callable[..., Any]) -> Mapping[str, tuple[Any, Any]]:
    """Return annotation and default of each named parameter of a class or function, as :attr:`Component.fields`."""
    hints, parameters = get_type_hints(build, include_extras=True), inspect.signature(build).parameters
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def said_of(field: str, *documented: Any) -> str:
    """Return what the first of some docstrings says of a field under "Args:", on one line; empty where none does."""
    entry = re.compile(rf"^    (?:\w+, )*{field}(?:, \w+)*: (.*(?:\n     .*)*)", re.MULTILINE)
    for one in documented:
        found = entry.search((inspect.getdoc(one) or "").partition("Args:\n")[2])
        if found is not None:
            return " ".join(found[1].split())
    return ""


def components(kind: Kind) -> Mapping[str, Component]:
    """Return all components of a kind by name, in alphabetical order, those of other packages included."""
    _import_modules(_ROOMS[kind])
    _import_entry_points()
    return MappingProxyType({name: _registered[of, name] for of, name in sorted(_registered) if of == kind})


@cache
def _import_modules(package: str) -> None:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)


@cache
def _import_entry_points() -> None:
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # whatever another package's code raises
            package = entry.dist.name if entry.dist else "another package"
            raise HoplonError(
                f"expected components of hoplon in {entry.value} of {package}, got {type(error).__name__}: {error}; "
                "update that package or uninstall it"
            ) from error
