from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import capture
from hoplon.errors import HoplonError
from hoplon.protections.values.tanh_baseline import with_tanh


class Nested(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), last)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def test_every_activation_becomes_a_tanh_and_the_model_is_left_alone() -> None:
    model = Nested(nn.ELU()).train()
    twin = with_tanh(model, torch.randn(3, 4))
    kinds = [site.kind for site in capture(Nested(nn.ELU()).eval(), torch.randn(3, 4)).value_sites]
    assert [site.kind for site in capture(twin.eval(), torch.randn(3, 4)).value_sites] == [
        "tanh" if kind in ("relu", "elu") else kind for kind in kinds
    ]
    assert isinstance(model.body[1], nn.ReLU)
    assert model.training
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert twin.body[0].weight is not model.body[0].weight  # type: ignore[index, union-attr]


def test_it_can_be_trained() -> None:
    twin = with_tanh(Nested(nn.ReLU()), torch.randn(3, 4))
    twin(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


def test_a_function_call_that_cannot_be_replaced_is_named() -> None:
    class Functional(Nested):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    with pytest.raises(HoplonError, match=r"of Functional as modules, got function calls at :relu \(1 in all\)"):
        with_tanh(Functional(nn.ReLU()), torch.randn(3, 4))
    with pytest.raises(HoplonError, match="expected an activation module in Linear to replace, got none"):
        with_tanh(nn.Linear(4, 4), torch.randn(3, 4))
