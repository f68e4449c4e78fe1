from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hoplon.errors import HoplonError, StoreError
from hoplon.stats.intervals import wilson
from hoplon_studies import Findings, Part, Row, Study, Table, profile_named, run_study, write_pages
from hoplon_studies.aspis import study as aspis
from hoplon_studies.driving import study as driving
from hoplon_studies.framework.claims import RULES, Claim, Evidence, Question, verdict_of
from hoplon_studies.framework.digits import cell, here, rounded
from hoplon_studies.framework.grids import Grid, tabulated, times_fewer
from hoplon_studies.framework.page import as_markdown, judged_again
from hoplon_studies.framework.rows import DIFFERENCE
from hoplon_studies.framework.study import Published
from hoplon_studies.ranger import study as ranger
from tests.reference.study_figures import verdicts
from tests.support.pages import LONG, OFTEN, default_reasons, repeated

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STUDIES = {"ranger": ranger.STUDY, "aspis": aspis.STUDY, "driving": driving.STUDY}
ROW = Row("Fig. 6", "LeNet", "MNIST", "top-1", "%", setting="16 bits", failure=True)


def rate(failures: int, arm: str, **changes: Any) -> Row:
    row = dataclasses.replace(ROW, arm=arm, **changes)
    return row.found(wilson(failures, 1000), n=1000, seed=0)


@pytest.mark.parametrize("name", STUDIES)
def test_a_stored_page_is_short_says_nothing_often_and_follows_from_its_document(name: str) -> None:
    document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if document["format"] == 1:
        pytest.skip("a page of before verdicts; the study has to run again")
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert as_markdown(document) == page
    assert {**judged_again(document, STUDIES[name]), "seal": document["seal"]} == document
    assert len(page.splitlines()) <= 350
    assert repeated(page) == {}
    assert default_reasons(document) == []
    assert verdicts(RESULTS, name) == len(document["claims"]) > 5


def test_a_default_reason_and_a_repeated_sentence_are_found() -> None:
    row = dataclasses.replace(ROW, here=1.0, why="because of a reason").as_json()
    assert default_reasons({"rows": [row] * 4}) == ["because of a reason"]
    assert default_reasons({"rows": [row] * 3}) == []
    assert default_reasons({"rows": [row | {"why": "stands in for ResNet50; 64 images"}]})
    line = "| a | one two three four five six |\n"
    assert repeated(line * 4) == {"one two three four five six": 4}
    assert repeated(line * 3) == {}


def test_a_page_can_be_made_again_from_its_document(tmp_path: Path) -> None:
    def one(context: object) -> Findings:
        shown, kept = Table("shown", ("x",), ((1,),)), Table("kept", ("x",), ((2,),), detail=True)
        return Findings(rows=(rate(20, "none"), rate(2, "ranger")), tables=(shown, kept), text=("Words.",))

    study = Study("ranger", "A study", ("Of nothing.",), (Part("one", "First", one),), ranger.headlines)
    pages = write_pages(tmp_path, run_study(study, out=tmp_path, profile=profile_named("quick")))
    document = json.loads(pages.document.read_text())
    page = pages.markdown.read_text()
    assert as_markdown(document) == page
    assert "| LeNet, MNIST | 2.0 [1.3, 3.1] | 0.2 [0.1, 0.7] | 10 [1.8, 56] |" in page
    assert "*shown*" in page
    assert "*kept*" not in page
    assert [table["title"] for table in document["parts"][0]["tables"]] == ["shown", "kept"]
    with pytest.raises(StoreError, match="expected a study's document of format 2, got 1; run the study again"):
        as_markdown(document | {"format": 1})


@pytest.mark.parametrize("name", STUDIES)
def test_without_a_row_every_claim_is_open_and_says_why(name: str) -> None:
    found = list(STUDIES[name].claims(Evidence((), Published(name))))
    assert len({claim.name for claim in found}) == len(found) > 5
    assert {claim.verdict for claim in found} <= {"open", "confirmed"}
    assert all(claim.because and claim.place and claim.paper and not claim.here for claim in found)
    assert (
        max(Counter(claim.because for claim in found if len(claim.because.split()) >= LONG).values(), default=0)
        <= OFTEN
    )


@pytest.mark.parametrize("name", STUDIES)
def test_figures_of_claims_are_published_ones(name: str) -> None:
    """A number in the paper's column is a value of published/NAME.json or stands in the words quoted there."""
    folder = Path(str(ranger.__file__)).parents[1] / "published"
    values = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["values"]
    known = " ".join(f"{entry['value']} {entry['place']}" for entry in values)
    numbers = set(re.findall(r"\d[\d,]*(?:\.\d+)?", known))
    numbers |= {f"{float(number.replace(',', '')):g}" for number in numbers}
    for claim in STUDIES[name].claims(Evidence((), Published(name))):
        said = re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"(Table|Fig\.) \w+", "", claim.paper))
        assert {number.rstrip(",") for number in said} <= numbers, claim


def judged(verdict_rows: list[Row], rule: str, *wanted: float, comparable: bool = True) -> str:
    return verdict_of(rule, wanted, verdict_rows, comparable=comparable)


def test_a_verdict_follows_from_limits_alone() -> None:
    few, some, many = rate(5, "ranger"), rate(50, "none"), rate(200, "tanh")
    assert judged([some], "holds", 5.3) == "confirmed"
    assert judged([some], "holds", 98.0) == "refuted"
    assert judged([some], "holds", 98.0, comparable=False) == "not comparable"
    assert judged([few], "at most", 1.2) == "confirmed"
    assert judged([few], "at most", 0.44) == "open"
    assert judged([few], "at most", 0.1) == "refuted"
    assert judged([many], "at least", 15.0) == "confirmed"
    assert judged([many, some], "above", 1.0) == "confirmed"
    assert judged([many, some], "above", 5.0) == "open"
    assert judged([many, some], "above", 10.0) == "refuted"
    assert judged([some, rate(55, "none")], "between", 3, 8) == "confirmed"
    assert judged([some, rate(55, "none")], "between", 3, 6.6) == "open"
    assert judged([some, many], "between", 3, 6.6) == "refuted"
    assert judged([some, few], "lower") == "confirmed"
    assert judged([few, some], "lower") == "refuted"
    assert judged([some, rate(45, "none")], "lower") == "open"
    assert judged([some, rate(45, "none")], "unchanged") == "confirmed"
    assert judged([some, rate(70, "none")], "unchanged") == "open"
    assert judged([some, few], "unchanged") == "refuted"
    assert judged([many, few], "fewer", 10.0) == "confirmed"
    assert judged([some, few], "fewer", 10.0) == "open"
    assert judged([some, few], "fewer", 34.0) == "refuted"
    assert judged([some, few], "times", 10.0) == "confirmed"
    assert judged([some, few], "times", 2.77) == "refuted"
    exact = dataclasses.replace(ROW, here=0.388)
    assert judged([exact], "equal", 0.388) == "confirmed"
    assert judged([exact], "equal", 0.518) == "refuted"
    assert judged([exact], "about", 0.36) == "confirmed"
    assert judged([exact], "about", 0.3) == "refuted"
    with pytest.raises(HoplonError, match="expected a rule of holds, at most"):
        judged([exact], "nearly", 1.0)
    assert len(RULES) == 11


def asked(rows: list[Row], evidence: Evidence, place: str = "IV") -> Claim:
    question = Question("left", "Few are left", place, "0.44 %", "at most", [0.1])
    return evidence.judge(question, rows, because="so", lacks="not struck")


def test_a_claim_is_open_until_its_row_is_there_and_a_stand_in_refutes_nothing() -> None:
    own, other = rate(50, "ranger"), rate(50, "ranger", model="ResNet", stands_for="ResNet50")
    evidence = Evidence([other, own], {})
    assert (asked([], evidence).verdict, asked([], evidence).because) == ("open", "not struck")
    claim = asked(evidence.found(model="LeNet"), evidence)
    assert (claim.verdict, claim.rows, claim.here) == ("refuted", (1,), "5.0 [3.8, 6.5] %")
    claim = asked(evidence.found(model="ResNet"), evidence)
    assert (claim.verdict, claim.comparable) == ("not comparable", False)
    claim = asked(evidence.found(model="ResNet"), evidence, "beside; IV")  # of this network, whose figure it is
    assert (claim.verdict, claim.comparable) == ("refuted", True)


def test_evidence_pairs_arms_of_one_line() -> None:
    rows = [rate(9, "ranger"), rate(50, "none"), rate(40, "none", model="AlexNet"), ROW.missing("no weights here")]
    evidence = Evidence(rows, {})
    assert evidence.arms("none", "ranger", what="top-1") == [rows[1], rows[0]]
    assert evidence.found(model=("AlexNet", "VGG11")) == [rows[2]]
    assert evidence.lacking(where="Fig. 6") == "no weights here"
    assert evidence.lacking(where="Fig. 7") == ""


def table(*rows: Row) -> Grid:
    (grid,) = tabulated(rows)
    return grid


def test_a_table_has_one_line_per_network_with_its_arms_side_by_side() -> None:
    absent = dataclasses.replace(ROW, model="VGG16").missing("no weights here")
    paper = dataclasses.replace(rate(3, "ranger"), paper=0.44)
    stand_in = [rate(90, arm, model="VGG11", stands_for="VGG11 on GTSRB") for arm in ("none", "ranger")]
    difference = rate(147, DIFFERENCE)
    grid = table(rate(150, "none"), paper, difference, *stand_in, absent)
    assert grid.caption == "**Fig. 6**: 16 bits; top-1; in %; n 1,000"
    assert grid.heads == ("network", "none", "ranger: paper", "ranger: here", "times fewer", "difference")
    assert [line[0] for line in grid.lines] == ["LeNet, MNIST", "VGG11, MNIST †"]
    assert grid.lines[0][1:4] == ("15.0 [12.9, 17.3]", "0.44", "0.3 [0.1, 0.9]")
    assert grid.lines[0][5].startswith("14.7")
    assert grid.lines[1][2:] == ("", "9.0 [7.4, 10.9]", "1 [0.67, 1.5]", "")
    assert grid.absent == "Not here: VGG16, MNIST (no weights here)."


def test_names_of_networks_break_no_table() -> None:
    arms = [rate(number, f"guard {number}", model=model) for number in range(1, 7) for model in ("a|b", "c\nd")]
    assert table(*arms).heads == ("arm", "a\\|b, MNIST", "c d, MNIST")


def test_many_arms_stand_below_each_other_and_places_and_settings_apart() -> None:
    arms = [rate(number, f"guard {number}", model=model) for number in range(1, 7) for model in ("a", "b")]
    grid = table(*arms)
    assert grid.heads == ("arm", "a, MNIST", "b, MNIST")
    assert len(grid.lines) == 6
    assert len(list(tabulated([*arms, rate(1, "none", setting="32 bits"), rate(1, "none", where="Fig. 9")]))) == 3
    assert list(tabulated([dataclasses.replace(ROW, here=1.0, detail=True)])) == []
    assert list(tabulated([ROW.missing("gone")], [ROW])) == []  # the page has said so already


def test_counts_stand_by_network_and_reasons_in_a_last_column() -> None:
    rows = [
        Row("Table II", model, "-", what, paper=1, here=2, why="counted twice" if what == "sites" else "")
        for model in ("a", "b")
        for what in ("weights", "layers", "sites")
    ]
    grid = table(*rows)
    assert grid.heads == ("what", "a: paper", "a: here", "b: paper", "b: here", "remark")
    assert grid.lines[2] == ("sites", "1", "2", "1", "2", "counted twice")


def test_units_that_differ_by_arm_stand_in_the_heads() -> None:
    known = [("none", "million", 24.622), ("ranger", "million", 24.723), ("added", "%", 0.412)]
    grid = table(*(Row("Table III", "LeNet", "-", "operations", unit, here=one, arm=arm) for arm, unit, one in known))
    assert grid.heads == ("network", "none, million", "ranger, million", "added, %")
    assert grid.lines == (("LeNet", "24.622", "24.723", "0.412"),)


def test_as_many_digits_as_are_known() -> None:
    assert (cell(52.936), cell(52.94), cell(24.722), cell(24.723), cell(309604.0)) == (
        *("52.936", "52.94", "24.722", "24.723"),
        "309,604",
    )
    row = dataclasses.replace(ROW, here=26.6412, low=25.43, high=27.88)
    assert here(row) == "26.6 [25.4, 27.9] %"
    assert here(dataclasses.replace(row, low=20.1, high=34.9)) == "27 [20, 35] %"
    assert here(dataclasses.replace(row, here=0.0, low=0.0, high=0.07677)) == "0 [0, 0.08] %"
    assert here(dataclasses.replace(row, here=100.0, low=99.923, high=100.0)) == "100.00 [99.92, 100.00] %"
    assert here(dataclasses.replace(row, here=26.641234, low=None, high=None)) == "26.64 %"
    assert rounded(1234.5, 60) == "1,234"


def test_times_fewer_is_said_only_where_limits_let_it() -> None:
    assert times_fewer(rate(200, "none"), rate(0, "ranger")) == "at least 46"
    assert times_fewer(rate(200, "none"), rate(20, "ranger")).startswith("10 [5.7, ")
    assert times_fewer(rate(0, "none"), rate(0, "ranger")) == ""
    assert times_fewer(ROW, rate(20, "ranger")) == ""
