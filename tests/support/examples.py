"""An example of any registered component, those of other packages included, for tests of what a kind promises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_args

from hoplon.cli.options.components import build
from hoplon.cli.options.schema import ValuesError, check_values
from hoplon.registry import Component, Kind, components


def example(component: Component, **given: Any) -> Any:
    """The component from what is given for fields that it has, values that fit what else it requires, and defaults."""
    required = {name: note for name, (note, default) in component.fields.items() if default is inspect.Parameter.empty}
    plain = {name: _fitting(name, note) for name, note in required.items() if name not in given}
    learn = {name: _giving(value) for name, value in given.items()}
    return build(component.kind, {"name": component.name, **plain}, learn=learn)


def others(kind: Kind, known: Iterable[object], **given: Any) -> dict[str, Any]:
    """Examples by name of the components of a kind whose class none of the known ones has."""
    classes = {type(one) for one in known}
    left = {name: part for name, part in components(kind).items() if part.defined not in classes}
    return {name: example(part, **given) for name, part in left.items()}


def name_of(kind: Kind, one: object) -> str:
    """The name that the class of a component is registered by; its own name where it is not."""
    names = [name for name, part in components(kind).items() if part.defined is type(one)]
    return names[0] if names else type(one).__name__


def _giving(value: Any) -> Callable[[], Any]:
    return lambda: value


def _fitting(name: str, annotation: Any) -> Any:
    for value in (1, 0.5, True, *get_args(annotation)):
        try:
            return check_values({name: value}, {name: (annotation, value)})[name]
        except ValuesError:
            continue
    raise AssertionError(f"expected a value of {name}: {annotation} from this test; give it")
