"""From plain values of a file or the command line to objects: every option checked, every error naming its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from hoplon.errors import HoplonError, no_match


@final
@dataclass(frozen=True)
class Kind:
    """What a value has to be.

    Args:
        expected: in words.
        read: the value in its final form; raises LookupError, TypeError or ValueError for anything else.
    """

    expected: str
    read: Callable[[Any], Any]


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return dict(value)


INTEGER = Kind("an integer", _integer)
NUMBER = Kind("a number", _number)
TEXT = Kind("a text", _text)
FLAG = Kind("true or false", _flag)
TABLE = Kind("a table", _table)


def several(kind: Kind) -> Kind:
    """One value of a kind or a list of them, as a tuple; not an empty one."""

    def read(value: Any) -> tuple[Any, ...]:
        found = tuple(kind.read(item) for item in (value if isinstance(value, list | tuple) else [value]))
        if not found:
            raise ValueError
        return found

    return Kind(f"{kind.expected} or a list of such", read)


def one_of(*names: str) -> Kind:
    """One of these texts."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Kind(" or ".join(repr(name) for name in names), read)


@final
@dataclass(frozen=True)
class Recipe:
    """How an object is made from named options.

    Args:
        build: called with those that are given.
        options: what each has to be.
        required: those that must be given.
    """

    build: Callable[..., Any]
    options: Mapping[str, Kind] = field(default_factory=dict)
    required: tuple[str, ...] = ()


def read_options(
    given: Mapping[str, Any], options: Mapping[str, Kind], *, where: str = "", required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The given options in their final form.

    Args:
        where: what the names of the options follow in messages: "fault.".
    Raises:
        HoplonError: an unknown option, a missing one, or one of another kind; names it.
    """
    for name in given:
        if name not in options:
            raise HoplonError(f"{where}{name}: {no_match('option', name, [*options])}")
    for name in required:
        if name not in given:
            raise HoplonError(f"{where}{name}: expected {options[name].expected}, got nothing; give it")
    found = {}
    for name, value in given.items():
        try:
            found[name] = options[name].read(value)
        except HoplonError as error:
            raise HoplonError(f"{where}{name}: {error}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise HoplonError(f"{where}{name}: expected {options[name].expected}, got {value!r}") from error
    return found


def made(given: Any, recipes: Mapping[str, Recipe], *, where: str) -> Any:
    """The object that a name, or a table with a name and options, describes.

    Args:
        given: "bitflip", or ``{"name": "bitflip", "count": 2}``.
        where: the key that messages name.
    Raises:
        HoplonError: no such name, or options that do not fit.
    Example:
        >>> made({"name": "pair", "of": 2}, {"pair": Recipe(lambda of: (of, of), {"of": INTEGER})}, where="thing")
        (2, 2)
    """
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise HoplonError(f"{where}: expected a name or a table with a name out of {', '.join(recipes)}, got {given!r}")
    name = table["name"]
    if name not in recipes:
        raise HoplonError(f"{where}: {no_match('name', name, [*recipes])}; choose one of {', '.join(recipes)}")
    recipe = recipes[name]
    rest = {key: value for key, value in table.items() if key != "name"}
    options = read_options(rest, recipe.options, where=f"{where}.", required=recipe.required)
    try:
        return recipe.build(**options)
    except HoplonError as error:
        raise HoplonError(f"{where}: {error}") from error
