from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.capture import capture
from hoplon.errors import HoplonError
from hoplon.harden import Ranger
from hoplon.overlay import overlay
from hoplon.program import Program
from hoplon.ranges import Bound, Ranges, profile_ranges
from hoplon.sites import Values
from tests.harden.nets import CASES, sample, seeded


def bounds(program: Program, ranges: dict[str, Bound]) -> dict[str, Bound]:
    effects = Ranger(Ranges(ranges)).values(program)
    return {site: Bound(effect.low, effect.high) for site, effect in effects.items()}


def roomy(bound: Bound) -> Bound:
    return Bound(bound.low * (1 + 2**-16), bound.high * (1 + 2**-16))


class Equation1(nn.Module):
    """y = ReLU2(Conv(MaxPool(ReLU1(x)))), the paper's equation (1)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool1d(2)
        self.conv = nn.Conv1d(1, 4, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.pool(F.relu(x))))


def struck(program: Program, site: str, fault: float, effects: dict[str, object]) -> Tensor:
    """The output with a fault added at a site, before the site's own protection."""
    names = {step: name for name, step in program.site_steps.items()}

    def hook(step: int, value: Tensor) -> Tensor:
        name = names.get(step)
        if name == site:
            value = value + fault
        effect = effects.get(name or "")
        return effect(value) if callable(effect) else value

    with torch.inference_mode():
        return program.run([torch.tensor([[[1.0, 2.0]]] * 2)], hook=hook)[0]


def test_the_papers_worked_example() -> None:
    program = capture(Equation1().eval(), torch.tensor([[[1.0, 2.0]]] * 2))
    first, second = (site.name for site in program.value_sites if site.kind == "relu")
    pool = next(site.name for site in program.value_sites if site.kind == "max_pool")
    ranges = {first: Bound(0.0, 10.0), second: Bound(0.0, 1000.0)}
    assert bounds(program, ranges) == {first: Bound(0, 10), pool: Bound(0, 10), second: Bound(0, 1000)}
    effects = dict(Ranger(Ranges(ranges)).values(program))
    on_activations = {first: effects[first], second: effects[second]}
    assert struck(program, pool, 0.0, effects).unique().tolist() == [2.0]
    assert struck(program, pool, 1024.0, {}).unique().tolist() == [1026.0]
    assert struck(program, pool, 1024.0, dict(on_activations)).unique().tolist() == [1000.0]
    assert struck(program, pool, 1024.0, dict(effects)).unique().tolist() == [10.0]


def test_the_bound_ends_at_a_residual_addition_and_reaches_the_adaptive_pool() -> None:
    program = capture(seeded(CASES["residual"].make()), sample("residual"))
    found = bounds(program, {"relu:relu": Bound(0.0, 3.0), "relu:relu.1": Bound(0.0, 5.0)})
    assert found == {
        "relu:relu": Bound(0.0, 3.0),
        "relu:relu.1": Bound(0.0, 5.0),
        ":adaptive_avg_pool": roomy(Bound(0.0, 5.0)),
    }


def test_a_concatenation_takes_the_hull_of_its_own_inputs_and_hands_it_on() -> None:
    program = capture(seeded(CASES["branches"].make()), sample("branches"))
    found = bounds(program, {":relu": Bound(0.0, 7.0), ":relu.1": Bound(0.0, 2.0)})
    assert found == {
        ":relu": Bound(0.0, 7.0),
        ":relu.1": Bound(0.0, 2.0),
        ":cat": Bound(0.0, 7.0),
        "pool:max_pool": Bound(0.0, 7.0),
        ":avg_pool": roomy(Bound(0.0, 7.0)),
    }


def test_a_concatenation_with_an_unbounded_input_is_not_bounded() -> None:
    program = capture(seeded(CASES["branches"].make()), sample("branches"))
    listing = {entry.site: entry for entry in Ranger(Ranges({":relu": Bound(0.0, 7.0)})).coverage(program)}
    assert listing[":cat"].bound is None
    assert listing[":cat"].why == "cat reads :relu.1, which is not bounded"
    assert listing[":relu.1"].why == "relu was not profiled"
    assert listing["left:conv"].why == "conv can leave the range of what it reads"
    assert listing[":relu"].why == "profiled"


def test_the_values_of_a_max_pool_are_bounded_and_its_indices_are_not() -> None:
    program = capture(seeded(CASES["pooled"].make()), sample("pooled"))
    kinds = {site.name: site.kind for site in program.value_sites}
    found = bounds(program, {"act:hardtanh": Bound(0.0, 6.0)})
    assert {kinds[name] for name in found} == {"hardtanh", "adaptive_max_pool", "cat", "mean"}
    assert not any("#1" in name for name in found)
    assert all(program.value_site(name).dtype.is_floating_point for name in found)
    assert any(site.kind == "cat" and not site.dtype.is_floating_point for site in program.value_sites)


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        counted = F.avg_pool2d(y, 2, padding=1)
        left_out = F.avg_pool2d(y, 2, padding=1, count_include_pad=False)
        divided = F.avg_pool2d(y, 2, divisor_override=1)
        constant = F.pad(y, (0, 1), value=3.0)
        reflected = F.pad(y, (1, 1, 0, 0), mode="reflect")
        cast = F.max_pool2d(y.double(), 2)
        return (
            (counted + left_out).sum((1, 2, 3))
            + divided.sum((1, 2, 3))
            + constant.sum((1, 2, 3))
            + (reflected.sum((1, 2, 3)) + cast.sum((1, 2, 3)))
        )


def test_padding_enters_the_bound_and_what_rescales_ends_it() -> None:
    program = capture(Padded().eval(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = bounds(program, {":sigmoid": Bound(0.25, 0.5)})
    assert found.pop(":avg_pool") == Bound(0.0, 0.5 * (1 + 2**-16))
    assert found.pop(":avg_pool.1") == Bound(0.25 * (1 - 2**-16), 0.5 * (1 + 2**-16))
    assert ":avg_pool.2" not in found
    assert found.pop(":pad") == Bound(0.25, 3.0)
    assert not any("max_pool" in name for name in found)


def test_a_relu_is_bounded_from_zero_whatever_was_seen() -> None:
    program = capture(seeded(CASES["residual"].make()), sample("residual"))
    assert bounds(program, {"relu:relu": Bound(0.5, 3.0)})["relu:relu"] == Bound(0.0, 3.0)


@pytest.mark.parametrize("case", CASES)
def test_calibration_inputs_come_out_unchanged(case: str) -> None:
    program = capture(seeded(CASES[case].make()), sample(case))
    x = sample(case, 16)
    effects = overlay(program, [Ranger(profile_ranges(program, x, batch=16))]).values
    assert effects
    steps = {program.site_steps[name]: effect for name, effect in effects.items()}
    hit = []

    def hook(step: int, value: Tensor) -> Tensor:
        if step in steps:
            hit.append(step)
            bounded = steps[step](value)
            assert bounded.equal(value)
            return bounded
        return value

    with torch.inference_mode():
        outputs = program.run([x], hook=hook)
    assert len(hit) == len(steps)
    assert outputs[0].equal(program(x))


def test_ranges_of_another_model_are_refused() -> None:
    program = capture(seeded(CASES["residual"].make()), sample("residual"))
    ranges = profile_ranges(program, sample("residual"), sites=Values(kind="relu"))
    other = capture(seeded(CASES["tied"].make()), sample("tied"))
    with pytest.raises(HoplonError, match="outputs of Tied, got site 'relu:relu' profiled on Residual"):
        Ranger(ranges).values(other)
