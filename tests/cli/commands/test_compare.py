"""``compare`` with tables, samplings and arms of one's own; ``inject`` with protections that learn from the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hoplon as hp
from hoplon.campaign.results import load_results
from hoplon.cli.app import main
from tests.support.networks import small_data, small_net

Capsys = pytest.CaptureFixture[str]


def printed(capsys: Capsys, *command: str) -> dict[str, Any]:
    assert main([*command, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def compared(capsys: Capsys, small_files: tuple[str, str], out: Path, options: str) -> dict[str, Any]:
    return printed(capsys, "compare", *small_files, *options.split(), "--guard-faults", "0", "--out", str(out))


def test_repeated_options_are_tables_of_their_own(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    options = (
        "--target memory --kind linear --flips 2 --flips 3 --sampling element --sampling top-score(count=9)"
        " --memory-faults 5 --no-standard-arms --arm most=aspis:50%@every:4 --arm ranger"
    )
    found = compared(capsys, small_files, tmp_path / "out", options)
    tables = [f"memory, flips {flips}, {one}" for flips in (2, 3) for one in ("element", "top-score(count=9)")]
    assert list(dict.fromkeys(arm["faults"] for arm in found["arms"])) == list(found["faults"]) == tables
    assert [arm["name"] for arm in found["arms"][:3]] == ["none", "most", "ranger"]
    assert found["population"][tables[1]]["layers"] == ["3.weight", "3.bias"]
    assert "each 4th forward pass" in found["schedules"]["most"]
    rates = {(arm["faults"], arm["name"]): arm["failure"] for arm in found["arms"]}
    assert rates[tables[1], "most"] == rates[tables[3], "most"] == 0  # all that is struck is protected
    stored = load_results(tmp_path / "out" / "runs" / "memory-flips-3-element" / "none")
    assert stored.summary()[0].n_faults == 5
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "One fault (BitFlip(count=3)) in a word of one of 2 tensors" in page
    assert "Faults in weights: memory, flips 2, element" in page


def test_arms_take_the_fields_of_their_protections(
    capsys: Capsys, small_files: tuple[str, str], tmp_path: Path
) -> None:
    arms = "--arm zero=ranger(policy=zero) --arm tight=ranger(quantile=90%) --arm all=ranger(where=all)+parity"
    arms += " --arm deep=ranger(where=algorithm1-literal,inherent=both-ends,saturating=input)"
    arms += " --arm middle=ranger(policy=median)"
    options = f"--target values --value-faults 30 --no-standard-arms {arms} --where activations"
    found = compared(capsys, small_files, tmp_path / "out", options)
    labels = {"none": [], "zero": ["ranger-activations-zero"], "tight": ["ranger-activations"]}
    labels |= {"all": ["ranger-all", "parity"], "deep": ["ranger-algorithm1-literal-both-ends-input"]}
    labels |= {"middle": ["ranger-activations-median"]}
    assert found["protections"] == labels
    bytes_of = {arm["name"]: arm["extra_bytes"] for arm in found["arms"]}
    assert bytes_of["all"] > bytes_of["zero"] == bytes_of["tight"] > 0
    assert (tmp_path / "out" / "runs" / "ranges2.json").is_file()  # extremes, quantiles, all operators


def test_arms_that_learn_nothing_need_no_labels(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    source = "import torch\nfrom hoplon import Inputs\ndef data():\n    return Inputs(torch.rand(20, 1, 6, 6))\n"
    (tmp_path / "bare.py").write_text(source)
    files = (small_files[0], f"{tmp_path / 'bare.py'}:data")
    found = compared(capsys, files, tmp_path / "out", "--value-faults 0 --memory-faults 4 --no-standard-arms --arm tmr")
    assert [arm["name"] for arm in found["arms"]] == ["none", "tmr"]
    assert "score" not in found["calibration"]


def test_inject_learns_what_its_protections_lack(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    options = ["--protection", "ranger(policy=zero)+aspis:50%", "--target", "memory", "--count", "20", "--seed", "4"]
    found = printed(capsys, "inject", *small_files, *options, "--out", str(tmp_path / "run"))
    held_out, calibration = small_data()
    program = hp.capture(small_net(), torch.zeros(4, 1, 6, 6))
    scores = hp.importance.taylor(
        program, calibration, loss=torch.nn.functional.cross_entropy, sites=hp.Memory("*", buffers=False)
    )
    arm = (hp.Ranger(hp.profile_ranges(program, calibration), policy=hp.values.ToZero()), hp.Aspis(scores, 0.5))
    campaign = hp.Campaign(program, held_out, sites=hp.Memory("*"), protections=arm)
    assert found["digest"] == campaign.run(count=20, seed=4).digest()
    again = printed(capsys, "replay", str(tmp_path / "run"), "--model", small_files[0])
    assert again["digest"] == found["digest"]
