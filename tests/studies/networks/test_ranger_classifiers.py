from __future__ import annotations

from collections import Counter

import pytest
import torch

from hoplon.comparison.costs.flops import count_flops
from hoplon.faults.sampling import OpUniform
from hoplon.program.capturing import capture
from hoplon.program.program import Program
from hoplon_studies.networks.architectures import ARCHITECTURES, untrained
from hoplon_studies.networks.ranger_classifiers import Vgg16
from hoplon_studies.networks.tensorflow_ops import Normalisation

# what the configuration files of the paper's injector list, as counted in its published graphs: for every network, how
# often each operator is listed (bias additions are "add" here), and which of them (from 1) its random draw can give
LISTED = {
    "lenet": ({"conv": 2, "add": 2 + 2, "relu": 3, "max_pool": 2, "cat": 1, "matmul": 2}, 12),
    "alexnet": ({"conv": 5, "add": 7, "relu": 6, "max_pool": 3, "cat": 2, "matmul": 2}, 23),
    "vgg11": ({"conv": 8, "add": 11, "relu": 10, "max_pool": 4, "cat": 1, "matmul": 3}, 35),
    "vgg16": ({"conv": 13, "add": 16, "relu": 15, "max_pool": 5, "cat": 1, "matmul": 3}, 51),
    "resnet18": (
        {"conv": 20, "relu": 17, "max_pool": 1, "mean": 1, "add": 17 + 8 + 1, "matmul": 1, "mul": 17},
        80,
    ),
    "squeezenet": ({"conv": 26, "add": 26, "relu": 26, "max_pool": 3, "cat": 8}, 89),
    # drawn without the last fully connected layer, as the paper says; its script draws 30, the arc tangent left out
    "dave-radians": ({"conv": 5, "relu": 9, "add": 10, "cat": 1, "matmul": 5, "mul": 1, "atan": 1}, 28),
    "dave-degrees": ({"conv": 5, "relu": 9, "add": 10, "cat": 1, "matmul": 5}, 28),
    "comma": ({"conv": 3, "elu": 4, "add": 5, "cat": 1, "matmul": 2}, 13),
}

# millions of operations in the paper's Table III; "full" ones where its profiler lost operators of unknown shape
MILLIONS = {
    "lenet": 24.622,
    "alexnet": 64.740,  # full; 11.361 published
    "vgg11": 87.057,
    "resnet18": 3635.4,  # a tenth of 36.354 billion: a batch of 10
    "squeezenet": 703.865,  # full, without the mean; 530.813 published
    "dave-radians": 56.545,
    "comma": 21.925,  # full; 17.673 published
}


SMALL = {"resnet18": 64, "squeezenet": 64}  # pixels that are quick to trace; the operators are the same
FULL = [pytest.param(name, marks=pytest.mark.slow) if name in SMALL else name for name in MILLIONS]


def _program(name: str, *, pixels: int | None = None) -> Program:
    if name == "vgg16":
        return capture(Vgg16(classes=10, pixels=32, width=1 / 16).eval(), torch.rand(2, 3, 32, 32) * 255)
    net = untrained(name)
    return capture(net.module, net.example[:, :, :pixels, :pixels])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_operators_are_those_of_the_published_graph(name: str) -> None:
    architecture, program = ARCHITECTURES[name], _program(name, pixels=SMALL.get(name))
    sites = [site for site in program.value_sites if architecture.kinds is None or site.kind in architecture.kinds]
    listed, drawn = LISTED[name]
    assert dict(Counter(site.kind for site in sites)) == listed
    shares = OpUniform(kinds=architecture.kinds, drop_last=architecture.last).shares(program.value_sites)
    assert int((shares > 0).sum()) == drawn
    assert [site for site, share in zip(program.value_sites, shares, strict=True) if share > 0] == sites[:drawn]


@pytest.mark.parametrize("name", FULL)
def test_operations_are_those_of_table_iii(name: str) -> None:
    found = count_flops(_program(name))
    mean = sum(entry.flops for entry in found.operators if entry.kind == "mean" and name == "squeezenet")
    assert (found.total - mean) / 1e6 == pytest.approx(MILLIONS[name], abs=6e-4 if name != "resnet18" else 0.05)


def test_a_separate_batch_norm_computes_what_torch_computes() -> None:
    norm, torch_norm = Normalisation(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    assert torch.allclose(norm(x), torch_norm(x))  # statistics of the batch, and the running ones move
    assert torch.equal(norm.running_mean, torch_norm.running_mean)
    assert torch.allclose(norm.eval()(x), torch_norm.eval()(x), atol=1e-6)
