"""Files of the user's own beside each other: each folder's modules are its own, and nothing of Python is shadowed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import pytest
import torch

from hoplon.zoo import resolve_data, resolve_model

MODEL = """
    import importlib
    import json
    import torch
    from dataclasses import dataclass
    from torch import nn
    import helper
    import parts.scale as scale
    from parts import SIGN, shift

    @dataclass
    class Width:
        count: int = 3

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = helper.Layer()

        def forward(self, x):
            import late
            from plain.deep import ZERO
            return self.layer(x) * scale.SCALE * SIGN + shift.SHIFT + late.LATE() + ZERO

    def net():
        assert importlib.import_module("helper") is helper
        assert json.loads("1") == 1
        return Net().eval(), torch.zeros(2, Width().count)

    def threaded():
        from concurrent.futures import ThreadPoolExecutor
        net = Net().eval()
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: (net(torch.zeros(2, 3)), net)[1]).result(timeout=20), torch.zeros(2, 3)

    def stored():
        return torch.load(__file__.replace("model.py", "stored.pt"), weights_only=False), torch.zeros(2, 3)

    def data():
        from hoplon.program.inputs import Inputs
        return Inputs(torch.full((5, 1), float(scale.SCALE)))
"""


def write(folder: Path, number: int) -> Path:
    """A model of which every part lies in a file of its own; it adds up to ``number``."""
    (folder / "parts").mkdir(parents=True)
    (folder / "plain").mkdir()
    files = {
        "model.py": MODEL,
        "helper.py": """
            from torch import nn
            class Layer(nn.Module):
                def forward(self, x):
                    import later
                    return x + later.ONE
        """,
        "later.py": "ONE = 1",
        "late.py": f"from other import VALUE\ndef LATE():\n    from other import VALUE\n    return {number} * VALUE",
        "other.py": "VALUE = 1",
        "parts/__init__.py": "from .sign import SIGN",
        "parts/sign.py": "SIGN = -1",
        "parts/scale.py": f"SCALE = {number}",
        "parts/shift.py": f"from parts.scale import SCALE\nSHIFT = SCALE * 0 + {number}",
        "plain/deep.py": "ZERO = 0",
    }
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text))
    return folder / "model.py"


def answer(number: int) -> float:
    """What the model of a number gives for a zero."""
    return -number + number + number


def test_two_files_of_one_name_have_each_their_neighbours(tmp_path: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    first, second = write(tmp_path / "a", 3), write(tmp_path / "b", 5)
    nets = [resolve_model(f"{source}:net").module for source in (first, second, first)]
    x = torch.zeros(1, 3)
    assert [net(x)[0, 0].item() for net in nets] == [answer(3), answer(5), answer(3)]
    assert [type(net.layer).__module__ for net in nets] == ["helper"] * 3
    assert type(nets[0].layer) is type(nets[2].layer) is not type(nets[1].layer)
    assert resolve_data(f"{second}:data").held_out.x[0].item() == 5
    assert {name for name in set(sys.modules) - before if not name.startswith("hoplon_user_")} == set()
    assert sys.path == path


def test_a_factory_may_wait_for_threads_that_import(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 3)
    assert resolve_model(f"{source}:threaded").module(torch.zeros(1, 3))[0, 0].item() == answer(3)


def test_a_module_of_the_same_name_from_elsewhere_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a", 3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "helper.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    import helper  # type: ignore[import-not-found]

    assert resolve_model(f"{source}:net").module(torch.zeros(1, 3))[0, 0].item() == answer(3)
    assert sys.modules.pop("helper") is helper


def test_files_named_as_modules_of_python_torch_or_hoplon_shadow_none(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 3)
    for name in ("json", "torch", "dataclasses", "hoplon", "numpy", "colorsys", "typing"):
        (tmp_path / "a" / f"{name}.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "a" / "later.py").write_text("import colorsys, numpy\nONE = int(numpy.ones(1)[0])")
    assert resolve_model(f"{source}:net").module(torch.zeros(1, 3))[0, 0].item() == answer(3)


def test_the_current_folder_shadows_nothing_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "made_here.py").write_text(
        "import colorsys, torch\ndef net():\n    return torch.nn.ReLU().eval(), torch.zeros(2, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    for name in ("colorsys", "made_here"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert resolve_model("made_here:net").example.shape == (2, 1)
    sys.modules.pop("made_here")


def test_another_process_gets_classes_of_the_folder_by_value(tmp_path: Path) -> None:
    net = resolve_model(f"{write(tmp_path / 'a', 3)}:net").module
    (tmp_path / "net").write_bytes(cloudpickle.dumps(net.layer))
    (tmp_path / "a" / "helper.py").write_text("raise SystemExit('imported')")
    code = "import pickle, sys, torch; print(type(pickle.load(open(sys.argv[1], 'rb'))))"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "net"], capture_output=True, text=True, check=True)
    assert "helper.Layer" in run.stdout


def test_a_pickle_of_the_factory_finds_the_classes_beside_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a", 3)
    code = "import torch, helper; torch.save(helper.Layer().eval(), 'stored.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "a", check=True)
    assert resolve_model(f"{source}:stored").module(torch.zeros(1, 3))[0, 0].item() == 1
