from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hoplon.importance
from hoplon.errors import DataError, SiteError
from hoplon.formats import equal_bits
from hoplon.importance import Scores, taylor
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.sites import Memory
from tests.support.networks import NETWORKS, WIRINGS, Views, seeded


def plain(model: nn.Module, data: Inputs, batch: int, loss: object = F.cross_entropy) -> dict[str, Tensor]:
    """Slow reference: ordinary autograd on a copy of the user's model."""
    model = copy.deepcopy(model)
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for start in range(0, len(data), batch):
        model.zero_grad()
        labels = None if data.y is None else data.y[start : start + batch]
        assert callable(loss)
        loss(model(data.tensors[0][start : start + batch]), labels).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            scores[name] += (p.grad * p.detach()) ** 2
    return scores


def labelled(case: str, count: int = 11) -> Inputs:
    x = NETWORKS[case].batch(count)
    labels = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(2))
    return Inputs(x, labels, name="train")


# "views" overwrites what the backward pass of eager mode needs; the functional form does not, so it is tested apart
@pytest.mark.parametrize("case", [case for case in WIRINGS if case != "views"])
@pytest.mark.parametrize("batch", [1, 4])
def test_it_equals_plain_autograd(case: str, batch: int) -> None:
    model = NETWORKS[case].model()
    data = labelled(case)
    scores = taylor(capture(model, data.tensors[0]), data, loss=F.cross_entropy, batch=batch)
    wanted = plain(model, data, batch)
    assert scores.total > 10
    assert any(score.max() > 0 for score in scores.values.values())
    for name, score in scores.values.items():
        torch.testing.assert_close(score, wanted[name], rtol=1e-4, atol=1e-10)


class ViewsOutOfPlace(Views):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.cat([F.relu(y[:, :2]), y[:, 2:]], 1)
        return self.fc(F.relu(y * 0.5).flatten(1))


def test_in_place_operators_that_autograd_refuses_do_no_harm() -> None:
    data = labelled("views")
    scores = taylor(capture(seeded(Views()), data.tensors[0]), data, loss=F.cross_entropy, batch=4)
    wanted = plain(seeded(ViewsOutOfPlace()), data, 4)
    for name, score in scores.values.items():
        torch.testing.assert_close(score, wanted[name], rtol=1e-4, atol=1e-10)


def test_only_convolutions_and_linear_layers_by_default() -> None:
    data = labelled("in-place-sum")
    program = capture(NETWORKS["in-place-sum"].model(), data.tensors[0])
    scores = taylor(program, data, loss=F.cross_entropy)
    assert set(scores.values) == {
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc") for kind in ("weight", "bias")
    }
    one = taylor(program, data, loss=F.cross_entropy, sites=Memory("bn.weight"))
    assert list(one.values) == ["bn.weight"]
    with pytest.raises(SiteError, match="no memory site matches 'conv9"):
        taylor(program, data, loss=F.cross_entropy, sites=Memory("conv9.*"))


def test_a_tied_weight_has_one_score_from_both_its_uses() -> None:
    model = NETWORKS["shared"].model()
    data = labelled("shared")
    scores = taylor(capture(model, data.tensors[0]), data, loss=F.cross_entropy, batch=11)
    assert set(scores.values) == {"a.weight", "a.bias", "b.bias"}
    torch.testing.assert_close(scores["a.weight"], plain(model, data, 11)["a.weight"])


def test_the_users_model_is_not_touched() -> None:
    model = NETWORKS["in-place-sum"].model()
    data = labelled("in-place-sum")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = capture(model, data.tensors[0])
    with torch.inference_mode():
        taylor(program, data, loss=F.cross_entropy, batch=4)
    assert all(equal_bits(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_provenance_and_the_dependence_on_the_batch() -> None:
    data = labelled("in-place-sum")
    program = capture(NETWORKS["in-place-sum"].model(), data.tensors[0])
    seen: list[tuple[int, int]] = []
    scores = taylor(program, data, loss=F.cross_entropy, batch=4, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(4, 11), (8, 11), (11, 11)]
    about = (scores.score, scores.data, scores.n_samples, scores.batch, scores.loss)
    assert about == ("taylor", "train", 11, 4, "cross_entropy")
    assert scores.fingerprint == program.fingerprint()
    other = taylor(program, data, loss=F.cross_entropy, batch=11)
    assert not torch.allclose(scores["fc.weight"], other["fc.weight"])


def test_data_without_labels_and_losses_that_are_none() -> None:
    model = NETWORKS["in-place-sum"].model()
    x = NETWORKS["in-place-sum"].batch(5)
    program = capture(model, x)

    def square(output: Tensor, labels: object) -> Tensor:
        assert labels is None
        return output.square().mean()

    found = taylor(program, x, loss=square)
    torch.testing.assert_close(found["fc.weight"], plain(model, Inputs(x), 64, square)["fc.weight"])
    with pytest.raises(DataError, match=r"expected a loss that gives one finite number per batch, got shape \(5, 4\)"):
        taylor(program, x, loss=lambda output, labels: output)
    with pytest.raises(DataError, match="got tensor\\(nan"):
        taylor(program, x, loss=lambda output, labels: output.sum() * float("nan"))
    with pytest.raises(DataError, match="got one without a gradient"):
        taylor(program, x, loss=lambda output, labels: output.detach().sum())


def test_the_package_offers_the_function() -> None:
    assert callable(hoplon.importance.taylor)
    assert hoplon.importance.Scores is Scores
