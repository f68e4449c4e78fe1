"""``ls`` and ``validate`` from the outside: names that are printed are names that are accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from hoplon.cli.app import main
from hoplon.cli.commands.ls import What
from hoplon.cli.options.components import Described
from hoplon.comparison.learned import Learned
from hoplon.errors import HoplonError
from hoplon.program.capturing import capture
from tests.support.networks import small_data, small_net

Capsys = pytest.CaptureFixture[str]


def printed(capsys: Capsys, *command: str) -> dict[str, Any]:
    assert main([*command, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("what", get_args(What))
def test_every_kind_is_listed(capsys: Capsys, what: str) -> None:
    rows = printed(capsys, "ls", what)[what]
    assert len({row["name"] for row in rows}) == len(rows) > 2
    assert main(["ls", what]) == 0
    text = capsys.readouterr().out
    assert all(row["name"] in text for row in rows)


@pytest.mark.parametrize(
    ("what", "kind"), [("faults", "fault"), ("samplings", "sampling"), ("criteria", "criterion"),
    ("guards", "protection"), ("protections", "protection"), ("policies", "policy"), ("schedules", "schedule")]
)  # fmt: skip
def test_names_that_are_listed_are_accepted(capsys: Capsys, what: str, kind: Any) -> None:
    for row in printed(capsys, "ls", what)[what]:
        if not any(option["required"] for option in row["options"].values()):
            learned = Learned(capture(small_net(), small_data()[0].x[:4]), small_data()[1])
            texts = [row["name"], f"{row['name']}:1%"]  # a ranking asks for a share
            assert any(_built(kind, text, learned) is not None for text in texts), row["name"]


def _built(kind: Any, text: str, learned: Learned) -> Any:
    try:
        return Described[Any](kind, text)(learned)
    except HoplonError:
        return None


def campaign_file(folder: Path, small_files: tuple[str, str], **more: Any) -> str:
    settings = {"model": small_files[0], "data": small_files[1], **more}
    file = folder / "campaign.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return str(file)


def test_validate_counts_and_runs_nothing(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    file = campaign_file(tmp_path, small_files, target="memory", count=40, protection=["tmr"], out=str(out))
    found = printed(capsys, "validate", file)
    assert (found["faults"], found["runs"], found["protections"]) == (40, 40 * found["inputs"], ["tmr"])
    assert "3.weight" in found["sites"]
    assert main(["validate", file]) == 0
    assert "40 faults, 600 runs" in capsys.readouterr().out
    assert not out.exists()
    most = printed(capsys, "validate", campaign_file(tmp_path, small_files, half_width=0.05))
    assert most["runs"] == most["faults"] > 384


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cuont": 4, "seed": "x"}, "campaign.toml: 2 values are wrong:\n  cuont: no option matches"),
        ({}, "expected exactly one of count and half_width"),
        ({"count": 4, "confidence": 2}, "confidence: expected a number above 0 and below 1, got 2"),
        ({"count": 4, "sites": "nowhere"}, "nowhere"),
        ({"count": 4, "criterion": "top-9"}, "more than k=9 classes"),
        ({"count": 4, "sampling": "explicit:x"}, "sampling.faults: expected a list of [site, element]"),
    ],
)
def test_validate_refuses_what_inject_refuses(
    more: dict[str, Any], message: str, capsys: Capsys, small_files: tuple[str, str], tmp_path: Path
) -> None:
    status = 4 if more.get("criterion") == "top-9" else 2  # the model has four classes: data that do not fit
    assert main(["validate", campaign_file(tmp_path, small_files, **more)]) == status
    assert message in capsys.readouterr().err
