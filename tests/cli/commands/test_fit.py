"""``hoplon fit``: runs of ``inject`` and ``compare`` against a budget, by exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hoplon.cli.app import main
from tests.support.small_files import write_small_files

RATE = ["--rate", "1000", "--unit", "FIT/Mbit"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of values and of memory, and a comparison."""
    folder = tmp_path_factory.mktemp("runs")
    files = write_small_files(folder)
    assert main(["inject", *files, "--count", "200", "--out", str(folder / "values")]) == 0
    assert main(["inject", *files, "--target", "memory", "--count", "100", "--out", str(folder / "memory")]) == 0
    sizes = ["--value-faults", "100", "--memory-faults", "60", "--guard-faults", "20", "--inputs", "20"]
    arms = ["--no-standard-arms", "--arm", "parity"]
    assert main(["compare", *files, *sizes, *arms, "--out", str(folder / "compared")]) == 0
    return folder


def fit(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["fit", *arguments, *RATE, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_one_arm_of_values_and_memory(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The raw rate is bits x 1,000 FIT/Mbit; the failures lie below, and are the campaign's own for one inference."""
    found = fit(capsys, str(runs / "memory"))
    document = json.loads((runs / "memory" / "results.json").read_text())
    bits = sum(site["bits"] for site in document["at_risk"]["sites"].values())
    (arm,) = found["arms"]
    assert arm["raw_fit"] == pytest.approx(bits / 1e3)
    row = document["summary"][0]
    assert arm["fit"] == pytest.approx(arm["raw_fit"] * (row["failure"] + row["crash"]))
    both = fit(capsys, str(runs / "memory"), str(runs / "values"))["arms"][0]
    assert both["fit"] > arm["fit"]
    assert {part["name"] for part in both["structures"]} == {"values", "weights"}


@pytest.mark.parametrize(("budget", "status", "verdict"), [("1e6", 0, "pass"), ("1e-6", 1, "fail")])
def test_the_exit_status_is_the_verdict(
    budget: str, status: int, verdict: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fit(capsys, str(runs / "memory"), "--budget", budget, status=status)
    assert found["arms"][0]["verdict"] == verdict


def test_undecided_says_how_many_faults_more(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = fit(capsys, str(runs / "memory"))["arms"][0]
    budget = (plain["fit"] + plain["fit_high"]) / 2
    found = fit(capsys, str(runs / "memory"), "--budget", str(budget), status=3)["arms"][0]
    assert found["verdict"] == "undecided"
    assert 100 < found["faults_to_decide"] < 1000  # half the half-width takes four times the faults
    assert found["share_of_budget_low"] < 1 < found["share_of_budget_high"]


def test_arms_of_a_comparison_each_with_its_guards(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {arm["name"]: arm for arm in fit(capsys, str(runs / "compared"), "--exposure", "20")["arms"]}
    assert set(found) == {"none", "parity"}
    assert "guard memory" in {part["name"] for part in found["parity"]["structures"]}
    weights = {
        name: next(part["fit"] for part in arm["structures"] if part["name"] == "weights")
        for name, arm in found.items()
    }
    assert weights["parity"] < weights["none"]  # lives for one inference, not for up to twenty
    assert weights["parity"] > 0  # which it does live for
    assert any("until then as often as" in text for text in found["parity"]["assumptions"])
    alone = fit(capsys, str(runs / "compared"), "--arm", "parity", "--budget", "1e9")
    assert [arm["name"] for arm in alone["arms"]] == ["parity"]


def test_factors_and_codes_change_the_raw_rate(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = fit(capsys, str(runs / "memory"))["arms"][0]
    high = fit(capsys, str(runs / "memory"), "--factor", "altitude=5")
    assert high["arms"][0]["fit_high"] == pytest.approx(5 * plain["fit_high"])
    assert high["raw_rate"]["factors"] == [["altitude", 5.0]]
    assert fit(capsys, str(runs / "memory"), "--ecc", "1:2")["arms"][0]["fit_high"] == 0
    ranged = fit(capsys, str(runs / "memory"), "--rate-low", "500", "--rate-high", "2000")["arms"][0]
    assert ranged["fit_high"] == pytest.approx(2 * plain["fit_high"])


def test_what_is_printed_names_every_assumption(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["fit", str(runs / "memory"), *RATE, "--exposure", "1e6", "--out", str(runs / "fit.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in json.loads((runs / "fit.json").read_text())["arms"][0]["assumptions"]:
        assert " ".join(text.split())[:60] in printed
    assert ">= " in printed


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--rate", "sram"], 2, "iec-61508-2"),
        (["--rate", "1", "--shares", "0.9,0.1,0"], 2, "2-bit upsets"),
        (["--rate", "1", "--ecc", "2"], 2, "--ecc"),
        (["--rate", "1", "--factor", "5"], 2, "NAME=NUMBER"),
        (["--rate", "1", "--arm", "ranger"], 2, "no arm matches"),
        (["--rate", "1", "--exposure", "0"], 2, "exposure"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str], status: int, said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(runs / "memory"), *arguments]) == status
    assert said in capsys.readouterr().err


def test_no_run_is_an_error_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(tmp_path), *RATE]) == 4


def test_rates_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "rates"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "700 to 1200" in printed
    assert "secondary" in printed
