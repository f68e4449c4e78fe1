"""Several criteria, criteria of the user's, and the choice of outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hoplon.criteria import Criterion, Custom, Deviation, Outcome, Several, TopK, as_criterion, classify, measure
from hoplon.errors import DataError, HoplonError

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 2.0]])
ANGLES = torch.tensor([[0.0], [1.0], [2.0]])


def column(golden: Any, faulty: Any, labels: Tensor | None) -> Tensor:
    return (faulty[0] > golden[0]).any(1) if isinstance(golden, tuple) else (faulty > golden).any(1)


def test_columns_stand_side_by_side_and_each_judges_its_own_outputs() -> None:
    both = Several((TopK(1, outputs=0), Several((Deviation((0.5, 5.0), outputs=1), TopK(2, outputs=0)))))
    assert both.names == ("top-1@0", "deviation>0.5@1", "deviation>5@1", "top-2@0")
    golden = [LOGITS, ANGLES]
    faulty = [LOGITS.flip(1), ANGLES.clone()]
    faulty[1][1], faulty[1][2] = 3.0, float("nan")
    found = classify(both, reference=golden, golden=golden, faulty=faulty, labels=None)
    alone = [classify(part, reference=golden, golden=golden, faulty=faulty, labels=None) for part in both.parts]
    assert torch.equal(found, torch.cat(alone, 1))
    i, b, s, n = Outcome.IDENTICAL, Outcome.BENIGN, Outcome.SDC, Outcome.NONFINITE
    assert found.tolist() == [[s, i, i, s], [s, s, b, s], [b, n, n, b]]
    harmed = both.harmed(both.judged(golden), both.judged(faulty), None)
    assert torch.equal(harmed[:2], found[:2] == Outcome.SDC)


def test_a_measure_is_taken_once_and_is_nan_by_its_own_output() -> None:
    both = Several((TopK(1, outputs=0), TopK(2, outputs=0), TopK(1, outputs=1)))
    assert both.measure_names == ("confidence_change@0", "gap_change@0", "confidence_change@1", "gap_change@1")
    golden, faulty = [LOGITS, LOGITS], [LOGITS.flip(1), LOGITS / 0]
    found = measure(both, reference=golden, faulty=faulty)
    assert torch.equal(found[:, :2], measure(TopK(1), reference=[LOGITS], faulty=[LOGITS.flip(1)]))
    assert found[:, 2:].isnan().all()
    assert set(both.measures(tuple(golden), tuple(faulty))) == set(both.measure_names)


def test_an_input_counts_where_all_criteria_count_it() -> None:
    labels = torch.tensor([0, 2, 2])
    both = Several((TopK(1, outputs=0), TopK(1, outputs=1), Deviation((1.0,), outputs=1)))
    golden = both.judged([LOGITS, LOGITS[[0, 0, 1]]])
    assert both.eligible(golden, labels).tolist() == [True, False, False]
    right = both.correct(golden, labels)
    assert right is not None
    assert right.tolist() == [True, True, False]
    assert Several((Deviation((1.0,)),)).correct((LOGITS,), labels) is None


def test_check_asks_every_criterion() -> None:
    both = Several((Deviation((1.0,)), TopK(3)))
    with pytest.raises(DataError, match="more than k=3 classes"):
        both.check((LOGITS,), None)


def test_a_sequence_is_several() -> None:
    assert as_criterion([TopK(1), TopK(5)]) == Several((TopK(1), TopK(5)))
    assert as_criterion(TopK(1)) == TopK(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Several(()), "expected at least one criterion, got none"),
        (lambda: Several((TopK(1), Several((TopK(1),)))), "columns have different names, got 'top-1' twice"),
        (lambda: Several((TopK(1), Custom(column, "gap_change"))), "got 'gap_change' twice"),
        (
            lambda: Several((TopK(1), "top-5")),
            r"expected criteria of Several to be .*, got \(a value of type TopK, 'top-5'\)",
        ),  # type: ignore[arg-type]
        (lambda: Custom(column, ""), "expected a name other than fault, input, .* got ''"),
        (lambda: Custom(column, "reached"), "got 'reached'"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()


def test_outputs_are_positions_among_the_flat_ones() -> None:
    outputs = [torch.tensor([1, 2]), "note", LOGITS, ANGLES]
    assert TopK().judged(outputs) is LOGITS
    assert TopK(outputs=3).judged(outputs) is ANGLES
    picked = Custom(column, "up", outputs=(3, 0)).judged(outputs)
    assert [tensor is output for tensor, output in zip(picked, (ANGLES, outputs[0]), strict=True)] == [True, True]
    assert Several((TopK(), TopK(outputs=0), Deviation((1.0,), outputs=2))).positions(outputs) == (0, 2)


@pytest.mark.parametrize(
    ("criterion", "outputs", "message"),
    [
        (TopK(), [torch.tensor([1])], "expected a floating-point output for top-1, got none; say which to judge"),
        (TopK(outputs=2), [LOGITS], r"expected outputs of the model in \[0, 1\) for top-1@2, got 2"),
        (TopK(outputs=-1), [LOGITS], "got -1"),
        (TopK(outputs=1), [LOGITS, None], "expected a tensor as output 1 for top-1@1, got NoneType"),
    ],
)
def test_outputs_that_the_model_lacks_are_refused(criterion: Criterion, outputs: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        criterion.judged(outputs)


def test_custom_is_the_function() -> None:
    labels = torch.tensor([0, 1, 0])
    marked = Custom(lambda golden, faulty, labels: labels == 1, "marked")
    assert marked.harmed(LOGITS, LOGITS, labels).tolist() == [[False], [True], [False]]
    pair = Custom(column, "up", outputs=(1, 0))
    assert pair.harmed((ANGLES, LOGITS), (ANGLES + 1, LOGITS), None).all()
    assert repr(pair) == f"Custom({column.__module__}.column, name='up', outputs=(1, 0))"
    assert repr(Custom(partial(column), "up")) == "Custom(functools.partial, name='up', outputs=None)"


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(3), r"torch.float32 \(3,\)"),
        (torch.zeros(3, 1, dtype=torch.bool), r"torch.bool \(3, 1\)"),
        (True, "bool"),
    ],
)
def test_a_function_that_answers_something_else_is_refused_before_anything_runs(answer: object, got: str) -> None:
    custom = Custom(lambda golden, faulty, labels: answer, "odd")
    with pytest.raises(HoplonError, match=rf"expected bool of shape \(3,\) from the function of 'odd', got {got}"):
        custom.check(LOGITS, None)


@dataclass(frozen=True)
class AnyNegative(Criterion):
    """Harm when any element is negative; counts them."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("negative",)

    @property
    def measure_names(self) -> tuple[str, ...]:
        return ("negatives",)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        return (faulty < 0).any(1, keepdim=True)

    def measures(self, golden: Tensor, faulty: Tensor) -> dict[str, Tensor]:
        return {"negatives": (faulty < 0).sum(1)}


def test_a_new_criterion_is_one_class() -> None:
    faulty = LOGITS * torch.tensor([[1.0], [-1.0], [1.0]])
    found = classify(AnyNegative(), reference=[LOGITS], golden=[LOGITS], faulty=[faulty], labels=None)
    assert found.flatten().tolist() == [Outcome.IDENTICAL, Outcome.SDC, Outcome.IDENTICAL]
    assert measure(AnyNegative(), reference=[LOGITS], faulty=[faulty]).tolist() == [[0.0], [2.0], [0.0]]


def test_measures_that_are_not_named_are_refused() -> None:
    class Forgetful(AnyNegative):
        """Names one measure and takes none."""

        def measures(self, golden: Tensor, faulty: Tensor) -> dict[str, Tensor]:
            return {}

    with pytest.raises(HoplonError, match=r"expected the measures \('negatives',\) of negative, got \(\)"):
        measure(Forgetful(), reference=[LOGITS], faulty=[LOGITS])
