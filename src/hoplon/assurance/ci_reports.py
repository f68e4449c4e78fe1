"""A judgement as continuous integration reads it: JUnit XML, and a summary in Markdown."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from xml.etree import ElementTree

from hoplon.assurance.gate import Judgement, more_faults
from hoplon.errors import checked, one_line
from hoplon.files import write_atomically

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~>-])")
_SIGNS = {"pass": "met", "fail": "**missed**", "undecided": "undecided"}


@checked
def write_junit(path: str | os.PathLike[str], judgement: Judgement, *, name: str = "hoplon gate") -> Path:
    """Write one test case for each claim: a failure where it is missed, an error where it is undecided.

    Args:
        name: of the suite.
    Raises:
        StoreError: the folder is not writable.
    """
    counts = {verdict: sum(claim.verdict == verdict for claim in judgement.claims) for verdict in _SIGNS}
    attributes = {"name": one_line(name), "tests": str(len(judgement.claims))}
    attributes |= {"failures": str(counts["fail"]), "errors": str(counts["undecided"])}
    suite = ElementTree.Element("testsuite", attributes)
    for claim in judgement.claims:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": one_line(judgement.description), "name": f"max-{claim.name}"}
        )
        text = f"{claim.requirement}; found {claim.figure}, {judgement.faults:,} faults{more_faults(claim)}"
        if claim.verdict != "pass":
            kind = "failure" if claim.verdict == "fail" else "error"
            ElementTree.SubElement(case, kind, {"message": one_line(text), "type": claim.verdict})
        ElementTree.SubElement(case, "system-out").text = one_line(text)
    target = Path(path)
    write_atomically(target, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
    return target


@checked
def write_summary(path: str | os.PathLike[str], judgement: Judgement) -> Path:
    """Write a table of the claims, as ``$GITHUB_STEP_SUMMARY`` takes it; an existing file is added to.

    Raises:
        StoreError: the folder is not writable.
    """
    target = Path(path)
    rows = [
        f"| {_SIGNS[claim.verdict]} | {_plain(claim.requirement)} | {_plain(claim.figure)} | "
        f"{_plain(more_faults(claim).removeprefix('; '))} |"
        for claim in judgement.claims
    ]
    lines = [
        f"### hoplon gate: {judgement.verdict}",
        "",
        _plain(judgement.description),
        "",
        "| | requirement | found | takes |",
        "|---|---|---|---|",
        *rows,
        "",
        f"{judgement.faults:,} faults, {judgement.same_faults:,} of them those of the baseline; {judgement.left_out:,} "
        f"left out; {judgement.looks} of at most {judgement.most_looks} looks.",
        "",
    ]
    before = target.read_text(encoding="utf-8") if target.is_file() else ""
    write_atomically(target, before + "\n".join(lines))
    return target


def _plain(text: str) -> str:
    """A text that Markdown shows as it is: no markup, no HTML, on one line."""
    return _MARKS.sub(r"\\\1", html.escape(one_line(text), quote=False))
