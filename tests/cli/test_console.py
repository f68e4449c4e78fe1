"""Printing: tables with borders on stdout, cells as they are."""

from __future__ import annotations

import pytest

from hoplon.cli.console import show
from hoplon.report.text_table import TextTable


def test_brackets_in_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = TextTable("of [red]", ("arm", "n [bold]"), [("[i]x", "1"), ("y", "10")], "see [dim]")
    show({}, [table], [("Notes", ["[b]"])], as_json=False)
    printed = capsys.readouterr().out
    for text in ("of [red]", "n [bold]", "│ [i]x │", "see [dim]", "Notes\n  [b]"):
        assert text in printed
    assert "│ y    │       10 │" in printed
