"""The evidence page: rows and verdicts as they are, and no text of a user's that runs."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hoplon.cli.app import main
from hoplon.errors import DataError
from hoplon.files import write_json
from hoplon.report.evidence import NOT_SHOWN, evidence_of, render_evidence

HOSTILE = (
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "</title><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;",
)


def document_of(text: str = "at most 10 FIT", verdict: str = "pass") -> dict[str, Any]:
    row = {"requirement": text, "test": f"100 faults ({text})", "figure": "3 [1, 9] FIT", "unit": "FIT"}
    return {
        "format": 1,
        "command": f"hoplon fit {text}",
        "evidence": [{**row, "value": 3.0, "low": 1.0, "high": 9.0, "verdict": verdict}],
        "assumptions": [f"assumed: {text}"],
    }


class Elements(HTMLParser):
    """All elements with their attributes, and all text, as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_rows_verdicts_assumptions_and_limits_are_on_the_page() -> None:
    documents = {"fit.json": document_of(), "gate.json": document_of("failure at most 0.1 %", "undecided")}
    page = Elements(render_evidence(evidence_of("Release 7", documents)))
    text = " ".join(" ".join(page.text).split())
    for said in ("Release 7", "at most 10 FIT", "3 [1, 9] FIT", "2 requirements: 1 met, 1 undecided.", *NOT_SHOWN):
        assert said in text
    assert "assumed: failure at most 0.1 %" in text
    assert "hoplon fit at most 10 FIT" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_documents_is_shown_and_never_runs(text: str) -> None:
    plain = Elements(render_evidence(evidence_of("x", {"y": document_of("z")})))
    page = Elements(render_evidence(evidence_of(text, {text: document_of(text)})))
    assert page.found == plain.found  # not one element or attribute more
    assert not [
        tag for tag, attributes in page.found if tag == "script" or any(key.startswith("on") for key in attributes)
    ]
    assert "".join(page.text).count(text) >= 6  # title, heading, requirement, test, assumption, source
    policy = [attributes for tag, attributes in page.found if tag == "meta" and "content" in attributes]
    assert any("default-src 'none'" in str(one["content"]) for one in policy)


@pytest.mark.parametrize(
    "broken", [{}, {"evidence": []}, {"evidence": [{"requirement": "x"}]}, {"evidence": [{"verdict": "<b>"}]}]
)
def test_documents_of_something_else_are_refused_by_name(broken: dict[str, Any]) -> None:
    document = document_of()
    document.update(broken) if broken else document.clear()
    with pytest.raises(DataError, match="in other.json"):
        evidence_of("x", {"other.json": document})
    with pytest.raises(DataError, match="a document of evidence"):
        render_evidence(document)


def test_no_test_is_no_evidence() -> None:
    with pytest.raises(DataError, match="got none"):
        evidence_of("x", {})


def test_the_command_collects_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = document_of(), document_of("failure at most 0.1 %", "fail")
    write_json(tmp_path / "fit.json", first)
    write_json(tmp_path / "gate.json", copy.deepcopy(second))
    files = [str(tmp_path / name) for name in ("fit.json", "gate.json")]
    assert main(["evidence", *files, "--title", "Release <7>", "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in found["rows"]] == ["pass", "fail"]
    assert "Release &lt;7&gt;" in (tmp_path / "out" / "evidence.html").read_text()
    assert main(["evidence", str(tmp_path / "missing.json")]) == 4
    (tmp_path / "broken.json").write_text("{")
    assert main(["evidence", str(tmp_path / "broken.json"), "--out", str(tmp_path / "out")]) == 4
