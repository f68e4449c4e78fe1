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
    ({"kernels": "fast"}, ("kernels: expected 'exact' or 'packed', got 'fast'",)),
    ({"kernels": "packed", "target": "memory"}, ("kernels: expected 'exact' for faults in memory",)),
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
    ({"sampling": {"name": "op", "drop_last": "one"}}, ("drop_last: expected an integer of at least 0, got 'one'",)),
    ({"sampling": "stratified"}, ("sampling.by: expected 'site' or 'layer' or 'bit', got nothing",)),
    ({"sampling": "top-score"}, ("expected a fraction or a count",)),
    ({"sampling": "top-score(fraction=2)"}, ("sampling.fraction: expected a number above 0 and of at most 1, got 2",)),
    ({"criterion": "best"}, ("criterion: no criterion matches 'best'",)),
    ({"criterion": ["top-1", "best", {"name": "deviation", "unit": 3}]}, ("3 values are wrong", "criterion[1]",
      "criterion[2].thresholds", "criterion[2].unit")),
    ({"protection": "rangr"}, ("no protection matches 'rangr'; near names: ranger",)),
    ({"protection": ["aspis:2", "parity:x"]}, ("protection[0].fraction: expected a number above 0", "protection[1]")),
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
    ("harden --when rotating:4", ("--when: expected a guard that checks, got rotating:4 and no --guard",)),
    ("inject", ("expected exactly one of count and half_width, got neither",)),
    ("inject --half-width 0.7", ("half_width: expected a number above 0 and below 0.5, got 0.7",)),
    ("inject --sampling exhaustive --count 5", ("expected no count for the sampling exhaustive", "got 5")),
    ("inject --sampling exhaustive --half-width 0.1", ("expected no half_width for the sampling exhaustive",)),
    ("inject --count 3 --fault bitflip(count=2) --flips 3", ("fault.count: expected it once, got it in bitflip(",)),
    ("rank --fault bitflip(count=2) --flips 3", ("fault.count: expected it once",)),
    ("compare --fault bitflip(count=2) --flips 3", ("fault.count: expected it once",)),
    ("compare --arm a=ranger@rotating:4", ("expected a guard that checks, got @rotating:4 and none",)),
    ("compare --threads 0 --batch 0", ("2 values", "--threads: expected an integer of at least 1, got 0", "--batch")),
    ("inspect --seed -1", ("--seed: expected an integer of at least 0, got -1",)),
    ("profile --samples 0 --batch 0 --quantile nan", ("3 values", "--samples: ", "--batch: ", "--quantile: ")),
    ("profile --tolerance -1 --image-quantile 99", ("2 values", "--tolerance: ", "--image-quantile: ")),
    ("rank --samples 0 --fraction 5 --batch 0", ("3 values", "--samples: ", "--fraction: ", "--batch: ")),
    (
        "overhead --blocks 5 --calls 0 --batch 0 --threads 0",
        (
            "4 values",
            "--blocks: expected an integer of at least 6",
        ),
    ),
)
MISSING: tuple[tuple[str, str], ...] = (
    ("inject --count 3 --protection ranger(ranges=nowhere.json)", "protection: ranges: expected a file of ranges"),
    ("inject --count 3 --sampling top-score(scores=nowhere,count=3)", "sampling: scores: expected a file of scores"),
    ("compare --arm a=ranger(ranges=nowhere.json)", "--arm a=ranger(ranges=nowhere.json): ranges: expected a file of"),
    ("harden --ranges nowhere.json", "expected a file of ranges"),
    ("harden --guard aspis:1% --scores nowhere --out h", "expected a file of scores"),
    ("overhead --ranges nowhere.json", "expected a file of ranges"),
    ("profile --merge nowhere.json", "expected a file of a profile"),
    ("inspect --out own.py", "expected a writable output folder, got own.py"),
    ("profile --out own.py", "expected a writable output folder, got own.py"),
    ("rank --out .", "expected a file to write, got the folder ."),
    ("rank --page .", "expected a file to write, got the folder ."),
    ("rank --out own.py/scores", "expected a writable output folder, got own.py"),
    ("inject --count 3 --out own.py", "expected a folder to write, got the file own.py"),
    ("compare --out own.py", "expected a writable output folder, got own.py"),
    ("overhead --out own.py", "expected a writable output folder, got own.py"),
    ("harden --guard parity --out own.py", "expected a folder to write, got the file own.py"),
)
DATALESS = ("harden", "inspect", "overhead")


def model_that_tells(folder: Path) -> str:
    """A factory that leaves a file where it is loaded."""
    marker = folder / "loaded"
    source = f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef net():\n    return None\n"
    (folder / "own.py").write_text(source)
    return f"{folder / 'own.py'}:net"


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str, status: int = 2) -> str:
    assert main(list(arguments)) == status
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
    place = [model_that_tells(tmp_path), *([] if command in DATALESS else ["digits"])]
    said = refusal(capsys, tmp_path, command, *place, *options, "--out", str(tmp_path / "out"))
    assert all(part in said for part in named), said


@pytest.mark.parametrize(("line", "said"), MISSING)
def test_a_file_that_is_not_there_or_in_the_way(
    line: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *options = line.split()
    place = [model_that_tells(tmp_path), *([] if command in DATALESS else ["digits"])]
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, tmp_path, command, *place, *options, status=4)


@pytest.mark.parametrize(
    "command", ["inject --count 3 --bits 99", "rank --score expected-damage --fault bitflip(bits=99)"]
)
def test_what_the_model_alone_can_tell_is_said_before_anything_is_learned(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, *options = command.split()
    protection = ["--protection", "ranger"] if name == "inject" else []
    assert main([name, "lenet-digits", "digits", *options, *protection, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "expected bits in [0, 32) for float32, got 99" in said
    assert "to do" not in said  # no stage of any work has begun
