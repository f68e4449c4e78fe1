"""Tables as plain text cells: the command line draws them, ``str`` aligns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class TextTable:
    """A titled table whose cells are text already.

    ``left``: columns of words, aligned to the left; without any it is the first one. Numbers are aligned to the right.

    Example:
        >>> print(TextTable("Arms", ("arm", "failure"), [("none", "2.61 %"), ("ranger", "0.26 %")]))
        Arms
        arm     failure
        none     2.61 %
        ranger   0.26 %
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str | None = None
    left: Sequence[str] = ()

    def is_left(self, column: str) -> bool:
        """Tell whether a column is aligned to the left."""
        return column in (self.left or self.columns[:1])

    def __str__(self) -> str:
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]
        lines = [self.title]
        for cells in (self.columns, *self.rows):
            aligned = [
                cell.ljust(width) if self.is_left(column) else cell.rjust(width)
                for column, cell, width in zip(self.columns, cells, widths, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
        return "\n".join(lines + ([self.caption] if self.caption else []))
