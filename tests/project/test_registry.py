"""The registry: names, fields, other packages."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from hoplon.criteria.base import Criterion
from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Sampling
from hoplon.protections.base import Protection
from hoplon.protections.runtime.schedule import When
from hoplon.protections.values.policy import Policy
from hoplon.registry import Component, Kind, components, register

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


def test_another_package_adds_a_component_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "extra_faults.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from hoplon.faults.model import WordModel\nfrom hoplon.registry import register\n\n"
        "@register('fault', 'lowest-bit')\n@dataclass(frozen=True)\nclass LowestBit(WordModel):\n"
        "    'Inverts the lowest bit.'\n    def draw(self, count, *, format, generator):\n        raise TypeError"
    )
    about = tmp_path / "extra_faults-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-faults\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hoplon.components]\nextra = extra_faults\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from hoplon.registry import components; "
        "print(components('fault')['lowest-bit'].sentence)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "Inverts the lowest bit."
