"""A model of several inputs on the command line, from a factory file as the README shows it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from hoplon.cli.app import main

ENCODER = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.act, self.head = nn.Embedding(20, 8), nn.ReLU(), nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask, scale):
            hidden = self.act(self.words(input_ids) * attention_mask[..., None] * scale)
            return {"logits": self.head(hidden.mean(1))}

    def rows():
        torch.manual_seed(0)
        ids = torch.randint(0, 20, (40, 6))
        return [{"input_ids": row, "attention_mask": torch.ones(6), "label": n % 3} for n, row in enumerate(ids)]

    def data():
        return DataLoader(rows(), batch_size=16)

    def model():
        import hoplon as hp
        torch.manual_seed(0)
        call = {key: torch.stack([row[key] for row in rows()[:4]]) for key in ("input_ids", "attention_mask")}
        return Encoder().eval(), hp.Example(kwargs={**call, "scale": torch.ones(8)}, batch_axis={"scale": None})

    def strings():
        return DataLoader(["a", "b", "c", "d"], batch_size=2)

    def miscounted():
        return [(torch.zeros(4, 6), torch.zeros(3))]
"""


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    path = tmp_path / "encoder.py"
    path.write_text(textwrap.dedent(ENCODER), encoding="utf-8")
    return str(path)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main([*arguments, "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_commands_take_several_inputs(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = f"{encoder}:model", f"{encoder}:data", str(tmp_path / "out")
    faults = ["--criterion", "deviation:0.1", "--count", "20", "--out", out]
    found = ran(capsys, "inject", model, data, "--target", "values", *faults)
    assert found["summary"][0]["n_faults"] == 20  # type: ignore[index]
    assert ran(capsys, "profile", model, data, "--out", f"{out}-profile")["n_samples"] == 8
    hardened = ran(capsys, "harden", model, "--ranges", f"{out}-profile/ranges.json", "--out", f"{out}-strong")
    assert hardened["example_unchanged"]
    assert ran(capsys, "overhead", model, "--batch", "3", "--blocks", "6", "--calls", "1")["batch"] == 3
    assert ran(capsys, "rank", model, data, "--score", "taylor", "--out", f"{out}-scores.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strings", "expected numbers in batch 0, got the text 'a'; tokenize it; it comes from"),
        ("miscounted", "expected 4 labels in batch 0, one per sample, got 3"),
    ],
)
def test_data_that_does_not_fit_is_one_line(
    encoder: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inject", f"{encoder}:model", f"{encoder}:{name}", "--count", "5"]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["weights.pt", "missing.onnx", "hf:nowhere"])
def test_models_that_are_none_are_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    given = str(tmp_path / name) if ":" not in name else name
    assert main(["inspect", given]) in (2, 4)
    captured = capsys.readouterr()
    assert "expected" in captured.err
    assert "Traceback" not in captured.err


def test_models_are_listed_with_the_extra_that_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row["sentence"] for row in ran(capsys, "ls", "models")["models"]}  # type: ignore[attr-defined]
    assert "extra timm" in rows["timm:NAME"]
    assert "lenet-digits" in rows
    named = ran(capsys, "ls", "models", "torchvision")["models"]
    assert {"name": "torchvision:deeplabv3_resnet50"} in named  # type: ignore[operator]
    assert main(["ls", "models", "nothing"]) == 2
