"""Printing: tables with borders on stdout, cells as they are."""

from __future__ import annotations

import warnings

import pytest

from hoplon.cli.console import show, warnings_on_one_line
from hoplon.errors import HoplonWarning
from hoplon.report.text_table import TextTable


def test_brackets_in_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = TextTable("of [red]", ("arm", "n [bold]"), [("[i]x", "1"), ("y", "10")], "see [dim]")
    show({}, [table], [("Notes", ["[b]"])], as_json=False)
    printed = capsys.readouterr().out
    for text in ("of [red]", "n [bold]", "│ [i]x │", "see [dim]", "Notes\n  [b]"):
        assert text in printed
    assert "│ y    │       10 │" in printed


def test_warnings_of_hoplon_take_one_line_and_those_of_others_say_where() -> None:
    before = warnings.formatwarning
    with warnings_on_one_line():
        assert warnings.formatwarning("so slow", HoplonWarning, "runner.py", 7) == "hoplon: so slow\n"
        assert warnings.formatwarning("old", FutureWarning, "torch.py", 7) == "torch.py:7: FutureWarning: old\n"
    assert warnings.formatwarning is before
