"""Capture: equality with the model, and one clear error for what cannot be captured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hoplon import CaptureError, DataError, capture
from hoplon.formats import equal_bits
from tests.nets import NETS


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_program_equals_model_bit_for_bit(name: str, size: int) -> None:
    net = NETS[name]
    model, x = net.model(), net.batch(size)
    with torch.inference_mode():
        wanted = model(x.clone())
    assert equal_bits(capture(model, net.batch(4))(x), wanted)


def test_structured_inputs_and_outputs_keep_their_structure() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
            return {"scaled": x * scale, "parts": (x + 1, x - 1)}

    x, scale = torch.randn(3, 2), torch.randn(3, 2)
    program = capture(Pair().eval(), (x,), kwargs={"scale": scale})
    found = program(x, scale=scale)
    assert equal_bits(found["scaled"], x * scale)
    assert equal_bits(found["parts"][1], x - 1)


def test_memory_is_shared_with_the_model_and_not_changed() -> None:
    net = NETS["mlp"]
    model = net.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = capture(model, net.batch(2))
    assert program.memory()["fc1.weight"].data_ptr() == model.fc1.weight.data_ptr()
    assert all(equal_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.fc1.weight.requires_grad
    assert model.fc1.weight.grad is None


def test_fingerprint_follows_structure_and_weights() -> None:
    net = NETS["mlp"]
    same = capture(net.model(), net.batch(2)).fingerprint()
    assert capture(net.model(), net.batch(3, seed=9)).fingerprint() == same
    assert capture(net.model(seed=5), net.batch(2)).fingerprint() != same


class _Bare(nn.Module):
    """A forward given at construction."""

    def __init__(self, forward: object) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.linear(x) if x.sum() > 0 else x, "expected a model that torch.export can trace, got _Bare"),
        (lambda m, x: m.linear(x) - m.linear(x).mean(0, keepdim=True), "expected every value to keep one batch axis"),
        (
            lambda m, x: m.linear(x).cumsum(0),
            "expected samples .* that do not influence each other, got operator cumsum",
        ),
        (lambda m, x: m.linear(x).reshape(2, -1), "free batch axis|keep one batch axis"),
        (lambda m, x: m.linear(x) + torch.rand(4), "expected a deterministic model, got two different outputs"),
    ],
)
def test_a_model_that_cannot_be_captured_is_named(forward: object, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(_Bare(forward).eval(), torch.randn(2, 4))


def test_train_mode_is_refused_with_the_way_out() -> None:
    model = NETS["residual"].model()
    model.bn1.train()
    with pytest.raises(CaptureError, match=r"got train mode in bn1; call model.eval\(\) first"):
        capture(model, NETS["residual"].batch(2))


def test_an_example_without_a_batch_axis_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"got inputs of shape \(2, 8, 8\) .* with the batch axis first"):
        capture(NETS["residual"].model(), torch.randn(2, 8, 8))
    with pytest.raises(CaptureError, match="to be a free batch axis, got a model that fixes it"):
        capture(nn.Conv2d(2, 4, 3).eval(), torch.randn(2, 8, 8))
    with pytest.raises(CaptureError, match="expected inputs that share a first batch axis"):
        capture(NETS["mlp"].model(), torch.tensor(1.0))
    with pytest.raises(CaptureError, match="expected an example of at least one sample, got an empty batch"):
        capture(NETS["mlp"].model(), torch.zeros(0, 6))
    with pytest.raises(CaptureError, match="at least one tensor, got none"):
        capture(NETS["mlp"].model(), ())


def test_inputs_of_another_shape_or_dtype_are_refused() -> None:
    program = capture(NETS["mlp"].model(), NETS["mlp"].batch(2))
    with pytest.raises(DataError, match=r"expected input 0 of Mlp with shape \(batch, 6\), got \(2, 7\)"):
        program(torch.zeros(2, 7))
    with pytest.raises(DataError, match=r"expected input 0 of Mlp as torch.float32, got torch.float64"):
        program(torch.zeros(2, 6, dtype=torch.float64))
