from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from hoplon.criteria import Deviation
from hoplon.errors import HoplonError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_deviation_is_of_the_worst_element(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    golden, faulty = (torch.randn(100, 2, 3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    harmed = Deviation((1.0, 2.0, 4.0), scale=1.5).harmed(golden, faulty, None)
    for g, f, found in zip(golden.flatten(1).tolist(), faulty.flatten(1).tolist(), harmed.tolist(), strict=True):
        worst = max(1.5 * abs(b - a) for a, b in zip(g, f, strict=True))
        assert found == [worst > 1, worst > 2, worst > 4]
    assert harmed.any(0).all()


def test_a_threshold_is_exceeded_not_reached() -> None:
    golden = torch.zeros(3, 2, 2)
    faulty = golden.clone()
    faulty[1, 1, 0], faulty[2, 0, 1] = -15.0, 15.001
    assert Deviation((15.0,)).harmed(golden, faulty, None).tolist() == [[False], [False], [True]]
    assert Deviation((15.0,)).eligible(golden, torch.zeros(3, dtype=torch.int64)).all()


def test_deviation_takes_one_number_per_run() -> None:
    harmed = Deviation((1.0, 2.0)).harmed(torch.zeros(3), torch.tensor([0.5, -1.5, 2.5]), None)
    assert harmed.tolist() == [[False, False], [True, False], [True, True]]


@pytest.mark.parametrize("runs", [0, 3])
def test_outputs_without_elements_have_not_moved(runs: int) -> None:
    empty = torch.zeros(runs, 0, 4)
    assert Deviation((0.0, 1.0)).harmed(empty, empty, None).tolist() == [[False, False]] * runs


def test_deviation_is_not_lost_in_a_narrow_dtype() -> None:
    golden, faulty = (torch.tensor([[v]], dtype=torch.float16) for v in (-60000.0, 60000.0))
    assert Deviation((100_000.0, 130_000.0)).harmed(golden, faulty, None).tolist() == [[True, False]]


def test_steering_in_degrees_and_radians() -> None:
    angles = torch.tensor([[14.0], [16.0], [-45.0], [100.0], [130.0]])
    expected = [[angle > t for t in (15, 30, 60, 120)] for angle in (14, 16, 45, 100, 130)]
    assert Deviation.steering().names == tuple(f"deviation>{t}deg" for t in (15, 30, 60, 120))
    assert Deviation.steering().harmed(torch.zeros(5, 1), angles, None).tolist() == expected
    radians = Deviation.steering(scale=180 / math.pi)
    assert radians.names == Deviation.steering().names
    assert radians.harmed(torch.zeros(5, 1), angles.deg2rad(), None).tolist() == expected


def test_names() -> None:
    assert Deviation((15, 30), unit="deg").names == ("deviation>15deg", "deviation>30deg")
    assert Deviation((0.125,), outputs=1).names == ("deviation>0.125@1",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Deviation(()), r"increasing finite thresholds of at least 0, got \(\)"),
        (lambda: Deviation((2.0, 1.0)), r"got \(2.0, 1.0\)"),
        (lambda: Deviation((-1.0,)), r"got \(-1.0,\)"),
        (lambda: Deviation((math.nan,)), r"got \(nan,\)"),
        (lambda: Deviation((1.0,), scale=0.0), "expected a finite scale above 0, got 0.0"),
        (lambda: Deviation((1.0,), outputs=(0,)), r"expected one output for Deviation, got \(0,\)"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
