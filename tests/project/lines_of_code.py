"""Count lines of code by room, without blank lines, comments and docstrings.

Run ``python tests/project/lines_of_code.py [SRC]``.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
_EMPTY = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of_code(text: str) -> int:
    """Number of lines that hold code.

    Example:
        >>> lines_of_code('\"\"\"Text.\"\"\"\\n\\n# comment\\nx = (1 +\\n     2)\\n')
        2
    """
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            documentation |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _EMPTY:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - documentation)


def by_room(source: Path) -> Counter[str]:
    """Lines of code of each room of each package under ``source``."""
    counts: Counter[str] = Counter()
    for path in source.rglob("*.py"):
        package, *rooms = path.relative_to(source).parts
        counts[f"{package}/{rooms[0]}" if len(rooms) > 1 else package] += lines_of_code(path.read_text())
    return counts


if __name__ == "__main__":
    counts = by_room(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
    for room, count in sorted(counts.items()):
        print(f"{count:7,} {room}")
    print(f"{counts.total():7,} in all")
