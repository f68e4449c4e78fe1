"""Run directories from elsewhere: the code that they name is imported only where the command line names it too."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoplon.cli.app import main
from hoplon.files import read_json, write_json
from tests.support.small_files import write_small_files

FACTORY = """
from pathlib import Path
Path({marker!r}).touch()
import torch
import hoplon as hp
from tests.support.networks import small_data, small_net

def net():
    return small_net(), torch.zeros(4, 1, 6, 6)

def data():
    held_out, calibration = small_data()
    return hp.zoo.ZooData(name="data.npz", calibration=calibration, held_out=held_out)
"""


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A stopped run whose settings name a factory that makes a file, for the model and for the data."""
    marker = str(tmp_path / "marker")
    (tmp_path / "code.py").write_text(FACTORY.format(marker=marker))
    folder = tmp_path / "run"
    options = ["--count", "20", "--fault", "zero", "--inputs", "4"]
    assert main(["inject", *write_small_files(tmp_path), *options, "--out", str(folder)]) == 0
    capsys.readouterr()
    return folder


def settle(run: Path, **changes: str) -> None:
    write_json(run / "settings.json", {**read_json(run / "settings.json"), **changes})


def line_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) in (2, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("what", ["model", "data"])
def test_a_factory_that_only_a_run_names_is_not_imported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = {"model": "lenet-digits", "data": str(tmp_path / "data.npz")}
    names = {"model": "net", "data": "data"}
    for source in (f"{tmp_path / 'code.py'}", "code"):
        settle(run, **{**kept, what: f"{source}:{names[what]}"})
        refused = line_of(capsys, "inject", "--resume", "--out", str(run))
        assert "hoplon inject MODEL DATA --resume --out" in refused
        assert f"{source}:{names[what]}" in refused
        if what == "data":
            assert "--data" in line_of(capsys, "replay", str(run), "--model", "lenet-digits")
    assert not (tmp_path / "marker").exists()


def test_a_factory_that_the_command_line_names_too_is_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "code.py"
    settle(run, model=f"{code}:net", data=f"{code}:data")
    named = [f"{code}:net", f"{code}:data"]
    assert main(["replay", str(run), "--model", named[0], "--data", named[1]]) == 0
    assert (tmp_path / "marker").exists()
    capsys.readouterr()
    again = tmp_path / "again"
    assert main(["inject", *named, "--count", "20", "--fault", "zero", "--inputs", "4", "--out", str(again)]) == 0
    capsys.readouterr()
    assert main(["inject", *named, "--resume", "--out", str(again)]) == 0  # with its stored settings
    assert main(["inject", f"{code}:data", "--resume", "--out", str(again)]) in (2, 4)


def test_a_run_goes_on_where_it_is_wherever_its_settings_say_it_was(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run.rename(tmp_path / "hoplon-run")
    settle(run, out=str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    assert main(["inject", f"{tmp_path / 'model.py'}:net", "--resume"]) == 0
    assert not (tmp_path / "elsewhere").exists()
    assert "the run in hoplon-run" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"data": ["a"]}, {"seed": "x"}, {"inputs": -1}, {"data": {"a": "b:c"}}])
def test_settings_of_another_form_are_refused_by_a_replay(
    run: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str]
) -> None:
    settle(run, **changes)
    assert main(["replay", str(run), "--model", "lenet-digits"]) == 2
    assert f"{next(iter(changes))}: expected" in capsys.readouterr().err
