from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from hoplon.cli.app import main
from hoplon.files import read_json
from hoplon_studies.aspis import study as aspis
from hoplon_studies.driving import study as driving
from hoplon_studies.ranger import study as ranger

KEYS = {"where", "model", "data", "paper", "here", "low", "high", "n", "seed", "note"}


@pytest.fixture(autouse=True)
def small_study(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package with one study, as pip would have installed it."""
    site = tmp_path_factory.mktemp("site")
    (site / "small_study.py").write_text("from tests.support.small_study import COMMAND\n")
    metadata = site / "small_study-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: small_study\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[hoplon.studies]\nsmall = small_study:COMMAND\n")
    monkeypatch.syspath_prepend(site)


def test_it_writes_a_page_and_its_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["study", "small", "--profile", "quick", "--seed", "5", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_json(tmp_path / "small.json")
    assert [set(row) >= KEYS for row in printed["rows"]] == [True, True]
    assert (printed["seed"], printed["profile"], printed["unfinished"]) == (5, "quick", [])
    assert "seed 5, none" in (tmp_path / "small.md").read_text()


def test_a_part_alone_says_what_is_left(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["study", "small", "--profile", "quick", "--out", str(tmp_path), "--part", "two"]) == 0
    printed = capsys.readouterr()
    assert "one: --part one runs it" in printed.out
    assert "study small, two: Second" in printed.err
    assert main(["study", "small", "--profile", "quick", "--out", str(tmp_path)]) == 0
    assert "Not run yet" not in capsys.readouterr().out


def test_the_users_own_model_takes_part(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_files: tuple[str, str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["study", "small", "--profile", "quick", "--out", out, "--model", *small_files, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"][0]["note"].endswith("model.py:net on data.npz")
    assert main(["study", "small", "--profile", "quick", "--out", out]) == 4
    assert "expected the study of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aspsi"], "no study matches 'aspsi'; near names: aspis"),
        (["small", "--profile", "quik"], "no profile matches 'quik'; near names: quick"),
        (["small", "--part", "oen"], "no part of study small matches 'oen'"),
        (["small", "--data", "nowhere"], "expected a folder for --data, got nowhere"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["study", *arguments, "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not (tmp_path / "study-runs").exists()


def test_the_papers_studies_are_installed() -> None:
    commands = {entry.name: entry.load() for entry in entry_points(group="hoplon.studies")}
    for name, study in {"aspis": aspis.STUDY, "ranger": ranger.STUDY, "driving": driving.STUDY}.items():
        assert study.name == name
        assert study.parts
        assert commands[name].args == (study,)
