from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from hoplon.errors import HoplonError, SiteError
from hoplon.importance import nisp
from hoplon.importance._nisp import output_importance
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.sites import Memory
from tests.support.networks import seeded


def paths(responses: np.ndarray) -> np.ndarray:
    """Slow reference: the series over paths of every length, pair by pair."""
    count = responses.shape[1]
    spread = responses.std(0) / responses.std(0).max()
    ties = np.empty((count, count))
    for i in range(count):
        for j in range(count):
            correlation = spearmanr(responses[:, i], responses[:, j]).statistic
            ties[i, j] = 0.5 * max(spread[i], spread[j]) + 0.5 * (1 - abs(correlation))
    damped = 0.9 / max(abs(np.linalg.eigvals(ties))) * ties
    total, power = np.zeros(count), np.ones(count)
    for _ in range(500):
        power = damped @ power
        total += power
    return total / total.sum()


def test_the_ranking_of_outputs_is_the_sum_over_all_paths() -> None:
    responses = np.random.default_rng(0).normal(size=(40, 5)) * [1, 2, 3, 4, 5]
    responses[:, 1] = np.exp(responses[:, 0])  # one rank, two numbers
    np.testing.assert_allclose(output_importance(responses), paths(responses), rtol=1e-9)
    assert output_importance(np.zeros((3, 4))).tolist() == [0.25] * 4


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
        self.fc1, self.fc2 = nn.Linear(3 * 4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.bn(self.conv(x))).flatten(1)
        return self.fc2(F.relu(self.fc1(y)))


def test_importance_flows_back_through_absolute_weights() -> None:
    model = seeded(Small())
    x = torch.randn(9, 2, 3, 3, generator=torch.Generator().manual_seed(3))
    scores = nisp(capture(model, x), Inputs(x), batch=4)
    with torch.no_grad():
        outputs = torch.from_numpy(output_importance(model(x).double().numpy()))
        w1, w2, conv = (layer.weight.abs().double() for layer in (model.fc1, model.fc2, model.conv))
        hidden = w2.T @ outputs
        gain = model.bn.weight.abs() / (model.bn.running_var + model.bn.eps).sqrt()
        channels = (w1.T @ hidden).reshape(3, 4).sum(1) * gain
        wanted = {
            "fc2.weight": w2 * outputs[:, None],
            "fc2.bias": model.fc2.bias.abs() * outputs,
            "fc1.weight": w1 * hidden[:, None],
            "conv.weight": conv * channels[:, None, None, None],
        }
    for name, value in wanted.items():
        torch.testing.assert_close(scores[name], (value / value.sum()).float())
    assert all(abs(float(score.sum()) - 1) < 1e-5 for score in scores.values.values())


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(x)).softmax(1) * 0)


def test_what_it_cannot_score_is_refused() -> None:
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(3))
    program = capture(seeded(Small()), x)
    with pytest.raises(SiteError, match=r"weights and biases of convolutions and linear layers, got bn\.weight"):
        nisp(program, x, sites=Memory("bn.weight"))
    flat = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    with pytest.raises(HoplonError, match=r"expected a finite importance of fc1\.weight, got none"):
        nisp(capture(seeded(Centred()), flat), flat)
