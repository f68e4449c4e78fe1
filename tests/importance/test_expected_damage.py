from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from hoplon.campaign.campaign import Campaign
from hoplon.errors import HoplonError, SiteError
from hoplon.faults import BitFlip, Burst, RandomValue
from hoplon.faults.sampling import Exhaustive
from hoplon.importance import Scores, expected_damage, taylor
from hoplon.importance.damage.deviations import LEVELS, Deviations
from hoplon.importance.damage.probing import Layer
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory, MemorySite
from tests.support.networks import small_data, small_net

SITES = Memory(kind=("conv", "linear"), buffers=False)


def flipped(value: float, bit: int) -> float:
    """Slow reference: float16 bits through bytes."""
    (word,) = struct.unpack("<H", struct.pack("<e", value))
    (result,) = struct.unpack("<e", struct.pack("<H", word ^ (1 << bit)))
    assert isinstance(result, float)
    return result


def test_deviations_are_those_of_every_single_flip() -> None:
    weight = torch.tensor([0.1, -0.25, 1.5, 0.0, -0.1, 0.1], dtype=torch.float16)
    site = MemorySite("w", shape=(6,), dtype=torch.float16)
    found = Deviations.of(weight, site, BitFlip(), generator=torch.Generator().manual_seed(0))
    limit = 8 * 1.5
    for index, value in enumerate(weight.tolist()):
        row = int(found.classes[index])
        changes = [flipped(value, bit) - value for bit in range(16)]
        finite = [change for change in changes if np.isfinite(change)]
        assert float(found.nonfinite[row]) == (16 - len(finite)) / 16
        small = [change for change in finite if abs(change) <= limit]
        assert float(found.small[row].sum()) == pytest.approx(len(small) / 16)
        assert float(found.square[row].sum()) == pytest.approx(sum(c**2 for c in small) / 16)
        for side, sign in enumerate((1, -1)):
            assert float(found.large[row, side].sum()) == sum(sign * c > limit for c in finite) / 16


def test_many_changes_are_sampled_and_several_words_refused() -> None:
    weight, site = torch.linspace(-0.2, 0.2, 50), MemorySite("w", shape=(50,))
    for model in (BitFlip(3), RandomValue(-1e30, 1e30)):
        found = Deviations.of(weight, site, model, generator=torch.Generator().manual_seed(0))
        total = found.small.sum(1) + found.large.sum((1, 2)) + found.nonfinite
        torch.testing.assert_close(total, torch.ones_like(total))
    assert float(found.large.sum((1, 2)).min()) > 0.99  # a random value is hardly ever near the weight
    with pytest.raises(HoplonError, match="expected a fault model of one word"):
        Deviations.of(weight, site, Burst(words=2), generator=torch.Generator())


def measured(program: Program, data: Inputs, model: BitFlip) -> dict[str, np.ndarray]:
    """The share of inputs that fail for every weight, each struck in every way."""
    results = Campaign(program, data, sites=SITES, fault_model=model, sampling=Exhaustive()).run()
    by_weight = results.per_fault().group_by("site", "element", maintain_order=True).mean()
    return {
        site.name: by_weight.filter(by_weight["site"] == site.name).sort("element")["failure"].to_numpy()
        for site in SITES.select(program)
    }


def agreement(scores: Scores, truth: dict[str, np.ndarray]) -> float:
    flat = np.concatenate([scores[name].reshape(-1).numpy() for name in truth])
    return float(spearmanr(flat, np.concatenate(list(truth.values()))).statistic)


def test_it_foretells_failures_better_than_sensitivity() -> None:
    held_out, known = small_data()
    program = capture(small_net(), known.tensors[0])
    model = BitFlip(bits=(30,))
    truth = measured(program, held_out, model)
    many = known.take(list(range(16)) * 12)
    scores = expected_damage(program, many, loss=F.cross_entropy, fault_model=model)
    assert all(score.min() >= 0 and score.max() <= 1 for score in scores.values.values())
    ours, theirs = agreement(scores, truth), agreement(taylor(program, many, loss=F.cross_entropy), truth)
    assert ours > 0.65
    assert ours > theirs + 0.2
    mean = float(torch.cat([score.reshape(-1) for score in scores.values.values()]).mean())
    assert mean == pytest.approx(float(np.concatenate(list(truth.values())).mean()), abs=0.12)


class Grouped(nn.Module):
    """Output channels 0 and 1 read input channel 0, the others input channel 1, which is never above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1, groups=2, bias=False)
        self.fc = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.5, 0.4, 0.5, 0.4]).reshape(4, 1, 1, 1))
            self.fc.weight.copy_(torch.tensor([[0.3, 0.1, 0.1, 0.1], [0.1, 0.2, 0.1, 0.1]]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(F.relu(self.conv(x)).mean((2, 3)))
        return y


def test_a_weight_matters_only_where_its_input_can_drive_its_channel() -> None:
    x = torch.rand(64, 2, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, 1] *= -1
    model = Grouped().eval()
    program = capture(model, x[:4])
    before = program(x)
    scores = expected_damage(program, Inputs(x), loss=lambda y, _: y.square().mean(), fault_model=BitFlip(bits=(30,)))
    conv = scores["conv.weight"].reshape(4)
    assert conv[1] > 0.8  # drives the class that is never the first
    assert conv[2:].max() < 0.05  # a rise of these weights is a fall of their channels, which are zero as they are
    assert program(x).equal(before)


def test_weights_that_become_nan_are_as_bad_as_can_be() -> None:
    net = small_net()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = -1.5
    _, known = small_data()
    data = known.take(list(range(16)) * 8)
    scores = expected_damage(
        capture(net, known.tensors[0]), data, loss=F.cross_entropy, fault_model=BitFlip(bits=(30,))
    )
    assert float(scores["0.weight"][0, 0, 0, 0]) > 0.95
    assert scores.score == "expected_damage, BitFlip(bits=(30,))"


def test_the_seed_decides_and_small_changes_alone_do_little() -> None:
    _, known = small_data()
    program = capture(small_net(), known.tensors[0])
    runs = [expected_damage(program, known, loss=F.cross_entropy, batch=8, seed=seed) for seed in (0, 0, 1)]
    assert runs[0]["3.weight"].equal(runs[1]["3.weight"])
    assert not runs[0]["3.weight"].equal(runs[2]["3.weight"])
    small = expected_damage(program, known, loss=F.cross_entropy, fault_model=BitFlip(bits=(0, 1)))
    assert 0 < float(small["3.weight"].max()) < 1e-6


def test_layers_are_probed_at_what_occurs() -> None:
    _, known = small_data()
    program = capture(small_net(), known.tensors[0])
    step = next(s for s in program.steps if s.identity is not None and s.identity.kind == "conv")
    typical = torch.zeros(LEVELS, dtype=torch.float64)
    assert len(Layer(step, 4, typical, nonfinite=False).cells()) == 0
    typical[3] = 1e36
    assert Layer(step, 2, typical, nonfinite=True).cells().tolist() == [
        *([0, 0, 0], [0, 1, 0], [0, 0, 1]),
        *([1, 0, 0], [1, 1, 0], [1, 0, 1]),
    ]


def test_what_it_cannot_score_is_refused() -> None:
    _, known = small_data()
    program = capture(small_net(), known.tensors[0])
    with pytest.raises(HoplonError, match="expected passes of expected_damage to be an integer of at least 1, got 0"):
        expected_damage(program, known, loss=F.cross_entropy, passes=0)
    norm = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(SiteError, match=r"weights and biases of convolutions and linear layers, got 2\.weight"):
        expected_damage(
            capture(norm, known.tensors[0]), known, loss=F.cross_entropy, sites=Memory("2.weight", buffers=False)
        )
