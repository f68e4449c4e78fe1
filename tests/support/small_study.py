"""A study of two parts, as a package of its own would bring one."""

from __future__ import annotations

from hoplon_studies import Context, Findings, Part, Row, Study
from hoplon_studies.framework.command import command_of


def found(context: Context) -> Findings:
    own = "none" if context.own is None else f"{context.own[0].name} on {context.own[1].name}"
    return Findings(rows=(Row("Table II", "net", "-", f"seed {context.seed}, {own}", paper=1, here=2),))


STUDY = Study("small", "A study", (), (Part("one", "First", found), Part("two", "Second", found)))
COMMAND = command_of(STUDY)
