"""``hoplon gate``: record, judge, exit statuses, reports."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from hoplon.cli.app import main
from hoplon.zoo.resolve import resolve_model
from tests.support.small_files import write_small_files


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    """A folder with a baseline of the small net, and what a command calls that."""
    folder = tmp_path_factory.mktemp("gate")
    files = write_small_files(folder)
    assert main(["gate", *files, "--record", "--baseline", str(folder / "base.json"), "--most", "1024"]) == 0
    return folder, files


def test_an_equal_build_passes_with_all_reports(
    recorded: tuple[Path, tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, files = recorded
    capsys.readouterr()
    reports = {name: tmp_path / name for name in ("out.xml", "out.md", "out.json")}
    options = [
        "--junit",
        str(reports["out.xml"]),
        "--summary",
        str(reports["out.md"]),
        "--out",
        str(reports["out.json"]),
    ]
    limits = ["--max-increase", "2%", "--baseline", str(folder / "base.json")]
    assert main(["gate", *files, *limits, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["same_faults"], found["left_out"]) == ("pass", found["faults"], 0)
    assert json.loads(reports["out.json"].read_text())["claims"] == found["claims"]
    assert ElementTree.parse(reports["out.xml"]).getroot().get("failures") == "0"
    assert "gate: pass" in reports["out.md"].read_text()
    assert main(["evidence", str(reports["out.json"]), "--out", str(tmp_path / "evidence")]) == 0
    assert "2.000 points more" in (tmp_path / "evidence" / "evidence.html").read_text()


@pytest.mark.parametrize(("limit", "status"), [("90%", 0), ("0.0001%", 1)])
def test_the_exit_status_is_the_verdict(limit: str, status: int, recorded: tuple[Path, tuple[str, str]]) -> None:
    assert main(["gate", *recorded[1], "--max-failure", limit, "--most", "1024"]) == status


def test_undecided_says_how_many_more(
    recorded: tuple[Path, tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["gate", *recorded[1], "--max-failure", "5%", "--most", "16"]) == 3
    assert "undecided" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ([], 2, "--record"),
        (["--max-failure", "much"], 2, "--max-failure"),
        (["--max-failure", "0"], 2, "--max-failure"),
        (["--max-increase", "1%"], 2, "--baseline FILE"),
        (["--record"], 2, "--baseline FILE"),
        (["--max-increase", "1%", "--baseline", "none.json"], 4, "expected a baseline at none.json"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    options: list[str],
    status: int,
    said: str,
    recorded: tuple[Path, tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["gate", *recorded[1], *options]) == status
    assert said in capsys.readouterr().err


def test_a_file_of_another_is_not_replaced(recorded: tuple[Path, tuple[str, str]], tmp_path: Path) -> None:
    other = tmp_path / "notes.json"
    other.write_text("mine")
    assert main(["gate", *recorded[1], "--record", "--baseline", str(other), "--most", "64"]) == 4
    assert other.read_text() == "mine"


def test_a_model_by_name_is_captured_at_the_sizes_of_the_data(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 3, 40, 40), dtype=np.float32)
    with torch.no_grad():
        y = resolve_model("torchvision:squeezenet1_1", seed=0).module(torch.from_numpy(x)).argmax(1)
    np.savez(tmp_path / "data.npz", x=x, y=y.numpy())
    what = ["torchvision:squeezenet1_1", str(tmp_path / "data.npz")]
    assert main(["gate", *what, "--record", "--baseline", str(tmp_path / "base.json"), "--most", "16"]) == 0
