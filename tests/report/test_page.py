"""The page is one file that loads nothing, and shows the document's numbers."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hoplon.comparison.assessment import AssessmentPlan, assess, standard_arms
from hoplon.errors import StoreError
from hoplon.faults.single_word import BitFlip
from hoplon.formats.fixed import FixedPoint
from hoplon.program.capturing import capture
from hoplon.report import figures, read_document, render, write_document, write_page
from hoplon.report.page import plotly_script, script_safe
from hoplon.report.text import interval
from tests.support.networks import small_data, small_net


class Elements(HTMLParser):
    """Start tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def page(document: dict[str, Any]) -> str:
    return render(document)


def test_what_a_figure_shows_is_reached_without_a_mouse(page: str, document: dict[str, Any]) -> None:
    elements = Elements(page)
    kinds = [tag for tag, attrs in elements.tags if tag == "summary" or attrs.get("role") == "img"]
    assert kinds == ["div", "summary"] * (len(kinds) // 2)
    assert len(kinds) > 8
    for row in document["by_layer"]["memory"]["none"]:
        assert interval(row) in elements.text
    assert all(attrs.get("aria-label") for _, attrs in elements.tags if attrs.get("tabindex") == "0")


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    elements = Elements(page)
    loading = [(tag, attrs) for tag, attrs in elements.tags if {"src", "href", "srcset", "data", "action"} & set(attrs)]
    assert loading == []
    assert {tag for tag, _ in elements.tags} & {"link", "iframe", "img", "object", "embed", "base"} == set()
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = next(attrs["content"] for tag, attrs in elements.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_plotly_is_there_once(page: str) -> None:
    assert page.count(plotly_script()) == 1
    assert len(page) < len(plotly_script()) + 500_000


def test_the_verdict_comes_first_and_every_arm_has_its_numbers(page: str, document: dict[str, Any]) -> None:
    text = Elements(page).text
    assert text.index("One flipped bit in the output") < text.index("Against none")
    for arm in document["arms"]:
        assert interval(arm) in text
    for promised in ("What these numbers mean", "Sampling: element", "Placement: before", document["fingerprint"]):
        assert promised in text


def test_every_figure_has_its_place_and_a_description(page: str) -> None:
    found = re.search(r"const specs = (\{.*?\});\n", page)
    assert found is not None
    specs = json.loads(found[1])
    images = {attrs["id"]: attrs["aria-label"] for tag, attrs in Elements(page).tags if attrs.get("role") == "img"}
    assert set(specs) == set(images)
    assert len(images) >= 6
    assert all(images.values())
    for spec in specs.values():
        assert spec["layout"]["xaxis"]["title"]["text"]


def test_text_of_the_document_cannot_become_markup(document: dict[str, Any]) -> None:
    hostile = copy.deepcopy(document)
    hostile["model"] = "<script>alert(1)</script>"
    hostile["population"]["values"]["layers"][0] = "</script><b>x"
    written = render(hostile)
    assert "<script>alert(1)" not in written
    assert "</script><b>x" not in written
    assert json.loads(script_safe({"a": "</script>&"})) == {"a": "&lt;/script>&amp;"}


def test_zeros_are_drawn_at_their_limit_on_a_logarithmic_axis(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    for arm in changed["arms"]:
        share = {"none": 0.5, "ranger": 0.0, "tmr": 0.001}.get(arm["name"], 0.1)
        arm.update(failure=share, failure_low=share / 2, failure_high=share * 2 or 0.004)
    figure = figures.by_arm(changed, "values")
    assert figure.spec["layout"]["xaxis"]["type"] == "log"
    marks = [trace for trace in figure.spec["data"] if trace["marker"]["symbol"] == "triangle-left-open"]
    assert [(trace["y"], trace["x"]) for trace in marks] == [(["ranger"], [0.4])]
    assert marks[0]["text"] == ["none in 300 faults, at most 0.40 %"]
    floor = 10 ** figure.spec["layout"]["xaxis"]["range"][0]
    assert 0 < floor < 0.1


def test_every_bit_of_fixed_point_is_drawn_without_and_with_bounds() -> None:
    held_out, calibration = small_data()
    program = capture(small_net(), held_out.tensors[0][:4], name="small")
    models = {"": BitFlip(format=FixedPoint(21, 10))}
    plan = AssessmentPlan(value_faults=900, memory_faults=0, latency=False, fault_models=models)
    arms = {name: arm for name, arm in standard_arms().items() if name in ("none", "ranger")}
    found = assess(program, calibration=calibration, held_out=held_out, plan=plan, arms=arms).to_dict()
    assert {arm: [row["bit"] for row in rows] for arm, rows in found["by_bit"]["values"].items()} == {
        "none": [*range(31)],
        "ranger": [*range(31)],
    }
    panels = figures.by_bit(found, "values")
    assert [panel.title for panel in panels] == ["none", "ranger"]
    assert len(panels[1].values) == 31
    layout = panels[1].spec["layout"]
    assert [(note["text"], note["x"]) for note in layout["annotations"]] == [("integer", 20.0), ("fraction", 4.5)]
    assert [line["x0"] for line in layout["shapes"]] == [9.5]


def test_an_axis_of_one_decade_is_linear_and_starts_at_zero(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    for arm in changed["arms"]:
        arm.update(failure=0.02, failure_low=0.01, failure_high=0.03)
    axis = figures.by_arm(changed, "memory").spec["layout"]["xaxis"]
    assert "type" not in axis
    assert axis["range"][0] == 0


def test_arms_with_the_same_runs_share_a_panel(document: dict[str, Any]) -> None:
    titles = [figure.title for figure in figures.by_layer(document, "values")]
    assert titles[0] == "none, aspis-1%, aspis-10%, tmr"


def test_a_document_comes_back(document: dict[str, Any], tmp_path: Path) -> None:
    write_document(tmp_path / "results.json", document)
    assert read_document(tmp_path) == document
    assert write_page(tmp_path / "report.html", document).stat().st_size > 1_000_000


@pytest.mark.parametrize("content", ["not json", "[]", '{"format": 2}', '{"format": 1}'])
def test_another_document_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(StoreError, match="expected .*results"):
        read_document(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected the results of an assessment at .*results.json"):
        read_document(tmp_path)


def test_what_it_was_going_to_take_stands_beside_what_it_took(document: dict[str, Any], page: str) -> None:
    predicted = document["prediction"]
    inputs = document["eligible_inputs"]
    arms = len({arm["name"] for arm in document["arms"]})
    assert predicted.startswith(f"{arms * (300 + 12 * inputs):,} runs, ")
    assert re.search(r" s, [\d.]+ GB expected; it took [\d.,]+ s, [\d.]+ GB$", predicted)
    told = f"all arms, from a timed beginning without protections: {predicted}."
    assert told in Elements(page).text
    older = {key: value for key, value in document.items() if key != "prediction"}
    assert "Planned" not in Elements(render(older)).text
