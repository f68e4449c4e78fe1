"""Each measure draws what its probabilities say: chi-square over a million draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from hoplon.errors import HoplonError
from hoplon.faults.sampling import (
    Among,
    BottomScore,
    ElementUniform,
    LayerUniform,
    Measure,
    OpUniform,
    TopScore,
    unit_generator,
)
from hoplon.program.sites import MemorySite, ValueSite
from tests.support.examples import others

SITES = (
    ValueSite("a", "conv", shape=(2, 3)),
    ValueSite("a", "relu", shape=(2, 3)),
    ValueSite("b", "conv", shape=(1,)),
    ValueSite("empty", "conv", shape=(0, 4)),
    ValueSite("c", "relu", shape=(13,)),
    ValueSite("c", "linear", shape=(4,)),
)
SIZES = torch.tensor([site.numel for site in SITES])
SCORES = {"a:conv": torch.tensor([[3.0, 1, 4], [1, 5, 9]]), "c:relu": torch.arange(13.0), "b:conv": torch.tensor([4.0])}

# Measure, and the probability of an element of each site that is reached, by hand.
CASES: dict[str, tuple[Measure, list[float]]] = {
    "element": (ElementUniform(), [1 / 30] * 6),
    "op": (OpUniform(), [1 / 5 / 6, 1 / 5 / 6, 1 / 5, 0, 1 / 5 / 13, 1 / 5 / 4]),
    "op, listed": (OpUniform(kinds=("conv", "relu"), drop_last=1), [1 / 3 / 6, 1 / 3 / 6, 1 / 3, 0, 0, 0]),
    "op, dropped": (OpUniform(drop_last=2), [1 / 3 / 6, 1 / 3 / 6, 1 / 3, 0, 0, 0]),
    "layer": (LayerUniform(), [1 / 3 / 12, 1 / 3 / 12, 1 / 3, 0, 1 / 3 / 17, 1 / 3 / 17]),
}
SOME: dict[str, tuple[Measure, dict[str, list[int]]]] = {
    "among": (
        Among({"c:relu": torch.tensor([12, 0, 12]), "a:relu": torch.tensor([5])}),
        {"a:relu": [5], "c:relu": [0, 12]},
    ),
    "top": (TopScore(SCORES, count=6), {"a:conv": [5], "c:relu": [8, 9, 10, 11, 12]}),
    "top half": (TopScore(SCORES, fraction=0.5), {"a:conv": [4, 5], "c:relu": [5, 6, 7, 8, 9, 10, 11, 12]}),
    "bottom": (BottomScore(SCORES, count=4), {"a:conv": [1, 3], "c:relu": [0, 1]}),
    "ties": (TopScore({"a:conv": torch.ones(6), "b:conv": torch.ones(1)}, count=2), {"a:conv": [0, 1]}),
}
ROWS = {name: measure for name, (measure, _) in (CASES | SOME).items()}
ADDED = others("sampling", ROWS.values(), scores=SCORES, fraction=0.5, faults=[("a:conv", 1)])
MEASURES = ROWS | {name: added for name, added in ADDED.items() if isinstance(added, Measure)}


def everywhere() -> tuple[torch.Tensor, torch.Tensor]:
    number = torch.arange(len(SITES)).repeat_interleave(SIZES)
    return number, torch.cat([torch.arange(size) for size in SIZES])


def expected_of(name: str) -> torch.Tensor:
    number, element = everywhere()
    if name not in ROWS:
        return MEASURES[name].probability(SITES, number, element)
    if name in CASES:
        return torch.tensor(CASES[name][1], dtype=torch.float64)[number]
    chosen = SOME[name][1]
    hit = [e in chosen.get(SITES[n].name, []) for n, e in zip(number.tolist(), element.tolist(), strict=True)]
    return torch.tensor(hit).double() / sum(hit)


@pytest.mark.parametrize("name", MEASURES)
def test_a_million_draws_follow_the_probabilities(name: str) -> None:
    """False-alarm probability 1e-4 each, generator fixed; elements of probability 0 are never drawn."""
    measure = MEASURES[name]
    expected = expected_of(name)
    assert float(expected.sum()) == pytest.approx(1)
    assert torch.allclose(measure.probability(SITES, *everywhere()), expected, rtol=1e-12)
    number, element = measure.elements(SITES, 1_000_000, generator=unit_generator(0, 0))
    counts = torch.bincount((SIZES.cumsum(0) - SIZES)[number] + element, minlength=30)
    assert len(counts) == 30
    assert int(counts[expected == 0].sum()) == 0
    some = expected > 0
    assert stats.chisquare(counts[some].numpy(), 1_000_000 * expected[some].numpy()).pvalue > 1e-4


def test_memory_sites_are_parted_by_reader_and_owner() -> None:
    sites = (
        MemorySite("conv1.weight", kinds=frozenset(["conv"]), shape=(6,)),
        MemorySite("conv1.bias", kinds=frozenset(["conv"]), shape=(2,)),
        MemorySite("fc.weight", ("head.weight",), kinds=frozenset(["linear", "embedding"]), shape=(4,)),
    )
    assert OpUniform(kinds=("embedding",)).shares(sites).tolist() == [0, 0, 1]
    assert LayerUniform().shares(sites).tolist() == [0.375, 0.125, 0.5]
    number, _ = Among({"head.weight": torch.tensor([1])}).elements(sites, 3, generator=unit_generator(0, 0))
    assert number.tolist() == [2, 2, 2]


def test_manifests_tell_chosen_elements_apart() -> None:
    texts = {repr(measure) for measure, _ in SOME.values()}
    assert len(texts) == len(SOME)
    assert repr(SOME["top"][0]).startswith("TopScore(count=6, ")
    assert repr(TopScore(dict(SCORES), count=6)) == repr(SOME["top"][0])
    assert repr(TopScore(SCORES | {"b:conv": torch.tensor([99.0])}, count=6)) != repr(SOME["top"][0])
    assert repr(SOME["among"][0]).startswith("Among(3 elements, ")


def drawn(measure: Measure) -> Callable[[], object]:
    return lambda: measure.elements(SITES, 1, generator=unit_generator(0, 0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            drawn(OpUniform(kinds=("conv", "gelu"))),
            "no operator kind of the selected sites matches 'gelu'; near names: relu",
        ),
        (drawn(OpUniform(drop_last=5)), "expected more than drop_last=5 sites, got 5"),
        (lambda: OpUniform(drop_last=-1), "expected drop_last of OpUniform to be an integer of at least 0, got -1"),
        (drawn(Among({"d:conv": torch.tensor([0])})), "no selected site matches 'd:conv'"),
        (drawn(Among({"b:conv": torch.tensor([1])})), r"expected elements in \[0, 1\) of b:conv, got 1"),
        (drawn(Among({"b:conv": torch.tensor([-1])})), r"expected elements in \[0, 1\) of b:conv, got -1"),
        (drawn(Among({})), "expected at least one chosen element, got none"),
        (lambda: TopScore(SCORES), "expected a fraction or a count, got None and None"),
        (
            lambda: TopScore(SCORES, fraction=1.5),
            r"expected fraction of TopScore to be a number above 0 and of at most 1 or None, got 1\.5",
        ),
        (
            lambda: BottomScore(SCORES, fraction=math.nan),
            r"expected fraction of BottomScore to be a number above 0 and of at most 1 or None, got nan",
        ),
        (lambda: BottomScore(SCORES, count=21), r"expected a count in \[1, 20\], got 21"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
