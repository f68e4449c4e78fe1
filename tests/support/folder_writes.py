"""A folder that is written in a process of its own, which tests end at any call."""

from __future__ import annotations

import re
from pathlib import Path

from hoplon.files import replacing
from tests.support.failing_calls import counted, killed

OURS = re.compile(r"(a|b|c)\.txt|sub/(d\.txt)?")


def write(target: Path, text: str, *, ours: re.Pattern[str] = OURS) -> None:
    """Write a folder of three files with one text, in the place of an earlier one."""
    with replacing(target, ours=ours) as new:
        (new / "sub").mkdir(parents=True)
        for name in ("a.txt", "b.txt", "sub/d.txt"):
            (new / name).write_text(text)


def content(target: Path) -> str:
    """The text of a folder that is whole."""
    (text,) = {(target / name).read_text() for name in ("a.txt", "b.txt", "sub/d.txt")}
    return text


def write_killed(target: Path, text: str, at: int) -> None:
    """Write, and end the process in the place of a call."""
    with counted(at, killed):
        write(target, text)
