"""Wrong configurations: one message that names all that is wrong, exit status 2, no model loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hoplon.cli.app import main

FILES: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    ({"cuont": 3}, ("cuont: no option matches 'cuont'; near names: count",)),
    ({"count": "many"}, ("count: expected an integer of at least 1, got 'many'",)),
    ({"count": 0}, ("count: expected an integer of at least 1, got 0",)),
    ({"count": 2.5}, ("count: expected an integer of at least 1, got 2.5",)),
    ({"count": True}, ("count: expected an integer of at least 1, got True",)),
    ({"half_width": 0}, ("half_width: expected a number above 0 and below 1, got 0",)),
    ({"half_width": "1 %"}, ("half_width: expected a number above 0 and below 1, got '1 %'",)),
    ({"confidence": 95}, ("confidence: expected a number above 0 and below 1, got 95",)),
    ({"seed": -1}, ("seed: expected an integer of at least 0 and below",)),
    ({"seed": "x", "workers": 0}, ("2 values are wrong", "seed: expected an integer", "workers: expected an integer")),
    ({"inputs": 0}, ("inputs: expected an integer of at least 1, got 0",)),
    ({"batch": "big"}, ("batch: expected an integer of at least 1, got 'big'",)),
    ({"threads": 0}, ("threads: expected an integer of at least 1, got 0",)),
    ({"target": "wires"}, ("target: expected 'values' or 'memory', got 'wires'",)),
    ({"placement": "during"}, ("placement: expected 'before' or 'after', got 'during'",)),
    ({"arrival": "late"}, ("arrival: expected 'before' or 'after', got 'late'",)),
    ({"sites": []}, ("sites: expected a text or a list of such, got []",)),
    ({"sites": 3}, ("sites: expected a text or a list of such, got 3",)),
    ({"dtype": "float17"}, ("dtype: expected the name of a dtype",)),
    ({"buffers": False}, ("buffers: expected target 'memory' beside it, got 'values'",)),
    ({"buffers": "no"}, ("buffers: expected true or false, got 'no'",)),
    ({"out": ""}, ("out: expected a text, got ''",)),
    ({"fault": "bitflop"}, ("fault: no fault matches 'bitflop'; near names: bitflip",)),
    ({"fault": {"count": 2}}, ("fault: expected a name or a table with a name out of",)),
    ({"fault": {"name": "bitflip", "count": 0}}, ("fault.count: expected an integer of at least 1, got 0",)),
    ({"fault": {"name": "bitflip", "flips": 2}}, ("fault.flips: no option matches 'flips'",)),
    ({"fault": {"name": "bitflip", "bits": [3, 3]}}, ("expected different positions in bits",)),
    ({"fault": {"name": "bitflip", "format": "fixed(21"}}, ("fault.format: expected the name of a number format",)),
    ({"fault": {"name": "stuck-at", "value": 2}}, ("fault.value: expected 0 or 1, got 2",)),
    ({"fault": "stuck-at"}, ("fault.value: expected 0 or 1, got nothing",)),
    ({"fault": {"name": "bit-rate", "rate": 1.5}}, ("fault.rate: expected a number above 0 and below 1, got 1.5",)),
    ({"fault": {"name": "random-value", "low": 1}}, ("expected low and high, or neither",)),
    ({"fault": {"name": "zero", "elements": 2, "words": 2}}, ("expected elements, or words or bytes",)),
    ({"fault": ["zero", {"name": "bitflip", "weight": "x"}]}, ("fault[1].weight: expected a number, got 'x'",)),
    ({"fault": "bitflip(count=2"}, ("fault: expected brackets and quotes that end",)),
    ({"fault": "bitflip(2)"}, ("fault: expected field=value inside the brackets",)),
    ({"sampling": "elements"}, ("sampling: no sampling matches 'elements'; near names: element",)),
    ({"sampling": {"name": "op", "drop_last": "one"}}, ("sampling.drop_last: expected an integer, got 'one'",)),
    ({"sampling": "stratified"}, ("sampling.by: expected 'site' or 'layer' or 'bit', got nothing",)),
    ({"sampling": "top-score"}, ("expected a fraction or a count",)),
    ({"sampling": "top-score(fraction=2)"}, ("expected a fraction in (0, 1], got 2",)),
    ({"criterion": "best"}, ("criterion: no criterion matches 'best'",)),
    ({"criterion": ["top-1", "best", {"name": "deviation", "unit": 3}]}, ("3 values are wrong", "criterion[1]",
      "criterion[2].thresholds", "criterion[2].unit")),
    ({"protection": "rangr"}, ("no protection matches 'rangr'; near names: ranger",)),
    ({"protection": ["aspis:2", "parity:x"]}, ("protection[0]: expected a fraction in", "protection[1]")),
    ({"protection": "ranger(policy=clam, where=some)"}, ("no policy matches 'clam'", "where: expected 'activations'")),
    ({"protection": {"name": "ranger", "quantile": 0}}, ("quantile: expected a number above 0 and of at most 1",)),
    ({"protection": {"name": "aspis", "fraction": 0.1, "score": "tailor"}}, ("no score matches 'tailor'",)),
    ({"protection": {"name": "ranger", "ranges": 7}}, ("ranges: expected a file of ranges, got 7",)),
    ({"cuont": 3, "seed": -1, "fault": "bitflop", "sampling": "elements", "criterion": "best", "protection": "rangr"},
     ("6 values are wrong", "cuont", "seed", "fault", "sampling", "criterion", "protection")),
)  # fmt: skip
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("inject --bits high --flips two --count x", ("3 values are wrong", "fault.bits", "fault.count", "count")),
    ("inject --fault bitflip(count=0) --criterion best", ("2 values are wrong", "fault.count", "criterion")),
    ("compare --arm rangr --arm aspis:2 --criterion best", ("3 values", "--arm rangr", "--arm aspis:2", "criterion")),
    ("compare --flips 0 --flips x --sampling elements", ("3 values are wrong", "got 0", "got 'x'", "sampling")),
    ("compare --value-faults -1 --placement during", ("2 values are wrong", "value_faults", "placement")),
    ("compare --arm a=parity@seldom --where some", ("2 values are wrong", "no schedule matches", "where")),
    ("compare --arm a=parity --arm a=tmr", ("expected a new name, got 'a' twice",)),
    ("compare --arm none=ranger --arm ranger=tmr", ("2 values are wrong", "got 'none' twice", "got 'ranger' twice")),
    ("compare --buffers --target values", ("buffers: expected target 'memory' beside it, got 'values'",)),
    ("inject --count 3 --count 4 --sampling op --sampling bit", ("2 values are wrong", "count", "sampling")),
    ("inject --count 3 --half-width 0.1", ("expected count or half_width, got both: 3 and 0.1",)),
    ("rank --score tailor", ("no score matches 'tailor'",)),
    ("rank --fault bitflop", ("no fault matches 'bitflop'",)),
    ("harden --policy clam --when seldom --guard parit", ("3 values", "--policy clam", "--when seldom", "--guard")),
)


def model_that_tells(folder: Path) -> str:
    """A factory that leaves a file where it is loaded."""
    marker = folder / "loaded"
    source = f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef net():\n    return None\n"
    (folder / "own.py").write_text(source)
    return f"{folder / 'own.py'}:net"


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hoplon: ")
    assert captured.err.count("hoplon: ") == 1
    assert not (folder / "loaded").exists()
    return captured.err


@pytest.mark.parametrize(("settings", "named"), FILES)
def test_a_wrong_file(
    settings: dict[str, Any], named: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = {"model": model_that_tells(tmp_path), "data": "digits", **settings}
    file = tmp_path / "campaign.json"
    file.write_text(json.dumps(given))
    said = refusal(capsys, tmp_path, "inject", "--config", str(file))
    assert str(file) in said
    assert all(part in said for part in named), said


@pytest.mark.parametrize(("line", "named"), COMMANDS)
def test_a_wrong_command_line(
    line: str, named: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command, *options = line.split()
    place = [model_that_tells(tmp_path), *([] if command == "harden" else ["digits"])]
    said = refusal(capsys, tmp_path, command, *place, *options, "--out", str(tmp_path / "out"))
    assert all(part in said for part in named), said
