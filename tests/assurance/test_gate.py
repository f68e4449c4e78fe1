"""The gate on real builds: what must be blocked is, an equal build passes, and the same faults are met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

import hoplon as hp
from hoplon.assurance.baseline import Baseline, Coupling
from hoplon.assurance.ci_reports import write_junit, write_summary
from hoplon.assurance.gate import Claim, Gate, Judgement, record
from hoplon.assurance.pytest_gate import HoplonGate, hoplon_gate  # noqa: F401 -- an entry point of pytest, where installed
from hoplon.errors import DataError, HoplonError, StoreError
from hoplon.files import sealed
from hoplon.stats.intervals import Interval
from tests.assurance import builds

OWN = Path(__file__).with_name("lenet-baseline.json")


@pytest.fixture(scope="module")
def values() -> Baseline:
    """LeNet with Ranger under faults in values."""
    return record(builds.campaign(builds.lenet(), "values", builds.ranger), faults=8192)


@pytest.fixture(scope="module")
def plain_values() -> Baseline:
    return record(builds.campaign(builds.lenet(), "values", builds.nothing), faults=8192)


@pytest.fixture(scope="module")
def memory() -> Baseline:
    """LeNet with KnownBits under faults in weights."""
    return record(builds.campaign(builds.lenet(), "memory", builds.guard), faults=1024)


def test_a_guard_that_was_removed_is_blocked(memory: Baseline) -> None:
    build = builds.campaign(builds.lenet(), "memory", builds.nothing)
    found = Gate(max_increase=0.002).judge(build, baseline=memory)
    assert found.verdict == "fail"
    assert found.same_faults == found.faults


def test_bounds_that_were_widened_are_blocked(values: Baseline) -> None:
    build = builds.campaign(builds.lenet(), "values", lambda program: builds.ranger(program, widened=1e6))
    found = Gate(max_increase=0.002).judge(build, baseline=values)
    assert found.verdict == "fail"
    assert found.same_faults == found.faults


def test_a_layer_in_another_dtype_is_blocked(plain_values: Baseline) -> None:
    """Half as many bits are twice as often one of the few that matter; its faults are fresh, all others the same."""
    build = builds.campaign(builds.InPlace(builds.lenet()), "values", builds.nothing)
    found = Gate(max_increase=0.001).judge(build, baseline=plain_values)
    assert found.verdict == "fail"
    assert found.fresh_sites == ("conv2:conv",)
    assert 0.5 * found.faults < found.same_faults < 0.9 * found.faults


def test_weights_trained_to_be_fragile_are_blocked(plain_values: Baseline) -> None:
    """As right as before without faults, and by a hair."""
    build = builds.campaign(builds.fragile(), "values", builds.nothing)
    found = Gate(max_increase=0.002).judge(build, baseline=plain_values)
    assert found.verdict == "fail"
    assert found.left_out < 0.05 * found.faults


def test_the_same_build_passes_on_the_same_faults(values: Baseline, memory: Baseline) -> None:
    for target, known, protect in (("values", values, builds.ranger), ("memory", memory, builds.guard)):
        limit = 0.005 if target == "values" else 0.02
        found = Gate(max_increase=limit).judge(builds.campaign(builds.lenet(), target, protect), baseline=known)
        assert found.verdict == "pass"
        assert found.claims[0].found.estimate == 0  # to the last fault
        assert found.looks < found.most_looks


def test_a_limit_of_its_own_needs_no_baseline() -> None:
    build = builds.campaign(builds.lenet(), "values", builds.nothing)
    assert Gate(max_failure=0.2, most=4096).judge(build).verdict == "pass"
    assert Gate(max_failure=0.0001, most=4096).judge(build).verdict == "fail"
    found = Gate(max_failure=0.02, most=1024).judge(build)
    assert found.verdict == "undecided"
    more = found.claims[0].more_faults
    assert more is None or more > 0
    assert str(found).startswith("undecided: 1,024 faults")


def test_hoplons_own_lenet_keeps_to_its_baseline(hoplon_gate: HoplonGate) -> None:  # noqa: F811
    """Hoplon gates itself: LeNet with Ranger, under the faults that were recorded when it was hardened."""
    build = builds.campaign(builds.lenet(), "values", builds.ranger)
    found = hoplon_gate(build, baseline=OWN, max_failure=0.01, max_increase=0.005)
    assert found.same_faults == found.faults
    with pytest.raises(pytest.fail.Exception, match=r"hoplon gate, fail: "):
        hoplon_gate(builds.campaign(builds.lenet(), "values", builds.nothing), baseline=OWN, max_increase=0.001)


def test_fresh_faults_strike_the_sites_that_changed_and_no_others(plain_values: Baseline) -> None:
    """Row by row: a fault of a site that both have is the baseline's; one of another gets one of the new site."""
    build = builds.campaign(builds.InPlace(builds.lenet()), "values", builds.nothing)
    coupling = Coupling.of(build.prepare(count=1, seed=0)[0], plain_values)
    assert coupling.baseline is not None
    drawn, same = coupling.draw(1, 1024)
    before = coupling.baseline.draw(1, 1024)
    old, new = (table.frame.with_columns(pl.col("site", "format").cast(pl.String)) for table in (before, drawn))
    assert new["fault"].to_list() == list(range(1024))
    assert ((old["site"] == "conv2:conv").to_numpy() == ~same).all()
    columns = ["fault", "site", "element", "input", "format", "flip"]
    assert new.filter(pl.Series(same)).select(columns).equals(old.filter(pl.Series(same)).select(columns))
    others = new.filter(pl.Series(~same))
    assert others["site"].unique().to_list() == ["conv2:conv"]
    assert others["format"].unique().to_list() == ["bfloat16"]
    assert (others["element"] != old.filter(pl.Series(~same))["element"]).mean() > 0.9  # another stream


def test_what_cannot_be_compared_is_refused(values: Baseline, memory: Baseline) -> None:
    build = builds.campaign(builds.lenet(), "values", builds.ranger)
    gate = Gate(max_increase=0.01)
    with pytest.raises(HoplonError, match="expected target memory as in the baseline"):
        gate.judge(build, baseline=memory)
    other = hp.Campaign(build.program, build.data, sites=build.sites, fault_model=hp.BitFlip(count=2))
    with pytest.raises(HoplonError, match="expected fault model BitFlip"):
        gate.judge(other, baseline=values)
    fewer = hp.Campaign(build.program, builds.data().held_out.sample(10, seed=0), sites=build.sites)
    with pytest.raises(DataError, match="expected the data of the baseline"):
        gate.judge(fewer, baseline=values)
    with pytest.raises(HoplonError, match="expected a baseline"):
        gate.judge(build)
    with pytest.raises(HoplonError, match="got neither"):
        Gate()


def test_a_baseline_comes_back_and_a_damaged_one_is_refused(values: Baseline, tmp_path: Path) -> None:
    file = values.save(tmp_path / "base.json")
    again = Baseline.load(file)
    assert again.document == values.document
    assert np.array_equal(again.shares(), values.shares())
    text = file.read_text()
    file.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match="not as it was written"):
        Baseline.load(file)
    document = json.loads(text)
    document.pop(next(key for key in document if key not in values.document))
    for key, value in (("faults", 1), ("failing", [[10**6, 1]]), ("kind", "x")):
        file.write_text(sealed({**document, key: value}))
        with pytest.raises(StoreError, match="expected a baseline"):
            Baseline.load(file)


def judgement(text: str) -> Judgement:
    claims = tuple(
        Claim(name, 0.001, Interval(0.001, low, high, 0.99, ""), verdict, more)  # type: ignore[arg-type]
        for name, low, high, verdict, more in (
            ("failure", 0.0, 0.001, "pass", 0),
            ("increase", 0.002, 0.003, "fail", 0),
            ("failure", 0.0, 0.003, "undecided", 12_345),
        )
    )
    return Judgement(claims, 5000, 4000, 7, 2, 8, 0.95, text)


HOSTILE = ("a<script>alert(1)</script>", 'b" c="d', "e\x1b[31m\x00", "| f | `g` **h**", "]]>&amp;")


@pytest.mark.parametrize("text", HOSTILE)
def test_reports_of_ci_hold_any_name(text: str, tmp_path: Path) -> None:
    root = ElementTree.parse(write_junit(tmp_path / "out.xml", judgement(text), name=text)).getroot()
    assert {key: root.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    assert [[part.tag for part in case] for case in root] == [
        ["system-out"],
        ["failure", "system-out"],
        ["error", "system-out"],
    ]
    assert "about 12,345 more faults" in str(root[2][0].get("message"))
    summary = write_summary(tmp_path / "out.md", judgement(text)).read_text()
    assert "<script>" not in summary
    assert summary.count("\n| ") == 4  # head and three claims
    assert "**missed**" in summary
    write_summary(tmp_path / "out.md", judgement(text))
    assert (tmp_path / "out.md").read_text().count("### hoplon gate: fail") == 2


def test_a_judgement_is_evidence() -> None:
    from hoplon.report.evidence import evidence_of

    document: dict[str, Any] = {**judgement("net").to_dict(), "command": "hoplon gate"}
    rows = evidence_of("x", {"gate.json": document})["rows"]
    assert [row["verdict"] for row in rows] == ["pass", "fail", "undecided"]
