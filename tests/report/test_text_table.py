"""Tables of text cells, aligned without a terminal."""

from __future__ import annotations

from hoplon.report.text_table import TextTable


def test_words_stand_on_the_left_and_numbers_on_the_right() -> None:
    table = TextTable(
        "Sites", ("site", "low", "why"), [("a", "-1", "profiled"), ("long", "0.25", "")], "2 rows", ("site", "why")
    )
    assert str(table).splitlines() == [
        "Sites",
        "site   low  why",
        "a       -1  profiled",
        "long  0.25",
        "2 rows",
    ]


def test_a_table_without_rows_keeps_its_heading() -> None:
    assert str(TextTable("None", ("arm", "failure"), [])) == "None\narm  failure"
