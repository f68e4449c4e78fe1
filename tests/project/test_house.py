"""The house itself: few names at the top, small folders, a face and a README in every room, pages true to the code."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from tests.project.lines_of_code import lines_of_code

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
ROOMS = sorted(stub.parent for stub in SOURCE.rglob("__init__.pyi"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_top_of_the_house_holds_few_names() -> None:
    given = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", "__pycache__"}
    names = {path.name for path in (SOURCE / "hoplon").iterdir()} - given
    assert len(names) <= 17, names  # rooms, and three files: errors, files, registry


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in SOURCE.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= (24 if folder.name == "commands" else 16), folder


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(SOURCE)))
def test_every_room_has_a_short_page_and_a_lazy_face(room: Path) -> None:
    page = (room / "README.md").read_text(encoding="utf-8").splitlines() if room.name != "hoplon" else [""] * 10
    assert 10 <= len(page) <= 20, len(page)
    face = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in face.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert lines_of_code((room / "__init__.py").read_text(encoding="utf-8")) <= 3


def test_importing_hoplon_loads_neither_torch_nor_a_room() -> None:
    code = "import hoplon, sys; print([n for n in sys.modules if n == 'torch' or n.startswith('hoplon.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_function_has_the_name_of_a_module_beside_it() -> None:
    """Such a module would be shadowed, or shadow it, wherever the room hands the function on."""
    for path in SOURCE.rglob("*.py"):
        beside = {other.stem for other in path.parent.glob("*.py")} | {
            other.name for other in path.parent.iterdir() if (other / "__init__.py").exists()
        }
        body = ast.parse(path.read_text(encoding="utf-8")).body
        functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert not functions & beside, (path, functions & beside)


def test_the_index_of_public_names_is_the_code() -> None:
    index = script("api_index")
    assert index.PAGE.read_text(encoding="utf-8") == index.page(), "run `make docs`"


def test_the_picture_of_the_house_is_the_code(tmp_path: Path) -> None:
    picture = script("picture")
    picture.write(tmp_path / "again.svg")
    assert picture.PICTURE.read_bytes() == (tmp_path / "again.svg").read_bytes(), "run `make docs`"


def test_functions_are_short() -> None:
    long = {}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = text.splitlines()[node.body[0].lineno - 1 : node.end_lineno]
                if (count := lines_of_code(textwrap.dedent("\n".join(lines)))) >= 60:
                    long[f"{path.name}:{node.name}"] = count
    assert not long
