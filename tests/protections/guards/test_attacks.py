"""The attack of the benchmark, small: what a guard states holds, and the benchmark counts what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hoplon as hp

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "attack_guards.py"
CERTAIN = ["1 random bit", "2 bits in a block", "a bit lane of a block"]
OWN = ["1 bit of the guard", "2 bits of the guard", "guard and memory"]


@pytest.fixture(scope="module")
def attacks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_attack_guards", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def memory() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv": (40, 30, 3, 3), "fc": (60, 300), "small": (16, 9)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found | {"bias": torch.randn(30, generator=generator), "count": torch.tensor(3)}


@pytest.mark.parametrize("label", ["parity", "tmr", "aspis-100%", "aspis-10%"])
def test_no_fault_of_the_class_is_missed_or_mis_repaired(attacks: ModuleType, label: str) -> None:
    target = attacks.Target(memory(), attacks.protections(memory())[label])
    for name in attacks.CLASSES:
        found = attacks.attack(target, name, 30, seed=1)
        assert found["mis-repaired"] == 0, name
        assert sum(found[outcome] for outcome in attacks.OUTCOMES) == 30
        if name in CERTAIN:
            assert found["repaired"] == 30, name
        if name not in ("same bit of a column", *OWN):
            assert found["missed"] + found["latent"] == 0, name
    assert target.guard.check().detected == 0  # everything was put back


def test_structural_coding_repairs_whole_lines_and_filters_and_reports_what_it_cannot(attacks: ModuleType) -> None:
    target = attacks.Target(memory(), hp.guards.StructuralCoding())
    for name in attacks.CLASSES:
        found = attacks.attack(target, name, 20, seed=1)
        assert found["repaired"] + found["reported"] == 20, name
        if name in ("1 random bit", "line of 64 bytes", "whole filter", "column of a weight", "1 bit of the guard"):
            assert found["repaired"] == 20 if name != "column of a weight" else found["reported"] > 0, name


def test_the_attack_tells_what_is_set_to_zero_from_what_is_left_and_what_is_spoilt(attacks: ModuleType) -> None:
    target = attacks.Target(memory(), hp.guards.Radar())
    found = {name: attacks.attack(target, name, 40, seed=1) for name in ("line of 64 bytes", "1 bit of the guard")}
    line, own = found.values()
    assert (line["repaired"], line["mis-repaired"]) == (0, 0)
    assert line["mitigated"] > 0 < line["missed"]
    assert own["mis-repaired"] > 0 < own["repaired"] + own["latent"] + own["missed"]
    target = attacks.Target(memory(), hp.guards.SecDedMemory())
    assert attacks.attack(target, "2 bits of a word", 20, seed=1)["reported"] == 20
    assert attacks.attack(target, "3 bits of a word", 20, seed=1)["mis-repaired"] > 0


def test_the_attack_tells_a_guard_that_misses_from_one_that_spoils(attacks: ModuleType) -> None:
    target = attacks.Target(memory(), hp.Parity())
    assert attacks.attack(target, "same bit of a column", 60, seed=0)["missed"] in range(5, 55)

    class Spoils:
        def check(self) -> hp.protections.GuardReport:
            target.tensors["fc"].data[0, 0] = 1e9
            return hp.protections.GuardReport(1, 1, 1, 0)

    target.guard = Spoils()
    assert attacks.attack(target, "1 random bit", 5, seed=0)["mis-repaired"] == 5


@pytest.mark.slow
def test_the_script_writes_every_case(attacks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attack.json"
    attacks.main(["--model", "lenet-digits", "--guards", "parity", "--share", "0.001", "--json", str(path)])
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [case["faults"] for case in cases] == list(attacks.CLASSES)
    assert [case["count"] for case in cases] == [100] * 3 + [10] * 14
    assert "burst up to a block" in capsys.readouterr().out
