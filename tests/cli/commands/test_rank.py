from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoplon.cli.app import main
from hoplon.importance import Scores

NAMES = ("taylor", "gradient", "fisher", "nisp", "magnitude", "random", "expected-damage")


@pytest.mark.parametrize("score", NAMES)
def test_every_score_is_written_and_told(
    score: str, small_files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scores.safetensors"
    given = ["rank", *small_files, "--score", score, "--fraction", "0.1", "--out", str(out), "--seed", "3", "--json"]
    assert main(given) == 0
    document = json.loads(capsys.readouterr().out)
    scores = Scores.load(out)
    assert scores.score == document["score"]
    assert document["score"].replace("_", "-").startswith(score)
    assert (document["weights"], document["important"]) == (300, 30) == (scores.total, scores.count(0.1))
    assert [row["layer"] for row in document["by_layer"]] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert sum(row["top"] for row in document["by_layer"]) == sum(row["bottom"] for row in document["by_layer"]) == 30
    assert document["critical_share_of_first_layer"] == len(scores.top(0.1)["0.weight"]) / 36
    assert [row["n"] for row in document["magnitudes"]] == [300, 30, 30]
    assert document["n_samples"] == (0 if score in ("magnitude", "random") else 16)


def test_tables_figures_and_a_choice_of_storages(
    small_files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "scores.safetensors", tmp_path / "figures.html"
    given = ["rank", *small_files, "--layerwise", "--sites", "*.weight", "--samples", "8", "--fraction", "0.5"]
    assert main([*given, "--out", str(out), "--page", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "layerwise(taylor, rank) (data.npz, calibration, 8 samples); 146 of 292" in " ".join(printed.split())
    assert list(Scores.load(out).values) == ["0.weight", "3.weight"]
    text = page.read_text(encoding="utf-8")
    assert text.count('role="img"') == text.count("<summary>") == 2
    assert "Top and bottom 50 % by layer" in text
    assert "default-src 'none'" in text.split("<script")[0]
    assert "<a " not in text.split("<script")[0]
    assert "displayModeBar: false" in text  # whose logo is a link


def test_bad_input_is_told_in_one_line(
    small_files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(
        "import torch\nfrom hoplon import Inputs\ndef data():\n    return Inputs(torch.ones(10, 1, 6, 6))\n"
    )
    out = ["--out", str(tmp_path / "scores.safetensors")]
    assert main(["rank", small_files[0], f"{bare}:data", *out]) == 4
    assert "expected labels" in capsys.readouterr().err
    assert main(["rank", *small_files, *out, "--fraction", "2"]) == 2
    assert "--fraction: expected a number above 0 and of at most 1, got 2.0" in capsys.readouterr().err
    assert main(["rank", *small_files, *out, "--sites", "conv9*"]) == 2
    assert "no memory site matches 'conv9*'" in capsys.readouterr().err
    assert not (tmp_path / "scores.safetensors").exists()
