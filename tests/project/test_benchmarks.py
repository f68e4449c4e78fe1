from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

import hoplon as hp
from hoplon.errors import HoplonError, HoplonWarning
from hoplon.faults.table import FaultTable

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_of_architectures_takes_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = script("architectures")
    assert len({one.name for one in benchmark.ARCHITECTURES}) == len(benchmark.ARCHITECTURES) >= 40
    path = tmp_path / "architectures.json"
    benchmark.main(["--only", "squeezenet1_1", "lraspp_mobilenet_v3_large", "--json", str(path)])
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [case["name"] for case in cases] == ["squeezenet1_1", "lraspp_mobilenet_v3_large"]
    for case in cases:
        assert case["form"] == "graph"
        assert {name: step["end"] for name, step in case["steps"].items()} == dict.fromkeys(benchmark.STEPS, "ok")
    assert "squeezenet1_1" in capsys.readouterr().out


def test_the_benchmark_of_architectures_tells_a_foreign_exception_from_a_sentence() -> None:
    def taken(error: Exception | None) -> Any:
        def step() -> None:
            warnings.warn("beside it", HoplonWarning, stacklevel=1)
            if error is not None:
                raise error

        return script("architectures").taken(step)

    assert (taken(None).end, taken(None).warned) == ("ok", ("beside it",))
    assert taken(HoplonError("one sentence")).text == "one sentence"
    assert (taken(HoplonError("")).end, taken(KeyError("x")).end) == ("sentence", "foreign")
    assert "KeyError: 'x' (" in taken(KeyError("x")).text


@pytest.mark.slow
def test_the_benchmark_of_ranger_writes_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ranger.json"
    given = ["--models", "squeezenet1_1", "--batches", "1", "2", "--modes", "eager", "--pixels", "64", "--seconds", "0"]
    script("ranger").main([*given, "--json", str(path)])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["conditions"]["threads"] == 1
    cases = {(case["batch"], case["form"]): case for case in content["cases"]}
    assert set(cases) == {(batch, form) for batch in (1, 2) for form in ("fused", "separate")}
    wanted = {"model", "batch", "pixels", "mode", "form", "ratio", "ratio_high", "ratio_original", "ratio_naive"}
    for (_, form), case in cases.items():
        assert wanted | {"added_passes", "added_bytes"} <= case.keys()
        assert 0 < case["ratio_low"] <= case["ratio"] <= case["ratio_high"]
        # 26 ReLUs, 3 max pools, 8 concatenations, the average pool at the end
        assert case["added_passes"] == (0 if form == "fused" else 26)
        assert case["added_passes_elsewhere"] == 12
        assert case["added_bytes"] == 16 * case["bounded_ops"] == 16 * 38
    assert "squeezenet1_1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_replay_writes_every_case_and_compares_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])  # the last one: there is a statistics.py
    benchmark = script("replay")
    works = [benchmark.Work("torchvision:squeezenet1_1", target, 2, 4, 8, 64) for target in ("values", "memory")]
    monkeypatch.setattr(benchmark, "QUICK", works)
    path = tmp_path / "replay.json"
    benchmark.main(["--quick", "--arms", "hooks", "--json", str(path)])
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [case["target"] for case in cases] == ["values", "memory"]
    for case in cases:
        assert case["outcomes_equal"] is True
        assert case["compared"] > 0
        assert case["speedup_hooks"] == pytest.approx(case["hoplon_faults_per_s"] / case["hooks_faults_per_s"])
        assert case["speedup_pytorchfi"] is case["mrfi_faults_per_s"] is None


def test_the_limit_is_what_lies_after_a_site_and_what_a_window_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the middle of the first map reaches 3 x 3 of 8 x 8 positions of the second, then all of the layer."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])  # the last one: there is a statistics.py
    benchmark = script("limit")
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1), nn.Flatten())
    x = torch.zeros(2, 1, 8, 8)
    program = hp.capture(net.append(nn.Linear(4 * 64, 10)).eval(), x)
    drawn = benchmark.campaign_of(program, x).draw(count=3)
    sites = sorted(program.site_steps[name] for name in ("0:conv", "2:conv", "4:linear"))
    names = [next(name for name, step in program.site_steps.items() if step == site) for site in sites]
    frame = drawn.frame.with_columns(site=pl.Series(names), element=pl.Series([8 * 4 + 4, 0, 9]))
    first, second, last = 2 * 2 * 64 * 9, 2 * 4 * 64 * 18, 2 * 4 * 64 * 10
    given = program, program.leaves(hp.Inputs(x), torch.arange(2), batch=2), FaultTable("values", frame)
    found, ended = benchmark.Parts.of(*given), benchmark.Parts.of(*given, [1])
    whole = 3 * (first + second + last)
    assert found.work == ended.work == pytest.approx(((second + last) + last) / whole)
    assert found.windows == pytest.approx((second * 9 / 64 + 2 * last) / whole)
    assert ended.windows == pytest.approx((second * 9 / 64 + last) / whole)
    assert 0 < found.seconds < 2 / 3
    assert benchmark.times_a_loop(32, 96, 0.25) == 128 / 56


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fused kernel for eval mode")
def test_the_benchmark_of_loops_holds_ratios_against_their_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])  # the last one: there is a statistics.py
    path = tmp_path / "loops.json"
    script("loops").main(["--quick", "--rounds", "1", "--json", str(path)])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert (row["model"], row["inputs"], row["faults"], row["hooks_ran"]) == ("minilm", 32, 50, 50)
    assert row["agree"] >= 48
    assert 0 < row["parts"]["windows"] <= row["parts"]["work"] < 1
    assert row["limit"] == pytest.approx(82 / (32 + 50 * row["parts"]["seconds"]))
    assert row["of_limit"] == pytest.approx(row["ratio"] / row["limit"])
    assert row["limit_in_windows"] == pytest.approx(82 / (32 + 50 * row["parts"]["windows"]))
    assert "minilm" in capsys.readouterr().out
    script("limit").main(["--quick", "--draws", "50"])
    assert "minilm" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_scores_writes_every_case(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    script("importance").main(
        ["--models", "resnet20", "--samples", "16", "--batch", "8", "--rounds", "1", "--json", str(path)]
    )
    cases = {case["score"]: case for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}
    assert set(cases) == {"taylor", "gradient", "fisher", "magnitude", "random", "nisp", "expected_damage"}
    assert all(0 < case["ratio_low"] <= case["ratio"] <= case["ratio_high"] for case in cases.values())


@pytest.mark.slow
@pytest.mark.skipif("HOPLON_DATA" not in os.environ, reason="needs the data in HOPLON_DATA")
def test_the_benchmark_of_proxies_writes_every_row(tmp_path: Path) -> None:
    path = tmp_path / "proxies.json"
    script("proxies").main(["--quick", "--json", str(path)])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {row["faults"] for row in content["proxies"]} == {"bit 30", "1 of 32", "2 of 32", "3 of 32"}
    assert len(content["proxies"]) == 4 * 8
    assert len(content["figure13"]) == 4 * 4 * 5
    for row in content["figure13"]:
        assert row["share"] == row["critical"] / row["n_faults"]
        assert row["share_low"] <= row["share"] <= row["share_high"]


@pytest.mark.slow
def test_the_benchmark_of_known_bits_writes_repairs_and_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = script("known_bits")
    monkeypatch.setattr(benchmark, "TIMED", ("torchvision:squeezenet1_1",))
    path = tmp_path / "known_bits.json"
    benchmark.main(["--quick", "--faults", "300", "--rounds", "2", "--json", str(path)])
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = {(row["bits"], row["arm"]): row for row in content["repairs"]}
    assert set(rows) == {(bits, arm) for bits in (1, 2) for arm in benchmark.ARMS}
    for row in rows.values():
        assert 0 <= row["repaired"] + row["refused"] <= row["failing"] <= row["faults"] == 300
        assert row["interval"][0] <= row["repaired_share"] <= row["interval"][1]
    for bits in (1, 2):
        assert rows[bits, "parity"]["repaired"] == rows[bits, "parity"]["failing"] > 0
        assert rows[bits, "known-bits"]["harm_removed"] > rows[bits, "ranger"]["harm_removed"] > 0
    (price,) = content["costs"]
    assert price["extra_bytes"] == 16 * 52 + 48  # one width of word
    assert 0 < price["known_share"] < 1


@pytest.mark.slow
def test_the_benchmark_of_guards_writes_every_guard(tmp_path: Path) -> None:
    path = tmp_path / "guards.json"
    script("guards").main(["--models", "squeezenet1_1", "--batches", "1", "--seconds", "0", "--json", str(path)])
    (case,) = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert {"model", "batch", "forward_ms", "guards"} <= case.keys()
    guards = {guard["name"]: guard for guard in case["guards"]}
    assert {"tmr", "tmr-tensor", "tmr-sparse", "aspis-1%", "parity", "known-bits", "checksum"} < guards.keys()
    for guard in guards.values():
        assert 0 < guard["check_over_forward_low"] <= guard["check_over_forward"] <= guard["check_over_forward_high"]
        assert 0 < guard["ratio_low"] <= guard["ratio"]
        assert guard["memory_fraction"] == guard["extra_bytes"] / case["weight_bytes"]
    assert guards["tmr"]["memory_fraction"] == 2
    assert guards["parity"]["protected_fraction"] == 1
    assert guards["tmr"]["repair_ms"] > 0 < guards["aspis-1%"]["repair_ms"]
    assert guards["checksum"]["repair_ms"] is None  # it only flags


@pytest.mark.slow
def test_the_benchmark_of_statistics_writes_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    path = tmp_path / "statistics.json"
    given = ["--quick", "--faults", "2048", "--repeats", "5", "--pool", str(tmp_path)]
    script("statistics").main([*given, "--json", str(path)])
    content = json.loads(path.read_text(encoding="utf-8"))
    cases = content["cases"]
    assert {case["arm"] for case in cases} == {case["arm"] for case in content["uniform"]} == {"none", "ranger"}
    for case in cases:
        assert {"model", "half_width", "repeats", "coverage", "runs_uniform", "runs_hoplon", "ratio"} <= case.keys()
        assert case["half_width_mean"] <= case["half_width"]
        assert case["ratio"] == pytest.approx(case["runs_uniform"] / case["runs_hoplon"])
    (memory,) = content["memory"]
    assert max(memory["half_widths"]) <= memory["half_width"]
    assert memory["ratio"] == pytest.approx(memory["runs_uniform"] * len(memory["seeds"]) / sum(memory["runs"]))
    assert memory["runs_uniform"] > memory["runs_uniform_few"] > 0
    assert {row["domain"] for row in content["domains"]} == {"bit 26", "bit 30", "bit 31"}
    (answer,) = content["time_to_answer"]
    (reached,), (spent,), (runs,) = answer["half_width_reached"], answer["hoplon_seconds"], answer["runs_uniform"]
    assert 0 < reached <= answer["half_width"] == cases[0]["half_width"]
    assert answer["ratio"] == pytest.approx(runs * answer["peer_seconds_per_fault"][0] / spent)
    named = answer["peer"].startswith("PyTorchFI")  # plain hooks where that is not installed
    assert cases[0]["time_to_answer_ratio_pytorchfi"] == (answer["ratio"] if named else None)


@pytest.mark.slow
def test_the_benchmark_of_the_reported_estimate_writes_every_cell(tmp_path: Path) -> None:
    path = tmp_path / "bias.json"
    given = ["--quick", "--faults", "2048", "--repeats", "5", "--real", "2", "--pool", str(tmp_path)]
    script("reported_bias").main([*given, "--json", str(path)])
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [cell["arm"] for cell in cells] == ["none", "ranger"]
    for cell in cells:
        assert sum(cell["looks"]) == cell["repeats"] == 5
        assert sum(cell["real"]["looks"]) == cell["real"]["campaigns"] == 2
        assert cell["half_width_mean"] <= cell["half_width"]
        assert {"bias", "bias_relative", "pooled_bias", "coverage", "covers", "runs", "truth"} <= cell.keys()


@pytest.mark.slow
@pytest.mark.skipif("HOPLON_DATA" not in os.environ, reason="needs the data in HOPLON_DATA")
def test_the_benchmark_of_steering_recipes_writes_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "validated.json"
    script("steering_recipes").main(["--quick", "--json", str(path)])
    content = json.loads(path.read_text(encoding="utf-8"))
    (found,) = content["settings"]
    assert found["epochs"] == 1
    assert found["always_zero"] == pytest.approx(5.1144, abs=1e-4)
    assert 0 < found["rmse"] < 10
    assert len(content["data"]) == 64
    assert "rmse" in capsys.readouterr().out


def test_the_benchmark_of_generation_compares_with_naive_reruns(
    tmp_path: Path, hoplon_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOPLON_DATA", str(hoplon_data))
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path))
    path = tmp_path / "generation.json"
    sizes = ["--prompts", "2", "--length", "8", "--tokens", "4", "--repeats", "1"]
    benchmark = script("generation")
    benchmark.main([*sizes, "--faults", "16", "--compared", "6", "--kinds", "keys", "weights", "--json", str(path)])
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [(case["kind"], case["faults"], case["compared"], case["different"]) for case in cases] == [
        ("keys", 16, 6, 0),
        ("weights", 1, 2, 0),
    ]
    assert "times faster" in capsys.readouterr().out
