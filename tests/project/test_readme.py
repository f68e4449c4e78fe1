"""The README's Python example runs as it stands, on a small model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hoplon.cli.app import main
from hoplon.zoo.torchvision_ops import import_torchvision
from tests.support.networks import small_data, small_net

README = Path(__file__).parents[2] / "README.md"
PRECISION = "half_width=0.0025"


def test_the_example_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert PRECISION in code
    held_out, calibration = small_data()
    names: dict[str, Any] = {
        "F": F,
        "model": small_net(),
        "example": calibration.tensors[0][:4],
        "x": held_out.x,
        "y": held_out.y,
        "calibration": calibration,
    }
    exec(compile(code.replace(PRECISION, "half_width=0.05"), str(README), "exec"), names)
    assert names["before"].summary()[0].failure.half_width <= 0.05
    printed = capsys.readouterr().out
    assert all(arm in printed for arm in names["arms"])
    with torch.no_grad():
        expected = names["model"](names["x"])
    assert torch.equal(names["strong"](names["x"]).argmax(1), expected.argmax(1))
    assert names["strong"].check().checked > 0
    assert names["guarded"].monitor.report.checked == sum(
        parameter.numel() for parameter in names["model"].parameters()
    )
    loaded = names["hp"].load_bundle("strong")
    assert torch.equal(loaded(names["x"]), names["strong"](names["x"]))


def test_the_commands_it_names_exist() -> None:
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`make (\w+)`", text))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_encoder_of_the_readme_runs_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="the README's factory reads one of Hugging Face")
    transformers = pytest.importorskip("transformers", reason="pip install 'hoplon[hf]'")
    import_torchvision()  # which transformers imports where it is installed
    (code,) = re.findall(r"```py\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) < 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder.py").write_text(code, encoding="utf-8")
    ids = [[2, 5, 7, 3][: 2 + number % 3] for number in range(40)]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "label": [n % 2 for n in range(40)]}
    datasets.Dataset.from_dict(columns).save_to_disk("reviews")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=32, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained("sentiment")
    assert main(["inject", "encoder.py:model", "encoder.py:data", "--count", "20", "--out", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"][0]["n_faults"] == 20
