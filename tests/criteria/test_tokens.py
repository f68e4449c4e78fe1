from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hoplon.criteria import Criterion, PerplexityChange, TokenMatch
from hoplon.errors import DataError, HoplonError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def logits(seed: int, dtype: torch.dtype = torch.float32, runs: int = 40) -> Tensor:
    """Quarters, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-8, 8, (runs, 5, 4), generator=generator) / 4).to(dtype)


def token_ids(runs: int = 40) -> Tensor:
    """Tokens of a vocabulary of four; about a third of the positions does not count."""
    labels = torch.randint(-2, 4, (runs, 5), generator=torch.Generator().manual_seed(9))
    labels[:, 0] = labels[:, 0].clamp(min=0)
    return labels.where(labels >= 0, -100)


def greedy(row: list[float]) -> int:
    return row.index(max(row))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", [None, token_ids()])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_token_match_token_by_token(dtype: torch.dtype, labels: Tensor | None, share: float) -> None:
    golden, faulty = logits(0, dtype), logits(1, dtype)
    faulty[:, :3] = torch.where(torch.arange(40).view(-1, 1, 1) % 2 == 0, golden[:, :3], faulty[:, :3])
    harmed = TokenMatch(share).harmed(golden, faulty, labels)
    expected = []
    for run in range(40):
        counted = [t for t in range(5) if labels is None or labels[run, t] >= 0]
        changed = sum(greedy(golden[run, t].tolist()) != greedy(faulty[run, t].tolist()) for t in counted)
        expected.append([changed / len(counted) > share])
    assert harmed.tolist() == expected
    assert 0 < harmed.sum() < 40


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.05, 1.5])
def test_perplexity_number_by_number(dtype: torch.dtype, factor: float) -> None:
    golden, labels = logits(2, dtype), token_ids()
    faulty = (golden.double() + logits(3, torch.float64) / 2).to(dtype)
    harmed = PerplexityChange(factor).harmed(golden, faulty, labels)
    expected = []
    for run in range(40):
        perplexity = []
        for side in (golden, faulty):
            surprise = []
            for t, label in enumerate(labels[run].tolist()):
                if label >= 0:
                    row = side[run, t].tolist()
                    surprise.append(math.log(sum(math.exp(value) for value in row)) - row[label])
            perplexity.append(math.exp(sum(surprise) / len(surprise)))
        expected.append([perplexity[1] > factor * perplexity[0]])
    assert harmed.tolist() == expected
    assert 0 < harmed.sum() < 40


def test_a_perplexity_that_falls_is_no_harm_and_one_beyond_float_is() -> None:
    golden, labels = torch.tensor([[[1.0, 0.0]]] * 3), torch.tensor([[0]] * 3)
    faulty = torch.tensor([[[9.0, 0.0]], [[-3e38, 3e38]], [[3e38, -3e38]]])
    assert PerplexityChange(1.1).harmed(golden, faulty, labels).tolist() == [[False], [True], [False]]


def test_what_does_not_count_cannot_harm() -> None:
    golden, labels = logits(4), torch.tensor([[0, 1, -100, -100, 3]] * 40)
    faulty = golden.clone()
    faulty[:, 2:4] = 7 - faulty[:, 2:4]
    assert not TokenMatch().harmed(golden, faulty, labels).any()
    assert not PerplexityChange(1.001).harmed(golden, faulty, labels).any()
    assert TokenMatch().harmed(golden, faulty, None).any()


def test_names() -> None:
    assert TokenMatch().names == ("token-match",)
    assert TokenMatch(0.05, outputs=1).names == ("token-match>5%@1",)
    assert PerplexityChange(1.25).names == ("perplexity>1.25x",)


OUTPUTS, IDS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("criterion", "golden", "labels", "message"),
    [
        (TokenMatch(), torch.zeros(2, 3), None, r"shape \(inputs, length, vocabulary\), got \(2, 3\)"),
        (TokenMatch(), torch.zeros(2, 0, 4), None, r"vocabulary\), got \(2, 0, 4\)"),
        (TokenMatch(), OUTPUTS, IDS[:, 0], r"labels of shape \(2, 3\), one token per position, got \(2,\)"),
        (TokenMatch(), OUTPUTS, IDS - torch.tensor([[0], [100]]), "in the labels of every input, got none for input 1"),
        (PerplexityChange(2), OUTPUTS, None, "expected labels for the perplexity, got None; give y with the token ids"),
        (PerplexityChange(2), OUTPUTS, IDS[:, :2], r"labels of shape \(2, 3\), .* got \(2, 2\)"),
        (PerplexityChange(2), OUTPUTS, IDS - 1, "got none for input 0"),
        (
            PerplexityChange(2),
            OUTPUTS,
            IDS + torch.tensor([[0, 0, 0], [0, 4, 0]]),
            "expected labels below 4, .* got 4 for input 1, position 1",
        ),
    ],
)
def test_check_refuses(criterion: Criterion, golden: Tensor, labels: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        criterion.check(golden, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenMatch(1.0), r"expected share of TokenMatch to be a number of at least 0 and below 1, got 1\.0"),
        (lambda: TokenMatch(outputs=(0,)), "expected one output for TokenMatch"),
        (lambda: PerplexityChange(1.0), "expected a finite factor above 1, got 1.0"),
        (lambda: PerplexityChange(math.inf), "got inf"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
