"""``hoplon verify``: all that is damaged or gone in what commands write, and nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import hoplon as hp
from hoplon.cli.app import main
from hoplon.errors import HoplonWarning
from hoplon.files import read_json
from tests.support.networks import NETWORKS
from tests.support.small_files import write_small_files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``inject``, a folder of ``compare``, and a bundle."""
    folder = tmp_path_factory.mktemp("written")
    files = write_small_files(folder)
    small = ["--value-faults", "20", "--memory-faults", "4", "--out", str(folder / "compared")]
    assert main(["compare", *files, *small]) == 0
    assert main(["inject", *files, "--count", "2500", "--out", str(folder / "run")]) == 0
    net = NETWORKS["mlp"]
    hp.save_bundle(hp.harden(hp.capture(net.model(), net.batch(2)), [hp.Parity()]), folder / "bundle")
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def checked(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[int, dict[str, str], str]:
    """Exit code, state of each record, and what stderr says."""
    capsys.readouterr()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    code = main(["verify", str(path), "--json"])
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    printed = capsys.readouterr()
    found: dict[str, Any] = json.loads(printed.out) if printed.out else {"records": []}
    return code, {record["name"]: record["state"] for record in found["records"]}, printed.err


def flip(file: Path, byte: int = -40) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[byte % len(content)] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(("name", "records"), [("run", 5), ("compared", 26), ("bundle", 4)])
def test_what_commands_write_is_whole(
    name: str, records: int, capsys: pytest.CaptureFixture[str], written: Path
) -> None:
    code, states, said = checked(capsys, written / name)
    assert (code, set(states.values()), said) == (0, {"whole"}, "")
    assert len(states) >= records - 1


def read_model_and_data(run: Path) -> list[str]:
    settings = read_json(run / "settings.json")
    return [settings["model"], settings["data"]]


def test_all_damaged_units_are_named(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    run = copy / "run"
    flip(run / "faults" / "unit-00000000.parquet")
    (run / "runs" / "unit-00000002.parquet").unlink()
    code, states, said = checked(capsys, run)
    assert (code, said.count("\n")) == (4, 1)
    assert "got unit 0 (damaged), unit 2 (damaged); resume the run, which runs it again" in said
    assert (states["unit 0"], states["1 unit, 1 to 1"], states["manifest.json"]) == ("damaged", "whole", "whole")
    assert main(["verify", str(run)]) == 4
    assert "runs/unit-00000002.parquet" in capsys.readouterr().out
    with pytest.warns(HoplonWarning, match=r"damaged in .*, and made again: unit 0$"):
        assert main(["inject", *read_model_and_data(run), "--resume", "--out", str(run)]) == 0
    assert checked(capsys, run)[0] == 0


def test_a_unit_that_is_gone_is_told_from_one_that_has_not_run(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    run = copy / "run"
    for file in run.glob("*/unit-00000001.*"):
        file.unlink()
    code, states, said = checked(capsys, run)
    assert (code, states["unit 1"]) == (4, "missing")
    assert "unit 1 (missing)" in said
    (run / "design.json").unlink()  # as of a run that was stopped
    code, states, said = checked(capsys, run)
    assert (code, states["unit 1"], said) == (0, "open", "")


@pytest.mark.parametrize("name", ["manifest.json", "design.json", "settings.json", "results.json"])
def test_damaged_documents_of_a_run_are_named(name: str, capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    flip(copy / "run" / name, 30)
    code, states, said = checked(capsys, copy / "run")
    assert (code, states[name]) == (4, "damaged")
    assert f"{name} (damaged)" in said
    flip(copy / "run" / name, 30)
    (copy / "run" / name).write_text('{"format": 1}')
    assert checked(capsys, copy / "run")[1][name] == (
        "unchecked" if name in ("settings.json", "results.json") else "damaged"
    )


@pytest.mark.parametrize(
    "name",
    [
        "results.json",
        "runs/ranges.json",
        "runs/scores.safetensors",
        "runs/values/none/manifest.json",
        "runs/memory/tmr/runs/unit-00000000.parquet",
    ],
)
def test_damage_in_a_folder_of_arms_is_named(name: str, capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    flip(copy / "compared" / name)
    code, states, said = checked(capsys, copy / "compared")
    where = name if "unit" not in name else "runs/memory/tmr/unit 0"
    assert (code, states[where]) == (4, "damaged")
    assert f"{where} (damaged)" in said
    if "unit" not in name:
        assert checked(capsys, copy / "compared" / name)[0] == 4  # by itself as well


@pytest.mark.parametrize("name", ["bundle.json", "model.pt2", "guards.safetensors", "descriptions.safetensors"])
def test_damage_in_a_bundle_is_named(name: str, capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    flip(copy / "bundle" / name)
    code, states, _ = checked(capsys, copy / "bundle")
    assert (code, states[name]) == (4, "damaged")
    (copy / "bundle" / name).unlink()
    assert checked(capsys, copy / "bundle")[0] == 4


def test_a_study_is_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from hoplon_studies import profile_named, run_study, write_pages
    from tests.support.small_study import STUDY

    write_pages(tmp_path, run_study(STUDY, out=tmp_path, profile=profile_named("quick")))
    code, states, _ = checked(capsys, tmp_path)
    assert (code, len(states), set(states.values())) == (0, 4, {"whole"})
    flip(tmp_path / "study-runs" / "small" / "parts" / "two.json")
    code, states, _ = checked(capsys, tmp_path)
    assert (code, states["study-runs/small/parts/two.json"]) == (4, "damaged")


def test_records_of_other_programs_are_unchecked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "scores.safetensors")
    (tmp_path / "notes.json").write_text("[1]")
    (tmp_path / "letter.txt").write_text("dear")
    code, states, _ = checked(capsys, tmp_path)
    assert (code, states) == (0, {"notes.json": "unchecked", "scores.safetensors": "unchecked"})


def test_where_nothing_can_be_checked_one_line_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for path in (tmp_path, tmp_path / "letter.txt", tmp_path / "nowhere"):
        code, _, said = checked(capsys, path)
        assert (code, said.count("\n")) == (4, 1)
        assert said.startswith("hoplon: expected records of hoplon at ")


def test_a_pipe_is_not_waited_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("scores.safetensors", "results.json"):
        os.mkfifo(tmp_path / name)
        code, states, _ = checked(capsys, tmp_path / name)
        assert (code, states) == (4, {name: "damaged"})
