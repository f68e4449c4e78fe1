"""Write ``docs/api-index.md``: every public name, one line, its room. ``python docs/api_index.py``."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api-index.md"
HEAD = """# Public names

Written by `python docs/api_index.py` from the faces (`__init__.pyi`); a test holds it to them. What of hoplon is
not listed here is private. `hp` is `import hoplon as hp`.
"""


def faces() -> Iterator[Path]:
    """The stubs of all rooms, the root first, then by path."""
    stubs = (ROOT / "src" / "hoplon").rglob("__init__.pyi")
    yield from sorted(stubs, key=lambda stub: (len(stub.parts) > len(ROOT.parts) + 3, stub.parts))


def exported(stub: Path) -> dict[str, str]:
    """The module that each name of a face comes from, in the order of the stub; rooms come from ``"."``."""
    names: dict[str, str] = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name: node.module or "." for alias in node.names}
    return names


def first_line(value: object, module: ModuleType, name: str) -> str:
    """The first sentence of a docstring; of a constant, of the string below it."""
    if not isinstance(value, ModuleType) and not callable(value):
        return _documented_constant(module, name)
    text = " ".join((value.__doc__ or "").partition("\n\n")[0].split())
    end = text.find(". ")
    return (text if end < 0 else text[: end + 1]).replace("|", "\\|")


def _documented_constant(module: ModuleType, name: str) -> str:
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    for node, below in pairwise(body):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return " ".join(str(below.value.value).partition("\n\n")[0].split())
    return ""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for stub in faces():
        room = ".".join(stub.parent.relative_to(ROOT / "src").parts)
        face = importlib.import_module(room)
        parts.append(f"\n## {room}\n\n| name | is | defined in |\n|---|---|---|\n")
        for name, source in exported(stub).items():
            value = getattr(face, name)
            module = importlib.import_module(f"{room}.{source}" if source != "." else room)
            where = "a room" if isinstance(value, ModuleType) else f"`{source}`"
            parts.append(f"| `{name}` | {first_line(value, module, name)} | {where} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
