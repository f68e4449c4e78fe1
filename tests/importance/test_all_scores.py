"""What holds for every score."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hoplon.errors import DataError, SiteError
from hoplon.formats import equal_bits
from hoplon.importance import Scores
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory
from hoplon.registry import components
from tests.support.networks import NETWORKS, seeded

SCORES = components("score")
WITH_DATA = [name for name, score in SCORES.items() if score.fields["data"][1] is inspect.Parameter.empty]

Score = Callable[..., Scores]


def named(name: str) -> Score:
    score = SCORES[name]

    def scored(program: Program, data: object, **options: object) -> Scores:
        taken = {option: value for option, value in options.items() if option in score.fields}
        found: Scores = score.build(program, data, **taken)
        return found

    return scored


def labelled(case: str, count: int = 11) -> Inputs:
    labels = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(2))
    return Inputs(NETWORKS[case].batch(count), labels, name="train")


@functools.cache
def captured(case: str, count: int = 5) -> tuple[nn.Module, Program]:
    model = NETWORKS[case].model()
    return model, capture(model, NETWORKS[case].batch(count))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("case", ["in-place-sum", "branches"])
def test_every_weight_gets_one_finite_score_and_the_file_keeps_it(name: str, case: str, tmp_path: Path) -> None:
    (model, program), data = captured(case), labelled(case)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scores = named(name)(program, data, loss=F.cross_entropy, batch=4)
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters() if not key.startswith("bn")}
    assert {key: tuple(score.shape) for key, score in scores.values.items()} == shapes
    assert all(score.min() >= 0 and score.max() > 0 for key, score in scores.values.items() if "bias" not in key)
    assert scores.fingerprint == program.fingerprint()
    assert scores.score.startswith(SCORES[name].label)
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert all(equal_bits(loaded[key], scores[key]) for key in scores.values)
    again = named(name)(program, data, loss=F.cross_entropy, batch=4)
    assert all(equal_bits(again[key], scores[key]) for key in scores.values)
    assert all(equal_bits(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", WITH_DATA)
def test_any_iterable_of_batches_gives_the_same_scores(name: str) -> None:
    (_, program), data = captured("in-place-sum"), labelled("in-place-sum")

    def once() -> Iterator[tuple[Tensor, Tensor | None]]:
        yield from ((part.tensors[0], part.y) for part in data.batches(4))

    seen: list[tuple[int, int]] = []
    whole = named(name)(program, data, loss=F.cross_entropy, batch=4)
    streamed = named(name)(program, once(), loss=F.cross_entropy, progress=lambda *done: seen.append(done))
    loaded = named(name)(program, DataLoader(data, batch_size=4), loss=F.cross_entropy)
    mapped = named(name)(program, torch.utils.data.Subset(data, range(11)), loss=F.cross_entropy, batch=4)
    for other in (streamed, loaded, mapped):
        assert all(equal_bits(whole[key], other[key]) for key in whole.values)
        assert (other.n_samples, other.batch) == (11, 4) == (whole.n_samples, whole.batch)
    assert seen == [(4, 4), (8, 8), (11, 11)]


@pytest.mark.parametrize("name", WITH_DATA)
def test_no_data_and_no_site_are_refused(name: str) -> None:
    _, program = captured("in-place-sum")
    with pytest.raises(DataError, match="expected at least 1 samples, as many as a batch holds, got fewer"):
        named(name)(program, [], loss=F.cross_entropy)
    with pytest.raises(
        DataError, match="expected .* to be Inputs or a Dataset or a Tensor or a mapping .* or an iterable, got 3"
    ):
        named(name)(program, 3, loss=F.cross_entropy)
    with pytest.raises(SiteError, match="no memory site matches 'conv9"):
        named(name)(program, labelled("in-place-sum"), loss=F.cross_entropy, sites=Memory("conv9.*"))


class FixedBatch(nn.Module):
    """Takes four samples at a time, no more and no fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y + torch.zeros(4, 3)


@pytest.mark.filterwarnings("ignore::hoplon.errors.HoplonWarning")
def test_a_fixed_batch_takes_full_batches_only() -> None:
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    data = Inputs(x, torch.arange(11) % 3)
    program = capture(seeded(FixedBatch()), x[:4])
    assert program.signature.fixed_batch == 4
    for name in ("taylor", "gradient", "fisher"):
        seen: list[tuple[int, int]] = []
        scores = named(name)(program, data, loss=F.cross_entropy, progress=lambda *done, seen=seen: seen.append(done))
        assert seen == [(4, 8), (8, 8)]
        assert scores.n_samples == 8
        first = named(name)(program, data.take(range(8)), loss=F.cross_entropy)
        assert first["fc.weight"].equal(scores["fc.weight"])
        with pytest.raises(DataError, match="expected at least 4 samples"):
            named(name)(program, data.take([0]), loss=F.cross_entropy)
