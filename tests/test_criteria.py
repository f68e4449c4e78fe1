from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hoplon.criteria import OUTCOME_NAMES, Criterion, Deviation, Outcome, TopK, classify
from hoplon.errors import DataError, HoplonError

NAN, INF = math.nan, math.inf

# One row per criterion: outputs (classes or one number) it judges, and a harmful change of [2, 1, 0].
CRITERIA: list[tuple[Criterion, list[float]]] = [
    (TopK(1), [2.0, 3.0, 0.0]),
    (TopK(2), [2.0, 3.0, 4.0]),
    (TopK(1, reference="label"), [2.0, 3.0, 0.0]),
    (Deviation((0.5,)), [2.0, 1.0, 0.75]),
    (Deviation((0.1, 0.5), unit="deg"), [2.0, 1.75, 0.0]),
]
GOLDEN = [2.0, 1.0, 0.0]

each_criterion = pytest.mark.parametrize(("criterion", "harm"), CRITERIA, ids=lambda v: getattr(v, "names", None))


def outcomes(criterion: Criterion, *rows: list[float], golden: list[float] = GOLDEN) -> Tensor:
    """Of faulty outputs on one input, for an arm whose golden output is `golden`."""
    faulty = torch.tensor(rows).reshape(len(rows), 3)
    reference, own = (torch.tensor([row] * len(rows)).reshape(len(rows), 3) for row in (GOLDEN, golden))
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return classify(criterion, reference=reference, golden=own, faulty=faulty, labels=labels)


@each_criterion
def test_every_run_has_one_outcome_per_column(criterion: Criterion, harm: list[float]) -> None:
    touched = [2.0, 1.0, 0.0625]
    rows = [GOLDEN, touched, harm, [NAN, 1.0, 0.0], [2.0, INF, 0.0], [2.0, 1.0, -INF]]
    outcome = outcomes(criterion, *rows)
    assert outcome.dtype == torch.uint8
    for column in outcome.T.tolist():
        assert column == [Outcome.IDENTICAL, Outcome.BENIGN, Outcome.SDC] + 3 * [Outcome.NONFINITE]
    assert outcome.shape == (6, len(criterion.names))


@each_criterion
def test_no_runs_have_no_outcomes(criterion: Criterion, harm: list[float]) -> None:
    assert outcomes(criterion).shape == (0, len(criterion.names))


@each_criterion
def test_identical_means_the_same_bits(criterion: Criterion, harm: list[float]) -> None:
    outcome = outcomes(criterion, [2.0, 1.0, -0.0], GOLDEN)
    assert outcome[:, 0].tolist() == [Outcome.BENIGN, Outcome.IDENTICAL]


@each_criterion
def test_identical_is_judged_against_the_golden_run_of_the_arm(criterion: Criterion, harm: list[float]) -> None:
    bounded = [2.0, 1.0, 0.03125]
    outcome = outcomes(criterion, bounded, GOLDEN, golden=bounded)
    assert outcome[:, 0].tolist() == [Outcome.IDENTICAL, Outcome.BENIGN]


@each_criterion
def test_an_arm_wrong_without_fault_counts_as_sdc(criterion: Criterion, harm: list[float]) -> None:
    assert outcomes(criterion, harm, golden=harm)[0, -1] == Outcome.SDC


@each_criterion
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_outcomes_are_those_of_any_dtype(criterion: Criterion, harm: list[float], dtype: torch.dtype) -> None:
    golden = torch.tensor([GOLDEN, GOLDEN], dtype=dtype)
    faulty = torch.tensor([GOLDEN, harm], dtype=dtype)
    labels = torch.tensor([0, 0])
    outcome = classify(criterion, reference=golden, golden=golden, faulty=faulty, labels=labels)
    assert outcome[:, -1].tolist() == [Outcome.IDENTICAL, Outcome.SDC]


def test_the_names_of_outcomes() -> None:
    assert OUTCOME_NAMES == ("identical", "benign", "sdc", "nonfinite", "exception", "uncorrectable")
    assert [OUTCOME_NAMES[outcome] for outcome in Outcome] == [outcome.name.lower() for outcome in Outcome]


def test_outputs_of_different_shapes_are_refused() -> None:
    one, two = torch.zeros(1, 3), torch.zeros(2, 3)
    with pytest.raises(DataError, match=r"of one shape, got \(2, 3\), \(2, 3\), \(1, 3\)"):
        classify(TopK(1), reference=two, golden=two, faulty=one, labels=None)


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


def test_top_k_counts_inputs_the_model_gets_right() -> None:
    golden, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1, 0])
    assert TopK(1).eligible(golden, labels).tolist() == [True, False, True]
    assert TopK(1).eligible(golden, None).tolist() == [True, True, True]


def test_deviation_is_of_the_worst_element_and_strict() -> None:
    golden = torch.zeros(3, 2, 2)
    faulty = golden.clone()
    faulty[1, 1, 0], faulty[2, 0, 1] = -15.0, 15.001
    assert Deviation((15.0,)).harmed(golden, faulty, None).tolist() == [[False], [False], [True]]
    assert Deviation((15.0,)).eligible(golden, torch.zeros(3, dtype=torch.int64)).all()


def test_deviation_takes_one_number_per_run() -> None:
    harmed = Deviation((1.0, 2.0)).harmed(torch.zeros(3), torch.tensor([0.5, -1.5, 2.5]), None)
    assert harmed.tolist() == [[False, False], [True, False], [True, True]]


def test_deviation_is_not_lost_in_a_narrow_dtype() -> None:
    golden, faulty = (torch.tensor([[v]], dtype=torch.float16) for v in (-60000.0, 60000.0))
    assert Deviation((100_000.0, 130_000.0)).harmed(golden, faulty, None).tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("criterion", "names"),
    [
        (TopK(), ("top-1",)),
        (TopK(5), ("top-5",)),
        (TopK(1, reference="label"), ("top-1-label",)),
        (Deviation((15, 30), unit="deg"), ("deviation>15deg", "deviation>30deg")),
        (Deviation((0.125,)), ("deviation>0.125",)),
    ],
)
def test_names(criterion: Criterion, names: tuple[str, ...]) -> None:
    assert criterion.names == names


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("criterion", "golden", "labels", "message"),
    [
        (TopK(1), LOGITS, torch.tensor([0, 3]), r"labels in \[0, 3\), .* got 3 for input 1"),
        (TopK(1), LOGITS, torch.tensor([-1, 0]), r"labels in \[0, 3\), .* got -1 for input 0"),
        (TopK(1), LOGITS, torch.tensor([0]), r"expected 2 labels, one per input, got shape \(1,\)"),
        (TopK(1, reference="label"), LOGITS, None, "expected labels for reference='label', got None; give y"),
        (TopK(1), LOGITS[0], None, r"shape \(inputs, classes\) .* got \(3,\); for other outputs use Deviation"),
        (TopK(3), LOGITS, None, r"more than k=3 classes, got \(2, 3\)"),
        (TopK(1), LOGITS / 0, None, r"NaN or infinity for input 0 \(2 of 2 inputs\)"),
        (Deviation((1.0,)), LOGITS.log(), None, "expected finite golden outputs, got NaN or infinity"),
        (Deviation((1.0,)), LOGITS, torch.tensor([0]), "expected 2 labels"),
    ],
)
def test_check_refuses(criterion: Criterion, golden: Tensor, labels: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        criterion.check(golden, labels)


@each_criterion
def test_check_accepts(criterion: Criterion, harm: list[float]) -> None:
    criterion.check(LOGITS, torch.tensor([0, 2]))
    if "label" not in criterion.names[0]:
        criterion.check(LOGITS, None)
    assert criterion.eligible(LOGITS, torch.tensor([0, 2])).tolist() == [True, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopK(0), "expected k of at least 1, got 0"),
        (lambda: TopK(1, reference="truth"), "expected reference 'golden' or 'label', got 'truth'"),
        (lambda: Deviation(()), r"increasing finite thresholds of at least 0, got \(\)"),
        (lambda: Deviation((2.0, 1.0)), r"got \(2.0, 1.0\)"),
        (lambda: Deviation((-1.0,)), r"got \(-1.0,\)"),
        (lambda: Deviation((NAN,)), r"got \(nan,\)"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()


def test_a_new_criterion_is_one_class() -> None:
    @dataclass(frozen=True)
    class AnyNegative(Criterion):
        """Harm when any element is negative."""

        @property
        def names(self) -> tuple[str, ...]:
            return ("negative",)

        def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
            return (faulty < 0).any(1, keepdim=True)

    assert outcomes(AnyNegative(), [2.0, -1.0, 0.0], GOLDEN).tolist() == [[Outcome.SDC], [Outcome.IDENTICAL]]
