"""The verdict says what the numbers say, and claims no factor that they do not carry."""

from __future__ import annotations

from typing import Any

import pytest

from hoplon.report.verdicts import improvement, paragraphs_of


def row(name: str, failure: float, low: float, high: float, **other: Any) -> dict[str, Any]:
    difference = other.pop("difference", None)
    limits = (None, None, None) if difference is None else difference
    return {
        "name": name,
        "target": "values",
        "failure": failure,
        "failure_low": low,
        "failure_high": high,
        "n_faults": 1000,
        "difference": limits[0],
        "difference_low": limits[1],
        "difference_high": limits[2],
        "acts_on_target": name != "none",
        "latency_ratio": 1.2,
        "latency_low": 1.1,
        "latency_high": 1.3,
        "extra_bytes": 50,
        "accuracy": 0.9,
        **other,
    }


NONE = row("none", 0.02, 0.018, 0.022)


def sentences(
    *arms: dict[str, Any],
    protections: dict[str, list[str]] | None = None,
    gain: tuple[float, float] = (-0.01, 0.01),
    by_layer: dict[str, Any] | None = None,
) -> tuple[str, ...]:
    pairs = [
        {"name": arm["name"], "over": other["name"], "difference_low": gain[0], "difference_high": gain[1]}
        for arm in arms
        for other in arms
    ]
    document = {
        "pairs": {"values": pairs},
        "model": "net",
        "arms": arms,
        "confidence": 0.95,
        "model_bytes": 1000,
        "protections": protections or {arm["name"]: [arm["name"]] for arm in arms},
        "by_bit": {"values": {"none": []}},
        "by_layer": by_layer or {},
    }
    (paragraph,) = paragraphs_of(document)
    return paragraph.sentences


def test_a_factor_needs_intervals_that_do_not_overlap() -> None:
    clear = row("a", 0.002, 0.001, 0.003, difference=(-0.018, -0.02, -0.016))
    overlapping = row("a", 0.015, 0.010, 0.0185, difference=(-0.005, -0.006, -0.004))
    assert "10 times fewer failures (at least 6.0)" in sentences(NONE, clear)[1]
    assert "fewer failures," in sentences(NONE, overlapping)[1]
    assert "times fewer" not in sentences(NONE, overlapping)[1]


def test_no_factor_from_no_failures() -> None:
    none_seen = row("a", 0.0, 0.0, 0.0038, difference=(-0.02, -0.022, -0.018))
    said = sentences(NONE, none_seen)[1]
    assert "leaves no failure in 1,000 faults (at most 0.38 % at 95 %)" in said
    assert "times fewer" not in said


def test_touching_intervals_are_no_factor() -> None:
    assert improvement({"failure": 0.01, "failure_high": 0.018}, NONE) == "fewer failures"
    assert improvement({"failure": 0.01, "failure_high": 0.0179}, NONE).startswith("2.0 times fewer failures")


def test_an_unprotected_network_without_failures_gets_a_limit() -> None:
    assert "at most 0.40 % of cases (none seen in 1,000 faults" in sentences(row("none", 0.0, 0.0, 0.004))[0]


def test_arms_that_change_nothing_worsen_or_do_not_act_are_named_as_such() -> None:
    unclear = row("dull", 0.019, 0.017, 0.021, difference=(-0.001, -0.003, 0.001))
    worse = row("bad", 0.03, 0.028, 0.032, difference=(0.01, 0.008, 0.012))
    idle = row("guard", 0.02, 0.018, 0.022, difference=(0.0, -0.001, 0.001), acts_on_target=False)
    said = sentences(NONE, unclear, worse, idle)
    assert said[0].startswith(
        "bad: the network fails more often than unprotected, in 3.00 % [2.80, 3.20] instead of 2.00 %"
    )
    assert said[2:] == (
        "dull: no difference to the unprotected network was detected in this run.",
        "guard: guards of stored weights, not meant for these faults.",
    )


def test_an_arm_that_does_harm_is_named_first_with_the_sites_whose_faults_turned() -> None:
    worse = row("bad", 0.03, 0.028, 0.032, difference=(0.01, 0.008, 0.012))
    first = sentences(NONE, worse | {"turned": {"act:mul": 12, "fc:linear": 1}})[0]
    assert first.endswith("; faults that turned into failures struck act:mul (12 runs) and fc:linear (1 run).")


def test_a_combination_is_compared_with_its_parts() -> None:
    part = row("a", 0.002, 0.001, 0.003, difference=(-0.018, -0.02, -0.016))
    both = row("a+b", 0.0015, 0.0008, 0.0025, difference=(-0.0185, -0.02, -0.016))
    protections = {"none": [], "a": ["a"], "a+b": ["a", "b"]}
    wanted = "a+b: no gain over a alone was detected in this run."
    assert wanted in sentences(NONE, part, both, protections=protections, gain=(-0.001, 0.0))
    shown = sentences(NONE, part, both, protections=protections, gain=(-0.001, -0.0001))
    assert wanted not in shown  # the same faults tell the arms apart although their own intervals overlap
    assert "13 times fewer" in shown[1]


@pytest.mark.parametrize(("low", "phrase"), [(1.1, "1.20 times the latency"), (0.9, "not measurably different")])
def test_a_latency_whose_interval_holds_one_is_no_cost(low: float, phrase: str) -> None:
    arm = row("a", 0.002, 0.001, 0.003, difference=(-0.018, -0.02, -0.016), latency_low=low)
    assert phrase in sentences(NONE, arm)[1]


def test_costs_name_their_denominator_and_a_change_of_accuracy() -> None:
    arm = row("a", 0.002, 0.001, 0.003, difference=(-0.018, -0.02, -0.016), accuracy=0.89)
    assert "50 B more memory (5.0 % of the model) and 89.00 % accuracy instead of 90.00 %" in sentences(NONE, arm)[1]
