"""Components of other packages: listed, run, stored, read back, reported, and held to what their kind promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_files import write_small_files

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
EXTRA = '''
"""A component of every kind that the examples leave out."""
from __future__ import annotations
from dataclasses import dataclass, replace
from typing import Annotated
import torch
from annotated_types import Ge, Le
from hoplon.faults import WordModel
from hoplon.faults.sampling import Measure
from hoplon.importance import magnitude
from hoplon.protections.runtime import When
from hoplon.protections.values import Clamp, Policy
from hoplon.registry import register

@register("fault", "low-bits")
@dataclass(frozen=True)
class LowBits(WordModel):
    "Inverts the lowest bits."
    width: Annotated[int, Ge(1), Le(8)] = 1
    def draw(self, count, *, format, generator):
        whole, probability = torch.full((count,), format.all_ones), torch.ones(count, dtype=torch.float64)
        return whole, torch.full((count,), 2**self.width - 1), probability

@register("sampling", "first")
@dataclass(frozen=True)
class First(Measure):
    "The first element of each site that has one."
    def elements(self, sites, count, *, generator):
        number = torch.tensor([number for number, site in enumerate(sites) if site.numel])
        return number[torch.randint(len(number), (count,), generator=generator)], torch.zeros(count, dtype=torch.int64)
    def probability(self, sites, number, element):
        return (element == 0).double() / sum(site.numel > 0 for site in sites)

@register("policy", "nearest")
@dataclass(frozen=True)
class Nearest(Policy):
    "It becomes the nearest end of the bound."
    label = "nearest"
    def effect(self, bound, *, site):
        return Clamp().effect(bound, site=site)

@register("schedule", "halves")
@dataclass(frozen=True)
class Halves(When):
    "One half of memory before each forward pass."
    latency, text = 2, "one half of memory is checked before each forward pass"
    def due(self, forward):
        return forward % 2, 2

@register("score", "square")
def square(program, data=None):
    "Score weights by their square."
    found = magnitude(program)
    return replace(found, score="square", values={name: value**2 for name, value in found.values.items()})
'''
NAMES = {
    "faults": "low-bits", "samplings": "first", "criteria": "confident", "guards": "weight-range",
    "policies": "nearest", "schedules": "halves", "scores": "square",
}  # fmt: skip
KINDS = [
    "criteria/test_properties.py", "faults/sampling/test_every_sampling.py", "faults/sampling/test_measures.py",
    "faults/test_multi_word.py", "faults/test_single_word.py", "importance/test_all_scores.py",
    "project/test_registry.py", "protections/guards/test_contract.py", "protections/runtime/test_schedule.py",
    "protections/values/test_policy.py",
]  # fmt: skip
DOCUMENTED = ["WeightRange", "ConfidentChange"]
RUN = """
import contextlib, io, json, sys
import pytest
import hoplon
from hoplon.cli import main
commands, bundle, tests = map(json.loads, sys.argv[1:])
for command in commands:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main([*command, "--json"]) == 0, command
    print(json.dumps(json.loads(told.getvalue())))
print(json.dumps([repr(one) for one in hoplon.load_bundle(bundle).protections]))
sys.exit(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]))  # hoplon is there already
"""


def install(site: Path, name: str, entries: dict[str, str]) -> None:
    """What pip leaves of a package, beside its modules."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {module}" for key, module in entries.items()]
    (about / "entry_points.txt").write_text("\n".join(["[hoplon.components]", *lines, ""]))


def paths(*folders: Path) -> dict[str, str]:
    """The environment of a process that finds packages in these folders."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extension")


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[str]:
    """Lines of a process that finds the examples and one more package installed: of commands, then of shared tests."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    install(folder, "hoplon_examples", project["entry-points"]["hoplon.components"])
    install(folder, "extra", {"all": "extra"})
    (folder / "extra.py").write_text(EXTRA)
    model, data = write_small_files(folder)
    out, compared, bundle = (str(folder / name) for name in ("run", "compared", "bundle"))
    campaign = folder / "campaign.toml"
    campaign.write_text(
        f"model = {json.dumps(model)}\ndata = {json.dumps(data)}\ncount = 6\ninputs = 4\n"
        f'target = "memory"\nprotection = ["weight-range"]\nout = {json.dumps(str(folder / "file"))}\n'
        '[fault]\nname = "low-bits"\nwidth = 3\n[criterion]\nname = "confident"\nprobability = 0.9\n'
    )
    chosen = ["--fault", "low-bits", "--criterion", "confident:60%"]
    arms = ["both=ranger(policy=nearest)+weight-range@halves", "scored=aspis(score=square, fraction=1)"]
    commands = [
        *(["ls", what] for what in NAMES),
        ["inject", model, data, *chosen, "--width", "2", "--sampling", "first", "--count", "9", "--out", out],
        ["replay", out, "--model", model],
        ["inject", "--config", str(campaign)],
        ["compare", model, data, *chosen, "--no-standard-arms", *(part for arm in arms for part in ("--arm", arm)),
         "--value-faults", "5", "--memory-faults", "4", "--guard-faults", "3", "--inputs", "4", "--out", compared],
        ["report", compared],
        ["harden", model, "--no-bounds", "--guard", "weight-range", "--when", "halves", "--out", bundle],
    ]  # fmt: skip
    tests = ["-v", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", " or ".join([*NAMES.values(), *DOCUMENTED])]
    tests += [*(f"tests/{kind}" for kind in KINDS), "examples"]
    process = [sys.executable, "-c", RUN, *map(json.dumps, (commands, bundle, tests))]
    environment = paths(folder, EXAMPLES, ROOT)
    run = subprocess.run(process, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_components_of_other_packages_are_listed_run_stored_read_back_and_reported(
    printed: list[str], folder: Path
) -> None:
    documents = [json.loads(line) for line in printed if line.startswith(("{", "["))]
    for (what, name), document in zip(NAMES.items(), documents, strict=False):
        assert name in [row["name"] for row in document[what]]
    _, replayed, _, compared, reported, hardened, held = documents[len(NAMES) :]
    assert list(replayed["criteria"]) == ["confident-60%"]
    assert {arm["name"] for arm in compared["arms"]} == {"none", "both", "scored"}
    assert [row["label"] for row in hardened["guards"]] == ["weight-range"]
    assert held == ["WeightRange()"]
    manifest = manifest_of(folder / "run")
    assert (manifest["fault_model"], manifest["criteria"]) == ("LowBits(width=2)", ["confident-60%"])
    assert "First()" in manifest["sampling"]
    manifest = manifest_of(folder / "file")
    assert (manifest["fault_model"], manifest["criteria"]) == ("LowBits(width=3)", ["confident-90%"])
    assert manifest["protections"] == ["weight-range"]
    page = Path(reported["report"]).read_text()
    for told in ("WeightRange", "weight-range", "LowBits()", "confident-60%", "one half of memory", "policy=nearest"):
        assert told in page, told


def test_components_of_other_packages_are_held_to_the_shared_promises(printed: list[str]) -> None:
    passed = [line for line in printed if " PASSED " in line]
    for name in [*NAMES.values(), *DOCUMENTED]:
        assert any(name in line for line in passed), name


def test_a_package_that_cannot_be_imported_is_named_in_one_line(tmp_path: Path) -> None:
    install(tmp_path, "broken", {"all": "broken"})
    (tmp_path / "broken.py").write_text("import hoplon.nowhere\n")
    command = [sys.executable, "-m", "hoplon", "ls", "faults"]
    run = subprocess.run(command, env=paths(tmp_path), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("hoplon: expected components of hoplon in broken of broken, got ModuleNotFoundError")
    assert run.stderr.count("\n") == 1
