"""The pages of docs/: their Python blocks run as they stand, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hoplon as hp
from tests.support.networks import captured, small_data, small_net

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The README prints figures, which its own test looks at.
WITH_CODE = [page for page in PAGES[1:] if "```python\n" in page.read_text(encoding="utf-8")]


def blocks(page: Path) -> str:
    """The Python blocks of a page in their order, each in its own lines, so that errors name the page's lines."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside = inside and line != "```"
        lines.append(line if inside else "")
        inside = inside or line == "```python"
    return "\n".join(lines)


@pytest.fixture
def names() -> dict[str, Any]:
    """What pages take for granted: a model, its program, data, a loss."""
    held_out, calibration = small_data()
    program = captured("small", 4)
    return {
        "F": F,
        "batches": held_out.x.split(8),
        "calibration": calibration,
        "data": held_out,
        "example": calibration.x[:4],
        "hp": hp,
        "loss": F.cross_entropy,
        "model": small_net(),
        "nn": nn,
        "program": program,
        "ranges": hp.profile_ranges(program, calibration),
        "torch": torch,
        "x": held_out.x,
        "y": held_out.y,
    }


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page), str(page), "exec"), names)


def test_pages_with_code_are_found() -> None:
    assert {"guards", "importance"} <= {page.stem for page in WITH_CODE}


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
