"""What is loaded before it is used: the command line and the library begin with what they need, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hoplon.cli import app

HEAVY = ("scipy.stats", "scipy.special", "sympy", "torch._dynamo", "torch._inductor", "torchvision", "plotly", "jinja2")
NOT_FOR_HELP = ("torch", "numpy", "polars", "pydantic", "scipy", "safetensors", "joblib", *HEAVY)
CAMPAIGN = "import torch; before = set(sys.modules); import hoplon; hoplon.Campaign"
HELP = "before = set(); from hoplon.cli import main; main(['--help'])"


@pytest.mark.parametrize(("begun", "unwanted"), [(CAMPAIGN, HEAVY), (HELP, NOT_FOR_HELP)], ids=["campaign", "help"])
def test_nothing_heavy_is_loaded_before_it_is_used(begun: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys; {begun}; sys.stderr.write(' '.join(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stderr.split())
    assert "hoplon" in {name.partition(".")[0] for name in loaded}
    assert sorted(loaded & set(unwanted)) == []
    assert not any(name.startswith(("hoplon.zoo.", "hoplon.report.page")) for name in loaded)


def test_the_commands_are_those_of_their_folder() -> None:
    names = [file.stem for file in (Path(app.__file__).parent / "commands").glob("[a-z]*.py")]
    commands = {name for name in names if hasattr(import_module(f"hoplon.cli.commands.{name}"), "command")}
    assert commands == set(app._COMMANDS)
