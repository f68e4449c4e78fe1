from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from hoplon.criteria import EmbeddingDistance
from hoplon.errors import DataError, HoplonError


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return 1 - dot / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_distance_number_by_number(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    golden, faulty = (torch.randn(100, 3, 2, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    pairs = list(zip(golden.flatten(1).tolist(), faulty.flatten(1).tolist(), strict=True))
    for threshold in (0.3, 1.0, 1.7):
        found = EmbeddingDistance(threshold).harmed(golden, faulty, None)
        assert found.tolist() == [[cosine(g, f) > threshold] for g, f in pairs]
        assert 0 < found.sum() < 100
        far = EmbeddingDistance(3 * threshold, metric="euclidean").harmed(golden, faulty, None)
        assert far.tolist() == [[math.dist(g, f) > 3 * threshold] for g, f in pairs]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e38])
def test_the_cosine_does_not_depend_on_size(size: float) -> None:
    golden = torch.tensor([[1.0, 0.0]] * 4) * size
    faulty = torch.tensor([[3.0, 0.0], [1.0, 1e-3], [0.0, 2.0], [-1.0, 0.0]]) * torch.tensor(size).clamp(max=1e38)
    # 1 - cos of 1e-3 radians is 5e-7: subtracting from 1 in float32 would lose it
    for threshold, expected in [
        (0.0, [0, 1, 1, 1]),
        (4.9e-7, [0, 1, 1, 1]),
        (5.1e-7, [0, 0, 1, 1]),
        (1.5, [0, 0, 0, 1]),
    ]:
        assert EmbeddingDistance(threshold).harmed(golden, faulty, None).flatten().tolist() == expected


def test_zeros_have_no_direction() -> None:
    golden, faulty = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    assert EmbeddingDistance(0.99).harmed(golden, faulty, None).item()
    assert not EmbeddingDistance(1.0).harmed(golden, faulty, None).item()
    with pytest.raises(DataError, match="a direction, got all zeros for input 1; leave it out or use metric='eucl"):
        EmbeddingDistance(0.1).check(torch.cat([golden, faulty]), None)
    EmbeddingDistance(0.1, metric="euclidean").check(torch.cat([golden, faulty]), None)
    with pytest.raises(DataError, match=r"at least one element, got shape \(2, 0\)"):
        EmbeddingDistance(0.1).check(torch.zeros(2, 0), None)


def test_names() -> None:
    assert EmbeddingDistance(0.1).names == ("cosine>0.1",)
    assert EmbeddingDistance(2.5, metric="euclidean", outputs=3).names == ("euclidean>2.5@3",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EmbeddingDistance(-1.0), "expected a finite threshold of at least 0, got -1.0"),
        (lambda: EmbeddingDistance(math.nan), "got nan"),
        (
            lambda: EmbeddingDistance(1.0, metric="l1"),
            "expected metric of EmbeddingDistance to be 'cosine' or 'euclidean', got 'l1'",
        ),  # type: ignore[arg-type]
        (lambda: EmbeddingDistance(1.0, outputs=(0,)), "expected one output for EmbeddingDistance"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
