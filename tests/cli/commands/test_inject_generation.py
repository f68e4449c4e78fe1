"""``hoplon inject --new-tokens``: faults in generation from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoplon.cli.app import main

FACTORY = """
import torch
from hoplon.program import Inputs
from hoplon_studies.networks.decoder import Decoder

def model():
    torch.manual_seed(0)
    return Decoder(20, width=16, layers=1, heads=2, hidden=16).eval(), torch.randint(20, (2, 9))

def data():
    return Inputs(torch.randint(20, (8, 9), generator=torch.Generator().manual_seed(1)))
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FACTORY, encoding="utf-8")
    return str(path)


def test_a_decoder_generates_and_its_answers_are_judged(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["inject", f"{factory}:model", f"{factory}:data", "--new-tokens", "5", "--prompt-tokens", "6"]
    assert main([*given, "--kind", "keys", "--count", "30", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["criterion"] for row in found["summary"]] == ["answer", "degenerate"]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["execution"]["replay"] == "along golden tokens"
    assert all(name.endswith(":keys@step" + name[-1]) for name in manifest["kinds"])


def test_a_prompt_without_generation_is_refused(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["inject", f"{factory}:model", f"{factory}:data", "--prompt-tokens", "6", "--count", "3"]
    assert main(given) == 2
    assert "prompt_tokens: expected new_tokens beside it" in capsys.readouterr().err
