from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from hoplon.errors import DataError, HoplonError, UserCodeError
from hoplon.zoo import resolve_data, resolve_model
from hoplon.zoo.torchvision_ops import import_torchvision

FACTORIES = """
    from __future__ import annotations
    import torch
    from dataclasses import dataclass
    from torch import nn
    from hoplon.program.inputs import Inputs
    from hoplon.zoo import ZooData

    @dataclass
    class Sizes:
        width: int = 3

    answer = 42

    def net():
        return nn.Linear(Sizes().width, 2).eval(), torch.zeros(4, 3)

    def neighbour():
        from beside_it import WIDTH
        return nn.Linear(WIDTH, 2).eval(), torch.zeros(4, WIDTH)

    def in_train_mode():
        return nn.Linear(3, 2), torch.zeros(4, 3)

    def alone():
        return nn.Linear(3, 2).eval()

    def single():
        return nn.Linear(3, 2).eval(), torch.zeros(1, 3)

    def sized(width):
        return nn.Linear(width, 2).eval(), torch.zeros(4, width)

    def broken():
        raise KeyError("a defect of the user's own")

    def inputs():
        return Inputs(torch.arange(10.0).reshape(10, 1), torch.arange(10))

    def both():
        part = Inputs(torch.zeros(2, 1))
        return ZooData(name="mine", calibration=part, held_out=part)

    def text():
        return "data"
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "my_models.py"
    path.write_text(textwrap.dedent(FACTORIES))
    (tmp_path / "beside_it.py").write_text("WIDTH = 5\n")
    return path


@pytest.fixture
def _as_module(factories, monkeypatch):
    monkeypatch.chdir(factories.parent)
    yield
    for name in ("my_models", "beside_it"):
        sys.modules.pop(name, None)


def test_zoo_name_gives_the_zoo_entry():
    assert resolve_data("digits").name == "digits"
    assert resolve_model("lenet-digits").module.conv1.weight.shape == (6, 1, 3, 3)


def test_factory_in_a_file(factories):
    entry = resolve_model(f"{factories}:net")
    assert entry.name == f"{factories}:net"
    assert entry.module.weight.shape == (2, 3)
    assert entry.example.shape == (4, 3)


def test_file_can_import_what_lies_beside_it_and_leaves_the_path_as_it_was(factories):
    before = list(sys.path)
    assert resolve_model(f"{factories}:neighbour").example.shape == (4, 5)
    with pytest.raises(UserCodeError, match=r"KeyError: .*a defect of the user's own.* \(line \d+ of .*my_models.py\)"):
        resolve_model(f"{factories}:broken")
    assert sys.path == before


@pytest.mark.usefixtures("_as_module")
def test_factory_in_a_module_of_the_current_folder():
    assert resolve_model("my_models:net").example.shape == (4, 3)
    assert resolve_data("my_models:both").name == "mine"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("in_train_mode", r"in eval mode, got train mode; call \.eval\(\) in the factory"),
        ("alone", r"to return \(module, example batch\), .*hp.Example\), got a value of type Linear"),
        ("both", r"to return \(module, example batch\), .*hp.Example\), got a value of type ZooData"),
        ("single", r"an example batch of at least 2 samples from .*, got shape \(1, 3\)"),
        ("sized", r"a function that needs no arguments, got: missing a required argument: 'width'"),
        ("answer", r"to be a function, got a value of type int"),
        ("nett", r"no factory in .*my_models\.py matches 'nett'; near names: net"),
    ],
)
def test_unusable_model_factory_is_refused(factories, factory, message):
    with pytest.raises(HoplonError, match=message):
        resolve_model(f"{factories}:{factory}")


def test_text_that_names_nothing_is_refused(tmp_path):
    with pytest.raises(HoplonError, match=r"no zoo model matches 'lenet'; near names: paper:lenet.*torchvision:NAME"):
        resolve_model("lenet")
    with pytest.raises(HoplonError, match=r"no zoo data matches 'digit'; near names: digits.*an \.npz or \.jsonl file"):
        resolve_data("digit")
    with pytest.raises(HoplonError, match=r"expected a Python file before the colon, got .*absent\.py, which does not"):
        resolve_model(f"{tmp_path}/absent.py:net")
    with pytest.raises(HoplonError, match=r"before the colon of 'no_such_module\.sub:net', got 'no_such_module\.sub'"):
        resolve_model("no_such_module.sub:net")
    with pytest.raises(HoplonError, match=r"expected package\.module:factory or file\.py:factory, got 'a/b:net'"):
        resolve_model("a/b:net")


def test_a_module_that_lacks_its_own_import_is_not_called_missing(factories):
    factories.write_text("import no_such_module\n")
    with pytest.raises(UserCodeError, match=r"ModuleNotFoundError: .*no_such_module.* \(line 1 of .*my_models.py\)"):
        resolve_model(f"{factories}:net")


def test_the_first_fifth_of_few_inputs_of_a_factory_calibrates(factories):
    data = resolve_data(f"{factories}:inputs")
    assert data.calibration.y.tolist() == [0, 1]
    assert data.held_out.y.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(HoplonError, match="expected Inputs, a map-style data set, .*, got str; it comes from .*:text"):
        resolve_data(f"{factories}:text")


def test_a_random_fifth_of_an_npz_calibrates_the_same_in_every_run(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.arange(101.0).reshape(101, 1), y=np.arange(101, dtype=np.uint8), classes=["a", "b"])
    data, again = resolve_data(str(path)), resolve_data(str(path))
    assert (data.name, data.classes) == ("mine.npz", ("a", "b"))
    chosen, rest = (part.x.flatten().tolist() for part in (data.calibration, data.held_out))
    assert (len(chosen), len(rest)) == (20, 81)
    assert sorted(chosen + rest) == list(range(101))
    assert chosen == sorted(chosen)
    assert max(chosen) > 81  # a first fifth would end at 19; all below 82: 1.3 % of the draws
    assert chosen == again.calibration.x.flatten().tolist()
    assert data.calibration.name == "mine.npz, random 19.8 %"
    assert data.held_out.x.dtype == torch.float64


def test_a_series_in_time_calibrates_on_its_beginning(tmp_path):
    path = tmp_path / "drive.npz"
    arrays = {"x": np.arange(41.0).reshape(41, 1), "y": np.arange(41)}
    np.savez(path, **arrays, time=np.linspace(0.5, 3.5, 41))
    data = resolve_data(str(path))
    assert data.calibration.y.tolist() == list(range(8))
    assert data.held_out.y.tolist() == list(range(8, 41))
    assert data.calibration.name == "drive.npz, first 19.5 %"
    for time in (np.arange(40), -np.arange(41), np.full(41, np.nan), np.array(["t"] * 41)):
        np.savez(path, **arrays, time=time)
        with pytest.raises(DataError, match=r"never falls for each of 41 samples in the array time of .*drive\.npz"):
            resolve_data(str(path))


def test_npz_with_its_own_calibration_part_holds_all_of_x_out(tmp_path):
    path = tmp_path / "mine.npz"
    x = np.arange(4, dtype=">f4").reshape(4, 1)
    np.savez(path, x=x, y=np.arange(4), x_calibration=-x[:3])
    data = resolve_data(str(path))
    assert data.held_out.x.flatten().tolist() == [0, 1, 2, 3]
    assert data.calibration.x.flatten().tolist() == [0, -1, -2]
    assert data.calibration.y is None
    np.savez(path, x=x, y=np.arange(4), x_calibration=-x[:3], y_calibration=np.array([7, 8, 9]))
    assert resolve_data(str(path)).calibration.y.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 1))}, r"expected the arrays x, y in .*bad\.npz, got x"),
        (
            {"x": np.zeros((3, 1)), "y": np.array(["a", "b", "c"])},
            r"numbers in the array y of .*bad\.npz, got dtype <U1",
        ),
        ({"x": np.zeros((0, 1)), "y": np.zeros(0, int)}, "expected at least one sample, got 0"),
        ({"x": np.zeros((1, 1)), "y": np.zeros(1, int)}, "expected at least 2 samples in bad.npz, .* got 1"),
        ({"x": np.full((3, 1), np.nan), "y": np.zeros(3, int)}, "expected finite x"),
        ({"x": np.zeros((3, 1)), "y": np.zeros(2, int)}, r"expected y of shape \(3, ...\)"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2, int)}, "readable without pickle"),
    ],
)
def test_unusable_npz_is_refused(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        resolve_data(str(path))


def test_torchvision_model_has_seeded_random_weights():
    before = torch.random.get_rng_state()
    first, again, other = (resolve_model("torchvision:squeezenet1_1", seed=seed) for seed in (1, 1, 2))
    assert first.example.shape == (2, 3, 224, 224)
    assert not first.module.training
    weights = [entry.module.features[0].weight for entry in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_torchvision_model_is_refused_with_near_names():
    with pytest.raises(HoplonError, match=r"no torchvision model matches 'resnet8'; near names: resnet"):
        resolve_model("torchvision:resnet8")
    with pytest.raises(HoplonError, match="no torchvision model matches 'fasterrcnn'"):
        resolve_model("torchvision:fasterrcnn")


def test_torchvision_imports_and_its_operators_are_known():
    assert import_torchvision() is sys.modules["torchvision"]
    assert "iou_threshold" in str(torch.ops.torchvision.nms.default._schema)


def test_absent_torchvision_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HoplonError, match=r"expected torchvision .*, got none; pip install 'hoplon\[vision\]'"):
        import_torchvision()
