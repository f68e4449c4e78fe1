"""Inspection: every site listed once, nothing unread counted, and the fault space against Aspis, Table II."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hoplon import HoplonError, capture, inspect
from hoplon.cli.app import main
from hoplon.files import read_json
from hoplon.program import FaultSpace
from hoplon.zoo import resolve_model
from tests.support.networks import GRAPHS, NETWORKS

# Aspis, Table II: weights, convolution layers, single-, double- and triple-bit fault sites, as printed.
TABLE_II = {
    "resnet50": (23_454_912, 53, 750_557_184, 23_267_272_704, 744_552_726_528),
    "inception_v3": (21_751_136, 94, 696_036_352, 21_577_126_912, 690_468_061_184),
    "vgg19": (20_018_880, 16, 640_604_160, 19_858_728_960, 635_479_326_720),
}


@pytest.mark.parametrize(("name", "pixels"), [("resnet50", 32), ("inception_v3", 75), ("vgg19", 32)])
def test_convolution_weights_are_those_of_aspis_table_ii(name: str, pixels: int) -> None:
    """Counts of weights do not depend on the image size; small images capture faster."""
    module = resolve_model(f"torchvision:{name}").module
    found = inspect(capture(module, torch.randn(2, 3, pixels, pixels))).to_dict()
    weights, layers, single, double, triple = TABLE_II[name]
    assert (found["conv_weights"], found["conv_layers"]) == (weights, layers)
    space = found["fault_sites"]
    assert (space["single"], space["double_ordered"], space["triple_paper"]) == (single, double, triple)
    assert (space["double"], space["triple"]) == (weights * 496, weights * 4960)
    unread = {row["name"] for row in found["unread"]}
    if name == "inception_v3":  # its auxiliary head holds two more convolutions, which eval mode does not run
        assert {"AuxLogits.conv0.conv.weight", "AuxLogits.conv1.conv.weight"} <= unread
        assert not any(row["name"].startswith("AuxLogits") for row in found["memory_sites"])
    else:
        assert not any(name.endswith("weight") for name in unread)


def test_true_combinations_equal_a_listing() -> None:
    for bits in (1, 2, 8):
        space = FaultSpace({bits: 3})
        assert space.single == 3 * bits
        assert space.double == 3 * sum(1 for _ in itertools.combinations(range(bits), 2))
        assert space.double_ordered == 3 * sum(1 for _ in itertools.permutations(range(bits), 2))
        assert space.triple == 3 * sum(1 for _ in itertools.combinations(range(bits), 3))


@pytest.mark.parametrize("name", GRAPHS)
def test_every_site_is_listed_once_with_its_elements(name: str) -> None:
    net = NETWORKS[name]
    program = capture(net.model(), net.batch(2))
    found = inspect(program).to_dict()
    assert [row["name"] for row in found["value_sites"]] == list(net.sites)
    assert found["totals"]["values"]["elements"] == sum(row["elements"] for row in found["value_sites"])
    assert sum(layer["values"] for layer in found["layers"]) == found["totals"]["values"]["elements"]
    assert sum(layer["memory"] for layer in found["layers"]) == found["totals"]["memory"]["elements"]
    storages = {t.data_ptr(): t.numel() for t in net.model().state_dict().values() if t.ndim}
    assert found["totals"]["memory"]["elements"] == sum(storages.values())


class Mixed(nn.Module):
    """Words of 32, 64 and 1 bits; a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.scale = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(3))
        self.wide = nn.Buffer(torch.ones(3, dtype=torch.float64))
        self.mask = nn.Buffer(torch.tensor([True, False, True]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, x * self.scale, x).double() * self.wide


def test_words_have_the_width_of_their_dtype() -> None:
    found = inspect(capture(Mixed().eval(), torch.randn(2, 3))).to_dict()
    assert found["totals"]["memory"]["faults"]["single"] == 3 * 32 + 3 * 64 + 3
    assert found["totals"]["buffers"]["faults"]["double"] == 3 * 2016
    assert found["unread"] == [{"name": "spare", "elements": 7}]
    assert found["conv_layers"] == found["conv_weights"] == found["fault_sites"]["triple"] == 0


def test_a_module_is_no_program() -> None:
    with pytest.raises(HoplonError, match=r"expected program of inspect to be a Program, got a value of type Linear"):
        inspect(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_the_command_prints_tables_or_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\nfrom tests.support.networks import NETWORKS\n\n\ndef tied():\n    net = NETWORKS['tied']\n"
        "    return net.model(), net.batch(2)\n"
    )
    model = f"{tmp_path / 'model.py'}:tied"
    assert main(["inspect", model]) == 0
    printed = capsys.readouterr().out
    assert "first.weight = second.weight" in printed
    assert "second:linear.1" in printed
    assert "two bits in order, as Aspis Table II counts" in printed
    assert main(["inspect", model, "--json", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["totals"]["memory"]["elements"] == 6 * 6 + 6 + 6 + 6 * 3 + 3
    assert read_json(tmp_path / "out" / "inspection.json") == found
    assert main(["inspect", "lenet-digit"]) == 2
    assert "near names: lenet-digits" in capsys.readouterr().err
