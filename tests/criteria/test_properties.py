"""What holds for every criterion: one outcome per run and column, each run by itself, NaN first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hoplon.criteria import OUTCOME_NAMES, Outcome, Several, classify, measure
from hoplon.errors import DataError
from tests.criteria.cases import CASES, Case, Outputs

each_case = pytest.mark.parametrize("case", CASES, ids=str)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def cast(outputs: Outputs, dtype: torch.dtype) -> Outputs:
    return tuple(output.to(dtype) if output.is_floating_point() else output for output in outputs)


def outcomes(case: Case, golden: Outputs, faulty: Outputs, own: Outputs | None = None) -> Tensor:
    """Judged against `golden`, for an arm whose golden outputs are `own`."""
    labels = case.labels(len(golden[0]))
    return classify(case.criterion, reference=golden, golden=own or golden, faulty=faulty, labels=labels)


def spoiled(outputs: Outputs, run: int, output: int, value: float) -> Outputs:
    changed = [tensor.clone() for tensor in outputs]
    changed[output][run].view(-1)[0] = value
    return tuple(changed)


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_golden_outputs_are_not_harmed(case: Case, dtype: torch.dtype) -> None:
    golden, criterion = cast(case.golden(16), dtype), case.criterion
    criterion.check(criterion.judged(golden), case.labels(16))
    assert criterion.eligible(criterion.judged(golden), case.labels(16)).all()
    harmed = criterion.harmed(criterion.judged(golden), criterion.judged(golden), case.labels(16))
    assert harmed.dtype == torch.bool
    assert harmed.shape == (16, len(criterion.names))
    assert not harmed.any()


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_run_has_one_outcome_per_column(case: Case, dtype: torch.dtype) -> None:
    golden = cast(case.golden(5), dtype)
    first, *rest = golden
    rows = torch.stack([first[0], case.touch(first[:2])[1], case.harm(first[:3])[2], *first[3:]])
    faulty = (rows, *rest)
    for run, value in ((3, math.nan), (4, -math.inf)):
        faulty = spoiled(faulty, run, 0, value)
    outcome = outcomes(case, golden, faulty)
    assert outcome.dtype == torch.uint8
    for column in outcome.T.tolist():
        assert column == [Outcome.IDENTICAL, Outcome.BENIGN, Outcome.SDC] + 2 * [Outcome.NONFINITE]


@each_case
def test_non_finite_is_looked_for_in_every_judged_output(case: Case) -> None:
    golden = case.golden(2)
    for position in case.criterion.positions(golden):
        if golden[position].is_floating_point():
            outcome = outcomes(case, golden, spoiled(golden, 1, position, math.nan))
            assert (outcome[0] == Outcome.IDENTICAL).all()
            assert (outcome[1] == Outcome.NONFINITE).all()


@each_case
def test_outputs_that_are_not_judged_do_not_count(case: Case) -> None:
    golden, extra = case.golden(2), torch.zeros(2, 3)
    outcome = outcomes(case, (*golden, extra), (*golden, extra / 0))
    assert (outcome == Outcome.IDENTICAL).all()


@each_case
def test_each_run_is_judged_by_itself(case: Case) -> None:
    golden = case.golden(12)
    harmed = case.harm(golden[0])
    mixed = torch.arange(12).view(-1, *[1] * (golden[0].ndim - 1)) % 3 == 1
    faulty = (torch.where(mixed, harmed, golden[0]), *golden[1:])
    faulty = spoiled(faulty, 5, 0, math.nan)
    together, moved = outcomes(case, golden, faulty), measured(case, golden, faulty)
    for run in range(12):
        one = slice(run, run + 1)
        alone = tuple(x[one] for x in golden), tuple(x[one] for x in faulty)
        assert torch.equal(outcomes(case, *alone), together[one])
        assert torch.equal(measured(case, *alone).nan_to_num(7), moved[one].nan_to_num(7))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = tuple(x[order] for x in golden), tuple(x[order] for x in faulty)
    assert torch.equal(outcomes(case, *shuffled), together[order])


def measured(case: Case, golden: Outputs, faulty: Outputs) -> Tensor:
    return measure(case.criterion, reference=golden, faulty=faulty)


@each_case
def test_measures_are_zero_without_a_change_and_nan_without_a_finite_output(case: Case) -> None:
    golden = case.golden(3)
    moved = measured(case, golden, spoiled(golden, 2, 0, math.inf))
    assert moved.dtype == torch.float32
    assert moved.shape == (3, len(case.criterion.measure_names))
    assert (moved[:2] == 0).all()
    assert moved[2].isnan().all()


@each_case
def test_no_runs_have_no_outcomes(case: Case) -> None:
    nothing = tuple(output[:0] for output in case.golden(1))
    assert outcomes(case, nothing, nothing).shape == (0, len(case.criterion.names))
    assert measured(case, nothing, nothing).shape == (0, len(case.criterion.measure_names))


@each_case
def test_identical_means_the_same_bits_as_the_golden_run_of_the_arm(case: Case) -> None:
    golden = case.golden(2)
    own = (case.touch(golden[0]), *golden[1:])
    faulty = (torch.stack([own[0][0], golden[0][1]]), *golden[1:])
    outcome = outcomes(case, golden, faulty, own)
    assert (outcome[0] == Outcome.IDENTICAL).all()
    assert (outcome[1] == Outcome.BENIGN).all()


@each_case
def test_an_arm_wrong_without_fault_counts_as_sdc(case: Case) -> None:
    golden = case.golden(1)
    own = (case.harm(golden[0]), *golden[1:])
    assert (outcomes(case, golden, own, own) == Outcome.SDC).all()


@each_case
def test_golden_outputs_that_are_not_finite_and_labels_of_another_count_are_refused(case: Case) -> None:
    criterion, golden = case.criterion, case.golden(4)
    bad = spoiled(golden, 2, 0, math.nan)
    with pytest.raises(DataError, match=r"NaN or infinity for input 2 \(1 of 4 inputs\)"):
        criterion.check(criterion.judged(bad), case.labels(4))
    with pytest.raises(DataError, match=r"expected 4 labels, one per input, got shape \(3"):
        criterion.check(criterion.judged(golden), torch.zeros(3, 2, dtype=torch.int64))


@each_case
def test_a_description_is_the_same_in_every_process(case: Case) -> None:
    assert " at 0x" not in repr(case.criterion)
    assert hash(case.criterion) == hash(case.criterion)
    assert len({*case.criterion.names, *case.criterion.measure_names}) == len(case.criterion.names) + len(
        case.criterion.measure_names
    )


def test_the_names_of_outcomes() -> None:
    assert OUTCOME_NAMES == ("identical", "benign", "sdc", "nonfinite", "crash", "uncorrectable")
    assert [OUTCOME_NAMES[outcome] for outcome in Outcome] == [outcome.name.lower() for outcome in Outcome]


def test_the_sign_of_a_zero_is_not_identical() -> None:
    golden, faulty = torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, -0.0]])
    outcome = classify(
        Several((CASES[0].criterion,)), reference=[golden], golden=[golden], faulty=[faulty], labels=None
    )
    assert outcome.tolist() == [[Outcome.BENIGN]]


def test_outputs_of_different_shapes_are_refused() -> None:
    one, two = [torch.zeros(1, 3)], [torch.zeros(2, 3)]
    with pytest.raises(DataError, match=r"of one shape, got \(2, 3\), \(2, 3\), \(1, 3\)"):
        classify(CASES[0].criterion, reference=two, golden=two, faulty=one, labels=None)
