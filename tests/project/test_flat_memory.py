"""A campaign's memory does not grow with its faults, as long as it has a run directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CAMPAIGN = """
import resource, sys, torch
from hoplon import Campaign, Inputs, Values, capture
from hoplon.zoo.networks.lenet_digits import LeNet

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.rand(64, 1, 8, 8)
program = capture(LeNet().eval(), x[:2])
results = Campaign(program, Inputs(x), sites=Values()).run(count=int(sys.argv[1]), seed=0, store=sys.argv[2])
assert results.summary()[0].n_runs == int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _peak(count: int, store: Path) -> int:
    command = [sys.executable, "-c", _CAMPAIGN, str(count), str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("counts", [(5_000, 100_000), pytest.param((10_000, 1_000_000), marks=pytest.mark.slow)])
def test_peak_memory_is_within_a_tenth(counts: tuple[int, int], tmp_path: Path) -> None:
    few, many = (_peak(count, tmp_path / str(count)) for count in counts)
    assert many < 1.1 * few
