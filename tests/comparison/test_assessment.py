"""The loop behind demo and compare: one seed, one set of figures; bad data is named before long work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hoplon.campaign.results import load_results
from hoplon.comparison.assessment import AssessmentPlan, announcement, assess
from hoplon.errors import DataError, HoplonError
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.protections.ranges import Ranges
from tests.support.networks import small_data, small_net

PLAN = AssessmentPlan(value_faults=100, memory_faults=6, guard_faults=4, latency=False)


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(small_net(), torch.zeros(4, 1, 6, 6), name="small")


def run(program: Program, plan: AssessmentPlan = PLAN, **options: Any) -> dict[str, Any]:
    held_out, calibration = small_data()
    return assess(program, **{"calibration": calibration, "held_out": held_out, "plan": plan, **options}).to_dict()


def test_every_arm_meets_both_kinds_of_fault(program: Program) -> None:
    found = run(program)
    names = ["none", "ranger", "aspis-1%", "aspis-10%", "tmr", "ranger+aspis-1%"]
    assert [(arm["name"], arm["target"]) for arm in found["arms"]] == [
        (name, target) for target in ("values", "memory") for name in names
    ]
    assert {arm["n_faults"] for arm in found["arms"] if arm["target"] == "values"} == {100}
    assert {arm["n_runs"] for arm in found["arms"] if arm["target"] == "memory"} == {6 * found["eligible_inputs"]}
    assert found["population"]["values"]["elements"] == 64 + 4
    assert found["population"]["memory"]["layers"] == ["0.weight", "3.weight"]
    assert found["model_bytes"] == 4 * (36 + 4 + 256 + 4)


def test_one_seed_gives_one_result_and_another_seed_another(program: Program) -> None:
    first, again = run(program), run(program)
    assert all("expected; it took" in found.pop("prediction") for found in (first, again))  # which are times
    assert again == first
    other = run(program, AssessmentPlan(value_faults=100, memory_faults=6, latency=False, seed=1))
    assert other["faults"]["values"]["digest"] != first["faults"]["values"]["digest"]


def test_accuracy_is_that_of_the_whole_held_out_set(program: Program) -> None:
    held_out, _ = small_data()
    found = run(program, AssessmentPlan(value_faults=20, memory_faults=0, inputs=7, latency=False))
    assert found["inputs"] == 7
    assert found["accuracy_inputs"] == len(held_out) == 20
    assert found["arms"][0]["accuracy"] == 0.75
    assert {arm["target"] for arm in found["arms"]} == {"values"}


def test_the_store_holds_ranges_scores_and_every_arm(program: Program, tmp_path: Path) -> None:
    found = run(program, store=tmp_path / "runs")
    assert len(Ranges.load(tmp_path / "runs" / "ranges.json")) == 1
    assert (tmp_path / "runs" / "scores.safetensors").is_file()
    stored = load_results(tmp_path / "runs" / "values" / "ranger")
    ranger = next(arm for arm in found["arms"] if (arm["name"], arm["target"]) == ("ranger", "values"))
    assert stored.summary()[0].failure.estimate == ranger["failure"]


def test_progress_names_the_stages_and_ends_complete(program: Program) -> None:
    told: dict[str, tuple[int, int]] = {}
    run(program, progress=lambda stage, done, total: told.update({stage.partition(",")[0]: (done, total)}))
    assert told == {
        "activation ranges": (16, 16),
        "scores of weights": (16, 16),
        "costs without faults": (1, 1),
        "value faults": (600, 600),
        "memory faults": (60, 60),
    }


def test_the_announcement_counts_what_will_run(program: Program) -> None:
    said = announcement(
        program, small_data()[0], AssessmentPlan(value_faults=1000, memory_faults=50, inputs=10), arms=6
    )
    assert "1,000 value faults in 68 values of 2 layers" in said
    assert "50 memory faults in 292 weights of 2 layers (each met by up to 10 inputs: 500 runs)" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_faults": 0, "memory_faults": 0}, "expected value or memory faults to run, got 0 and 0"),
        ({"value_faults": -1}, "expected value_faults of AssessmentPlan to be an integer of at least 0, got -1"),
        ({"inputs": 0}, "expected inputs of AssessmentPlan to be an integer of at least 1 or None, got 0"),
        ({"calibration": -3}, "expected calibration of AssessmentPlan to be an integer of at least 1 or None, got -3"),
        (
            {"seed": -1},
            "expected seed of AssessmentPlan to be an integer of at least 0 and below 9223372036854775808, got -1",
        ),
    ],
)
def test_a_plan_refuses_numbers_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        AssessmentPlan(**options)


@pytest.mark.parametrize("part", ["held_out", "calibration"])
def test_labels_out_of_range_are_refused_in_both_parts(program: Program, part: str) -> None:
    inputs = dict(zip(("held_out", "calibration"), small_data(), strict=True))[part]
    wrong = Inputs(inputs.x, torch.full((len(inputs),), 7), name=part)
    with pytest.raises(DataError, match=r"expected labels in \[0, 4\), .*got 7"):
        run(program, **{part: wrong})


def test_calibration_without_labels_is_refused(program: Program) -> None:
    with pytest.raises(DataError, match="expected labels in the calibration data"):
        run(program, calibration=Inputs(torch.zeros(4, 1, 6, 6)))


def test_data_of_another_shape_is_refused(program: Program) -> None:
    with pytest.raises(DataError, match=r"expected input 0 of small with shape .*got \(4, 1, 5, 5\)"):
        run(program, held_out=Inputs(torch.zeros(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64)))
