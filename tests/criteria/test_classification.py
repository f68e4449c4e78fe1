from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hoplon.criteria import TopK, measure
from hoplon.errors import DataError, HoplonError

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])


def top_by_sorting(row: list[float], k: int) -> list[int]:
    """The k first classes: a stable sort puts the lower index first among equals."""
    return sorted(range(len(row)), key=lambda index: -row[index])[:k]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_over_every_order_and_tie(k: int) -> None:
    rows = [list(row) for row in itertools.product([0.0, 1.0, 2.0], repeat=4)]
    pairs = list(itertools.product(rows, rows))
    golden, faulty = (torch.tensor(side) for side in zip(*pairs, strict=True))
    labels = torch.arange(len(pairs)) % 4
    expected = [top_by_sorting(g, 1)[0] not in top_by_sorting(f, k) for g, f in pairs]
    assert TopK(k).harmed(golden, faulty, labels)[:, 0].tolist() == expected
    expected = [label not in top_by_sorting(f, k) for label, (_, f) in zip(labels.tolist(), pairs, strict=True)]
    assert TopK(k, reference="label").harmed(golden, faulty, labels)[:, 0].tolist() == expected


def test_inputs_that_the_model_gets_right_count() -> None:
    golden, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1, 0])
    right = TopK(1).correct(golden, labels)
    assert right is not None
    assert right.tolist() == TopK(1).eligible(golden, labels).tolist() == [True, False, True]
    assert TopK(1).correct(golden, None) is None
    assert TopK(1).eligible(golden, None).tolist() == [True, True, True]


def standing(row: list[float], wanted: int) -> tuple[float, float]:
    """Softmax probability and lead of a class, number by number."""
    powers = [math.exp(value - max(row)) for value in row]
    others = [value for index, value in enumerate(row) if index != wanted]
    return powers[wanted] / sum(powers), row[wanted] - max(others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_measures_are_what_the_golden_class_lost(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    golden, faulty = (torch.randn(200, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    found = measure(TopK(3), reference=[golden], faulty=[faulty])
    for before, after, moved in zip(golden.tolist(), faulty.tolist(), found.tolist(), strict=True):
        wanted = top_by_sorting(before, 1)[0]
        expected = [b - a for a, b in zip(standing(before, wanted), standing(after, wanted), strict=True)]
        assert moved == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_measures_of_huge_logits_are_no_nan() -> None:
    faulty = torch.tensor([[-3e38, 3e38, 0.0], [3e38, 0.0, -3e38]])
    found = measure(TopK(), reference=[LOGITS[[0, 0]]], faulty=[faulty])
    assert found[:, 1].tolist() == [-math.inf, pytest.approx(3e38)]
    before = standing(LOGITS[0].tolist(), 0)[0]
    assert found[:, 0].tolist() == pytest.approx([-before, 1 - before])


@pytest.mark.parametrize(
    ("criterion", "names", "measures"),
    [
        (TopK(), ("top-1",), ("confidence_change", "gap_change")),
        (TopK(5), ("top-5",), ("confidence_change", "gap_change")),
        (TopK(1, reference="label"), ("top-1-label",), ("confidence_change", "gap_change")),
        (TopK(1, outputs=2), ("top-1@2",), ("confidence_change@2", "gap_change@2")),
    ],
)
def test_names(criterion: TopK, names: tuple[str, ...], measures: tuple[str, ...]) -> None:
    assert criterion.names == names
    assert criterion.measure_names == measures == tuple(criterion.measures(LOGITS, LOGITS))


@pytest.mark.parametrize(
    ("criterion", "golden", "labels", "message"),
    [
        (TopK(1), LOGITS, torch.tensor([0, 3]), r"labels in \[0, 3\), .* got 3 for input 1"),
        (TopK(1), LOGITS, torch.tensor([-1, 0]), r"labels in \[0, 3\), .* got -1 for input 0"),
        (TopK(1), LOGITS, torch.tensor([[0], [1]]), r"expected 2 labels, one class per input, got shape \(2, 1\)"),
        (TopK(1, reference="label"), LOGITS, None, "expected labels for reference='label', got None; give y"),
        (TopK(1), LOGITS[0], None, r"shape \(inputs, classes\) .* got \(3,\); for other outputs use another"),
        (TopK(3), LOGITS, None, r"more than k=3 classes, got \(2, 3\)"),
        (TopK(1), LOGITS / 0, None, r"NaN or infinity for input 0 \(2 of 2 inputs\)"),
    ],
)
def test_check_refuses(criterion: TopK, golden: Tensor, labels: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        criterion.check(golden, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopK(0), "expected k of TopK to be an integer of at least 1, got 0"),
        (lambda: TopK(1, reference="truth"), "expected reference of TopK to be 'golden' or 'label', got 'truth'"),  # type: ignore[arg-type]
        (lambda: TopK(1, outputs=(0, 1)), r"expected one output for TopK, got \(0, 1\); give its position"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
