"""The commands from the outside: JSON, files, exit codes, one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hoplon.cli.app import main
from hoplon.cli.commands.demo import FULL
from hoplon.faults import FaultTable
from hoplon.files import read_json
from hoplon.injection.injector import Injector
from tests.support.networks import small_data

PROMISED = {
    "name", "target", "failure", "failure_low", "failure_high", "sdc", "nonfinite", "n_faults", "n_inputs", "n_runs",
    "accuracy", "latency_ratio", "extra_bytes",
}  # fmt: skip
ARMS = ["none", "ranger", "aspis-1%", "aspis-10%", "tmr", "ranger+aspis-1%"]


def demo_json(capsys: pytest.CaptureFixture[str], out: Path) -> dict[str, Any]:
    assert main(["demo", "--quick", "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(captured.out)
    assert f"wrote {out / 'report.html'}" in captured.err
    return found


def test_demo_prints_one_object_with_what_is_promised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = demo_json(capsys, tmp_path / "out")
    assert [(arm["name"], arm["target"]) for arm in found["arms"]] == [
        (name, target) for target in ("values", "memory") for name in ARMS
    ]
    assert all(set(arm) >= PROMISED for arm in found["arms"])
    assert found["seed"] == 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == 1
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert read_json(tmp_path / "out" / "results.json") == found
    assert (tmp_path / "out" / "runs" / "memory" / "tmr" / "manifest.json").is_file()


def test_one_seed_gives_one_document_and_replaces_the_run_before(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    documents = []
    for _ in range(2):
        command = ["compare", *small_files, "--value-faults", "40", "--memory-faults", "4"]
        assert main([*command, "--seed", "2", "--json", "--out", str(tmp_path / "out")]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    planned = [document.pop("prediction").partition(" runs, ")[0] for document in documents]  # the rest is time
    for arm in (arm for document in documents for arm in document["arms"]):
        for measured in ("latency_ratio", "latency_low", "latency_high", "latency_ms"):
            del arm[measured]
    assert documents[0] == documents[1]
    assert planned[0] == planned[1]
    assert not (tmp_path / "out" / "runs.partial").exists()


def test_compare_takes_the_users_own_model_and_data(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    options = [
        "--value-faults",
        "50",
        "--memory-faults",
        "3",
        "--inputs",
        "8",
        "--criterion",
        "top-2",
        "--threads",
        "1",
    ]
    assert main(["compare", *small_files, *options, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["criterion"] == "top-2"
    assert (found["inputs"], found["accuracy_inputs"]) == (8, 20)
    assert found["arms"][0]["latency_ratio"] > 0
    assert "--criterion top-2" in found["command"]


def test_tables_and_verdict_go_to_stdout_and_messages_to_stderr(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    options = ["--value-faults", "50", "--memory-faults", "0", "--out", str(tmp_path / "out")]
    assert main(["compare", *small_files, *options]) == 0
    captured = capsys.readouterr()
    assert "Value faults (wrong values in flight): 50 faults" in captured.out
    assert "makes the unprotected" in captured.out
    assert "50 value faults in 68 values of 2 layers" in captured.err
    assert "value faults: 300 to do" in captured.err
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").is_file()


def test_further_arms_and_faults_in_guards(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    options = ["--value-faults", "20", "--memory-faults", "8", "--guard-faults", "16", "--out", str(tmp_path / "out")]
    arms = ["parity", "ranger+known-bits+parity", "sec-ded-memory"]
    given = [part for arm in arms for part in ("--arm", arm)]
    assert main(["compare", *small_files, *options, *given, "--json"]) == 0
    captured = capsys.readouterr()
    assert "16 faults in what the guards of an arm hold; in 9 arms of protection" in captured.err
    found = json.loads(captured.out)
    rows = {row["name"]: row for row in found["arms"] if row["target"] == "memory"}
    assert set(arms) < rows.keys()
    assert found["protections"]["ranger+known-bits+parity"] == ["ranger", "known-bits", "parity"]
    for name in ("parity", "ranger+known-bits+parity"):
        assert rows[name]["failure"] == rows[name]["guard_failure"] == 0
        assert (rows[name]["guard_faults"], rows[name]["guard_bits"] > 0) == (16, True)
    assert rows["none"]["failing_bits"] == pytest.approx(rows["none"]["failure"] * rows["none"]["bits_at_risk"])
    assert rows["sec-ded-memory"]["latency_ratio"] is None
    assert "detected for certain" in found["guarantees"]["parity"]
    assert "--arm ranger+known-bits+parity" in found["command"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Failing bits of those at risk</th>" in page
    assert f"Its class: {found['guarantees']['sec-ded-memory']}." in page


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("rangr", "--arm rangr: no protection matches 'rangr'; near names: ranger"),
        ("aspis:2", "expected a number above 0 and of at most 1"),
    ],
)
def test_an_unknown_arm_is_refused_before_any_work(
    arm: str, message: str, capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    assert message in failing(capsys, "compare", *small_files, "--arm", arm, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_compare_goes_on_with_what_an_interrupted_run_left(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["compare", *small_files, "--value-faults", "40", "--memory-faults", "4", "--out", str(tmp_path / "out")]
    run = Injector.runs

    def interrupted(evaluator: Injector, table: FaultTable, **options: Any) -> Any:
        if evaluator.overlay.label == "tmr":
            raise KeyboardInterrupt
        return run(evaluator, table, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Injector, "runs", interrupted)
        assert main(command) == 130
    kept = tmp_path / "out" / "runs.partial"
    assert f"Interrupted. Saved: 10 finished arms in {kept}. Resume with --resume" in capsys.readouterr().err
    first = (kept / "values" / "none" / "runs" / "unit-00000000.parquet").stat().st_mtime_ns
    assert main([*command, "--resume"]) == 0
    runs = tmp_path / "out" / "runs"
    assert not kept.exists()
    assert (runs / "values" / "none" / "runs" / "unit-00000000.parquet").stat().st_mtime_ns == first
    assert main([*command, "--resume", "--seed", "1"]) == 4
    assert "expected the campaign of" in capsys.readouterr().err


def failing(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The last line on stderr of a command that has to refuse its input."""
    assert main(list(arguments)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("hoplon: ")
    return line


def test_an_unknown_model_lists_near_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = failing(capsys, "compare", "lenet-digit", "digits", "--out", str(tmp_path))
    assert "no zoo model matches 'lenet-digit'; near names: lenet-digits" in line


def test_missing_data_says_what_to_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    line = failing(capsys, "compare", "resnet20-cifar10", "cifar10", "--out", str(tmp_path), status=4)
    assert "set HOPLON_DATA to the folder that holds it" in line


@pytest.mark.parametrize("command", [["demo"], ["compare", "no-such-model", "no-such-data"]])
def test_an_unwritable_folder_is_named_before_any_work(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*command, "--out", str(tmp_path / "file" / "out")]) == 4
    captured = capsys.readouterr()
    assert captured.err.startswith("hoplon: expected a writable output folder, got")
    assert captured.err.endswith("choose another with --out\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "best"], "criterion: no criterion matches 'best'"),
        (["--inputs", "0"], "inputs: expected an integer of at least 1, got 0"),
        (["--threads", "0"], "--threads: expected an integer of at least 1, got 0"),
        (["--value-faults", "0", "--memory-faults", "0"], "expected value or memory faults to run"),
        (["--seed", "-1"], "--seed: expected an integer of at least 0, got -1"),
    ],
)
def test_options_out_of_range(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in failing(capsys, "compare", "lenet-digits", "digits", *options, "--out", str(tmp_path))


def test_labels_out_of_range(capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path) -> None:
    held_out, _ = small_data()
    np.savez(tmp_path / "bad.npz", x=np.asarray(held_out.x), y=np.full(len(held_out), 9))
    files = (small_files[0], str(tmp_path / "bad.npz"))
    line = failing(capsys, "compare", *files, "--out", str(tmp_path / "out"), status=4)
    assert "expected labels in [0, 4)" in line


def test_a_misspelt_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--sed", "1"]) == 2
    assert "--sed" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], small_files: tuple[str, str], tmp_path: Path
) -> None:
    out, options = tmp_path / "out", ["--value-faults", "40", "--memory-faults", "0", "--out", str(tmp_path / "out")]
    assert main(["compare", *small_files, *options]) == 0
    before = (out / "results.json").read_text()
    (tmp_path / "stopped.py").write_text(
        "import torch\n\nclass Stopped(torch.nn.Module):\n"
        "    def forward(self, x):\n        raise KeyboardInterrupt\n\n"
        "def net():\n    return Stopped().eval(), torch.zeros(4, 1, 6, 6)\n"
    )
    assert main(["compare", f"{tmp_path / 'stopped.py'}:net", small_files[1], *options]) == 130
    assert "Interrupted. Saved: nothing new; earlier results in" in capsys.readouterr().err
    assert (out / "results.json").read_text() == before
    assert (out / "runs" / "values" / "none" / "manifest.json").is_file()


def test_threads_are_put_back(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    assert main(["compare", "nothing", "digits", "--threads", str(threads + 1), "--out", str(tmp_path)]) == 2
    assert torch.get_num_threads() == threads


def test_the_plan_of_the_demo_is_large_enough_to_mean_something() -> None:
    assert FULL.value_faults >= 5000
    assert FULL.memory_faults >= 1000
    assert FULL.inputs is None
