from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoplon.cli.main import main
from hoplon_studies import Context, Findings, Part, Row, Study, aspis as aspis_module, registry, study_names

KEYS = {"where", "model", "data", "paper", "here", "low", "high", "n", "seed", "note"}


def found(context: Context) -> Findings:
    own = "none" if context.own is None else f"{context.own[0].name} on {context.own[1].name}"
    return Findings(rows=(Row("Table II", "net", "-", f"seed {context.seed}, {own}", paper=1, here=2),))


@pytest.fixture(autouse=True)
def small_study(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("aspis", "A study", (), (Part("one", "First", found), Part("two", "Second", found)))
    monkeypatch.setattr(aspis_module, "STUDY", study)


def test_it_writes_a_page_and_its_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["study", "aspis", "--profile", "quick", "--seed", "5", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "aspis.json").read_text())
    assert [set(row) for row in printed["rows"]] == [KEYS, KEYS]
    assert (printed["seed"], printed["profile"], printed["unfinished"]) == (5, "quick", [])
    assert "seed 5, none" in (tmp_path / "aspis.md").read_text()


def test_a_part_alone_says_what_is_left(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["study", "aspis", "--profile", "quick", "--out", str(tmp_path), "--part", "two"]) == 0
    printed = capsys.readouterr()
    assert "one: --part one runs it" in printed.out
    assert "study aspis, two: Second" in printed.err
    assert main(["study", "aspis", "--profile", "quick", "--out", str(tmp_path)]) == 0
    assert "Not run yet" not in capsys.readouterr().out


def test_the_users_own_model_takes_part(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_files: tuple[str, str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["study", "aspis", "--profile", "quick", "--out", out, "--model", *small_files, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"][0]["note"].endswith("model.py:net on data.npz")
    assert main(["study", "aspis", "--profile", "quick", "--out", out]) == 2
    assert "expected the study of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aspsi"], "no study matches 'aspsi'; near names: aspis"),
        (["aspis", "--profile", "quik"], "no profile matches 'quik'; near names: quick"),
        (["aspis", "--part", "oen"], "no part of study aspis matches 'oen'"),
        (["aspis", "--data", "nowhere"], "expected a folder for --data, got nowhere"),
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


def test_every_study_it_names_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in study_names():
        study = registry.study_named(name)
        assert study.name == name
        assert study.parts
