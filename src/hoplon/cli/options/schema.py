"""From plain values of a file or the command line to objects: every option checked, every error naming its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from hoplon.errors import HoplonError, no_match


@final
@dataclass(frozen=True)
class OptionType:
    """The type of an option: how it is described in messages, and how a plain value is read.

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


INTEGER = OptionType("an integer", _integer)
NUMBER = OptionType("a number", _number)
TEXT = OptionType("a text", _text)
FLAG = OptionType("true or false", _flag)
TABLE = OptionType("a table", _table)


def several(item: OptionType) -> OptionType:
    """Return the type of one value or a list of them, read as a tuple that is not empty."""

    def read(value: Any) -> tuple[Any, ...]:
        items = tuple(map(item.read, value if isinstance(value, list | tuple) else [value]))
        if not items:
            raise ValueError
        return items

    return OptionType(f"{item.expected} or a list of such", read)


def one_of(*names: str) -> OptionType:
    """Return the type of a text that is one of these names."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return OptionType(" or ".join(repr(name) for name in names), read)


@final
@dataclass(frozen=True)
class ComponentSpec:
    """A component that files and the command line name: its builder and the options it takes.

    Args:
        build: called with the options that were given.
        options: type of each option by name.
        required: names of the options that must be given.
    """

    build: Callable[..., Any]
    options: Mapping[str, OptionType] = field(default_factory=dict)
    required: tuple[str, ...] = ()


def read_options(
    values: Mapping[str, Any], options: Mapping[str, OptionType], *, where: str = "", required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Check options and bring them into their final form.

    Args:
        where: what the names of the options follow in messages: "fault.".
    Raises:
        HoplonError: an unknown option, a missing one, or one of another type; names it.
    """
    for name in values:
        if name not in options:
            raise HoplonError(f"{where}{name}: {no_match('option', name, [*options])}")
    for name in required:
        if name not in values:
            raise HoplonError(f"{where}{name}: expected {options[name].expected}, got nothing; give it")
    options_read = {}
    for name, value in values.items():
        try:
            options_read[name] = options[name].read(value)
        except HoplonError as error:
            raise HoplonError(f"{where}{name}: {error}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise HoplonError(f"{where}{name}: expected {options[name].expected}, got {value!r}") from error
    return options_read


def build_component(value: Any, specs: Mapping[str, ComponentSpec], *, where: str) -> Any:
    """Build the object that a name, or a table with a name and options, describes.

    Args:
        value: "bitflip", or ``{"name": "bitflip", "count": 2}``.
        where: the key that messages name.
    Raises:
        HoplonError: no such name, or options that do not fit.
    Example:
        >>> specs = {"pair": ComponentSpec(lambda of: (of, of), {"of": INTEGER})}
        >>> build_component({"name": "pair", "of": 2}, specs, where="thing")
        (2, 2)
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise HoplonError(f"{where}: expected a name or a table with a name out of {', '.join(specs)}, got {value!r}")
    name = table["name"]
    if name not in specs:
        raise HoplonError(f"{where}: {no_match('name', name, [*specs])}; choose one of {', '.join(specs)}")
    spec = specs[name]
    rest = {key: value for key, value in table.items() if key != "name"}
    options = read_options(rest, spec.options, where=f"{where}.", required=spec.required)
    try:
        return spec.build(**options)
    except HoplonError as error:
        raise HoplonError(f"{where}: {error}") from error
