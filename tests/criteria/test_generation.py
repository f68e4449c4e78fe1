"""Generated text: answers, repetition, early ends."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from hoplon.criteria import Generation, generation_kinds
from hoplon.criteria.outcome import Outcome, classify
from hoplon.errors import DataError, HoplonError

GOLDEN = [5, 6, 7, 8, 9, 3, 4, 2, 1, 0, 11, 12]


def outcomes(criterion: Generation, tokens: list[int], *, finite: bool = True) -> list[Outcome]:
    golden = [torch.tensor([GOLDEN], dtype=torch.float32)]
    faulty = torch.tensor([tokens], dtype=torch.float32)
    faulty[0, -1] += 0.0 if finite else torch.nan
    found = classify(criterion, reference=golden, golden=golden, faulty=[faulty], labels=None)
    return [Outcome(int(number)) for number in found[0]]


def test_other_tokens_are_another_answer() -> None:
    assert outcomes(Generation(), GOLDEN) == [Outcome.IDENTICAL] * 2
    assert outcomes(Generation(), [*GOLDEN[:-1], 22]) == [Outcome.SDC, Outcome.BENIGN]
    assert outcomes(Generation(), GOLDEN, finite=False) == [Outcome.NONFINITE] * 2


def test_an_answer_lies_between_tokens() -> None:
    ends, begins = Generation(ends=(9,)), Generation(begins=(8, 9))
    assert outcomes(ends, [*GOLDEN[:5], 3, 4, 2, 1, 0, 0, 0]) == [Outcome.BENIGN] * 2
    assert outcomes(ends, [5, 6, 7, 1, 9, *GOLDEN[5:]])[0] == Outcome.SDC
    assert outcomes(begins, [1, 1, 1, 8, 9, *GOLDEN[5:]])[0] == Outcome.BENIGN
    assert outcomes(begins, [*GOLDEN[:-1], 22])[0] == Outcome.SDC


@pytest.mark.parametrize(
    ("tokens", "broken"),
    [
        ([5, 6, 7, 8, 1, 1, 1, 1, 1, 1, 1, 1], True),
        ([5, 6, 7, 8, 1, 2, 3, 1, 2, 3, 1, 2], False),  # three times and a part
        ([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([5, 6, 7, 8, 9, 2, -1, -1, -1, -1, -1, -1], False),  # half of it
        ([5, 6, 7, 8, 2, -1, -1, -1, -1, -1, -1, -1], True),
    ],
)
def test_text_that_repeats_itself_or_ends_early_is_degenerate(tokens: list[int], broken: bool) -> None:
    expected = [Outcome.SDC, Outcome.SDC if broken else Outcome.BENIGN]
    assert outcomes(Generation(), tokens) == expected


def test_golden_text_that_repeats_itself_excuses_it() -> None:
    golden, faulty = torch.full((1, 12), 4.0), torch.full((1, 12), 5.0)
    assert Generation().harmed(golden, faulty, None).tolist() == [[True, False]]


def test_measures_say_how_much_of_a_text_is_another() -> None:
    golden = torch.tensor([GOLDEN, GOLDEN], dtype=torch.float32)
    faulty = torch.tensor([GOLDEN, [*GOLDEN[:3], 0, *GOLDEN[4:]]], dtype=torch.float32)
    found = Generation().measures(golden, faulty)
    assert found["changed_tail"].tolist() == pytest.approx([0, 9 / 12])
    assert found["changed_tokens"].tolist() == pytest.approx([0, 1 / 12])


def test_every_run_is_of_one_kind() -> None:
    columns = {
        "answer": ["identical", "benign", "sdc", "sdc", "nonfinite", "crash", "uncorrectable"],
        "degenerate": ["identical", "benign", "benign", "sdc", "nonfinite", "crash", "uncorrectable"],
    }
    found = generation_kinds(pl.DataFrame(columns)).to_list()
    assert found == ["identical", "same answer", "changed", "degenerate", "nonfinite", "crash", "uncorrectable"]


def test_what_is_no_generation_is_refused() -> None:
    with pytest.raises(DataError, match="capture_decoder"):
        Generation().check(torch.full((2, 3), 0.5), None)
    with pytest.raises(HoplonError, match="2 repeats"):
        Generation(repeats=1)
    with pytest.raises(HoplonError, match="share"):
        Generation(early=1.5)
