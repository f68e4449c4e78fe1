"""Names of layers, files, classes and models are text: whatever they hold, commands and pages say them as they are."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.cli.app import main
from hoplon.errors import one_line
from hoplon.program.archives.texts import is_path

NAMES = (
    *("a[/x]", 'b"c', "d\n", "f'g", "h{0}", "i%s", "<script>alert(1)</script>", " ", "ü名", "class", "0", "x" * 90),
    *("back\\slash", "\u202erev", "self", "[bold]", "e\x1b[31m", "1e5", "None", "\\n", "'''", '"""', "#"),
)
WORST = ("a[/x]", 'b"c', "d\n", "e\x1b[31m", "<script>alert(1)</script>", "\u202erev", "class")
SOURCE = f"""
import torch
from torch import nn
from tests.cli.test_hostile_names import Named
def net():
    return Named({WORST!r}), torch.linspace(-1, 1, 16).reshape(4, 4)
"""


class Named(nn.Module):
    """One linear layer for each name, and a parameter."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        self.register_parameter("p[/q]", nn.Parameter(torch.ones(4)))
        self.names = names
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        scale = self._parameters["p[/q]"]
        assert scale is not None
        for name in self.names:
            layer = self._modules[name]
            assert layer is not None
            x = torch.relu(layer(x)) + x * scale
        return x


Named.__name__ = Named.__qualname__ = '[/n]"Net'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data and all that commands leave, in a folder with a hostile name."""
    place = tmp_path_factory.mktemp("names") / "f[/i] [bold]{0}"
    place.mkdir(parents=True)
    (place / "[x]own.py").write_text(SOURCE, encoding="utf-8")
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    y = Named(WORST)(x).argmax(1)
    np.savez(place / "[red]data.npz", x=x.numpy(), y=y.numpy(), classes=np.array(["[/a]", 'b"\x1b[31m', "<i>", "%s"]))
    return place


COMMANDS = (
    "inspect MODEL --out OUT/i.json",
    "profile MODEL DATA --out OUT/p",
    "rank MODEL DATA --out OUT/s.safetensors --page OUT/rank.html",
    "inject MODEL DATA --count 9 --out OUT/run",
    "inject MODEL DATA --half-width 0.3 --target memory --inputs 4 --out OUT/memory",
    "replay OUT/run --model MODEL --data DATA --out OUT/again",
    "harden MODEL --ranges OUT/p/ranges.json --out OUT/h",
    "compare MODEL DATA --value-faults 9 --memory-faults 3 --guard-faults 0 --inputs 4 --no-standard-arms --arm parity "
    "--out OUT/c",
    "report OUT/c",
)


def test_every_command_says_names_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"MODEL": f"{folder / '[x]own.py'}:net", "DATA": str(folder / "[red]data.npz")}
    shown = ""
    for line in COMMANDS:
        arguments = [places.get(word, word.replace("OUT", str(folder / "o[/u]"))) for word in line.split()]
        status = main(arguments)
        captured = capsys.readouterr()
        refusal = "harden" in line  # torch cannot read the file of such a module
        assert status == (2 if refusal else 0), captured.err
        if refusal:
            assert "for a bundle, got" in captured.err or "single brackets" in captured.err
        shown += captured.out + captured.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert all(one_line(name) in shown for name in WORST)
    for page in ("rank.html", "c/report.html"):
        assert "<script>alert(1)" not in (folder / "o[/u]" / page).read_text(encoding="utf-8")
    found = json.loads((folder / "o[/u]" / "c" / "results.json").read_text(encoding="utf-8"))
    assert found["model"].endswith("[x]own.py:net")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_this_name_is_the_model_that_it_was(name: str, tmp_path: Path) -> None:
    model, x = Named((name,)), torch.randn(3, 4)
    program = hp.capture(model, x)
    assert torch.equal(program(x), model(x))
    module = hp.harden(program, [hp.TMR()])
    assert torch.equal(copy.deepcopy(module)(x), model(x))
    assert set(module.state_dict()) == set(model.state_dict())
    if not is_path(name) or "[3" in name:  # which torch writes into code, or cannot read again
        with pytest.raises(hp.HoplonError, match=r"single brackets|for a bundle, got"):
            hp.save_bundle(module, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
    else:
        hp.save_bundle(module, tmp_path / "bundle")
        assert torch.equal(hp.load_bundle(tmp_path / "bundle")(x), model(x))
