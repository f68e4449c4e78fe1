"""Golden values of input batches: what a golden run kept, what is run again, and how much of it is held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.formats.base import same_bits
from hoplon.injection.golden_values import FaultFree, GoldenCache


def _net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).eval()
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4 * ("bias" not in name))
    return net


def test_kept_passes_give_the_bits_of_passes_of_ones_own() -> None:
    x = torch.randn(11, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    work = hp.Campaign(hp.capture(_net(), x[:2]), hp.Inputs(x), sites=hp.Values(kind="conv"), batch=4)._runner(0)
    reference = work.injector.reference
    steps = [step.index for step in reference.program.steps if step.op is not None]
    assert reference.kept is not None
    assert len(reference.kept.batches) == reference.input_batches == 3
    first, again = FaultFree(work.injector), FaultFree(work.injector)
    first.want(steps)
    kept = [first[batch] for batch in range(3)]
    reference.kept.batches.clear()
    again.want(steps)
    for batch in range(3):
        run = again[batch]
        assert run.keys() == kept[batch].keys()
        pairs = [(run[key], kept[batch][key]) for key in run if isinstance(run[key], Tensor)]
        assert len(pairs) >= 2 * len(steps) - 4
        assert all(own.shape == held.shape and bool(same_bits(own, held).all()) for own, held in pairs)


@pytest.mark.parametrize(("most", "runs"), [(48, [0, 1, 2]), (32, [0, 1, 2, 1, 2]), (8, [0, 1, 2, 0, 1, 2])])
def test_the_newest_batches_go_when_the_budget_is_spent(most: int, runs: list[int]) -> None:
    ran: list[int] = []

    def run(batch: int) -> list[Tensor]:
        ran.append(batch)
        return [torch.full((4,), float(batch))]

    cache = GoldenCache(run, lambda values: values, most)
    for batch in (0, 1, 2, 0, 1, 2):
        assert cache[batch][0].tolist() == [batch] * 4
    assert ran == runs
