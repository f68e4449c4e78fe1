"""The registry: names, fields, other packages."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_args

import pytest

from hoplon.criteria.base import Criterion
from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Sampling
from hoplon.protections.base import Protection
from hoplon.protections.runtime.schedule import When
from hoplon.protections.values.policy import Policy
from hoplon.registry import Component, Kind, components, fields_of, register

BASES: dict[Kind, type] = {
    "fault": FaultModel,
    "sampling": Sampling,
    "criterion": Criterion,
    "protection": Protection,
    "policy": Policy,
    "schedule": When,
}
EVERY = [component for kind in get_args(Kind) for component in components(kind).values()]


@pytest.mark.parametrize("component", EVERY, ids=lambda component: f"{component.kind}-{component.name}")
def test_every_component_says_what_it_is(component: Component) -> None:
    assert component.label
    assert component.sentence.endswith(".")
    assert all(annotation for annotation, _ in component.fields.values())
    if component.kind in BASES:
        assert isinstance(component.defined, type)
        assert issubclass(component.defined, BASES[component.kind])
        assert dataclasses.is_dataclass(component.defined)


def test_a_name_is_given_once() -> None:
    with pytest.raises(HoplonError, match="expected a new name for a fault, got 'bitflip', which hoplon.faults"):

        @register("fault", "bitflip")
        class Other:
            """Another."""


def test_fields_are_named_parameters_with_or_without_annotation() -> None:
    def build(first: int, second=2, *rest: int, third: str = "", **options: int) -> None:  # type: ignore[no-untyped-def]
        """Build nothing."""

    assert fields_of(build) == {"first": (int, inspect.Parameter.empty), "second": (Any, 2), "third": (str, "")}
