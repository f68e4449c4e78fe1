"""The README's Python example runs as it stands, on a small model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

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
