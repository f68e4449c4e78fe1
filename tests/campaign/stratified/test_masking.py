"""What is left of faults where they leave their places: struck elements alone against whole maps, and against runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hoplon import BitFlip, Inputs, Ranger, TopK, Values, capture, profile_ranges
from hoplon.campaign.stratified.masking import LocalPropagation, Propagated
from hoplon.faults.sampling import ElementUniform, Population
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.protections.base import Overlay, Protection, ValueProtection, overlay


class _Residual(nn.Module):
    """Batch norm, addition of another branch and of one value per channel, an activation: four maps wide."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.norm, self.activation = nn.BatchNorm2d(4), activation
        self.shift = nn.Parameter(torch.linspace(-1, 1, 4).view(1, 4, 1, 1))
        self.last = nn.Linear(4 * 35, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.activation(self.norm(self.first(x)) + self.second(x) + self.shift)
        logits: Tensor = self.last(mixed.flatten(1))
        return logits


def _evaluator(activation: nn.Module, protections: Sequence[str] = ()) -> Injector:
    torch.manual_seed(0)
    net = _Residual(activation).eval()
    net.norm.running_mean.copy_(torch.randn(4))  # type: ignore[union-attr]
    net.norm.running_var.copy_(torch.rand(4) + 0.5)  # type: ignore[union-attr]
    x = torch.randn(10, 2, 5, 7)
    program = capture(net, x[:2])
    reference = GoldenRun.run(program, Inputs(x), TopK(1), batch=4)
    arm: list[Protection] = [Ranger(profile_ranges(program, Inputs(x)))] if protections else []
    return Injector(reference, overlay(program, arm))


def _faults(evaluator: Injector, count: int) -> tuple[LocalPropagation, tuple[Tensor, ...]]:
    program, reference = evaluator.reference.program, evaluator.reference
    sites = Values(kind="conv").select(program)
    population = Population(sites, BitFlip(), reference.eligible)
    strikes = ElementUniform().draw(population, count, first=0, generator=torch.Generator().manual_seed(4))
    places = strikes.places
    assert places.input is not None
    golden = {site.name: [] for site in sites}  # type: ignore[var-annotated]
    names = {program.site_steps[site.name]: site.name for site in sites}
    for batch in range(reference.input_batches):
        leaves, _ = reference.leaves(batch)

        def keep(step: int, value: Tensor) -> Tensor:
            if step in names:
                golden[names[step]].append(value.flatten(1))
            return value

        program.run(leaves, hook=keep)
    words = torch.stack(
        [
            torch.cat(golden[sites[site].name])[row, element].detach().view(torch.int32).long() & 0xFFFFFFFF
            for site, element, row in zip(
                places.number.tolist(),
                places.element.tolist(),
                torch.searchsorted(reference.eligible, places.input).tolist(),
                strict=True,
            )
        ]
    )
    return LocalPropagation(evaluator, sites), (places.number, places.element, places.input, words ^ strikes.flip)


def _same(a: Propagated, b: Propagated) -> bool:
    return (
        torch.equal(a.before.view(torch.int64), b.before.view(torch.int64))
        and torch.equal(a.after.view(torch.int64), b.after.view(torch.int64))
        and torch.equal(a.step, b.step)
        and torch.equal(a.masked, b.masked)
    )


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardtanh(), nn.LeakyReLU(0.1)], ids=["relu", "hardtanh", "leaky"])
@pytest.mark.parametrize("arm", [(), ("ranger",)], ids=["none", "ranger"])
def test_struck_elements_alone_come_out_as_in_whole_maps(activation: nn.Module, arm: tuple[str, ...]) -> None:
    evaluator = _evaluator(activation, arm)
    reach, faults = _faults(evaluator, 3000)
    alone = reach(*faults)
    assert reach.followed_on_maps == 0
    maps = LocalPropagation(evaluator, Values(kind="conv").select(evaluator.reference.program), whole_maps=True)
    assert _same(alone, maps(*faults))
    assert maps.followed_on_maps == 3000
    assert 0.02 < float(alone.masked.double().mean()) < 0.98


class _Everywhere(ValueProtection):
    """Bounds by place, so that elements cannot be followed alone."""

    def __call__(self, value: Tensor) -> Tensor:
        bound = torch.linspace(0.1, 2.0, value.shape[-1])
        return torch.minimum(torch.maximum(value, -bound), bound)

    def apply_(self, value: Tensor) -> Tensor:
        return value.copy_(self(value))


def test_a_protection_by_place_is_followed_in_whole_maps() -> None:
    evaluator = _evaluator(nn.ReLU())
    name = next(site.name for site in evaluator.reference.program.value_sites if site.kind == "relu")
    guarded = Injector(evaluator.reference, Overlay("by place", {name: _Everywhere()}))
    reach, faults = _faults(evaluator, 500)
    reach = LocalPropagation(guarded, Values(kind="conv").select(evaluator.reference.program))
    found = reach(*faults)
    assert reach.followed_on_maps > 0
    assert float(found.after.abs().max()) <= 2.0
    last = torch.linspace(0.1, 2.0, 7)[faults[1] % 7].double()
    assert bool((found.after <= last + 1e-6).all())


def test_a_fault_that_is_proven_masked_leaves_the_outputs_alone() -> None:
    evaluator = _evaluator(nn.ReLU())
    reach, (number, element, given, after) = _faults(evaluator, 400)
    masked = reach(number, element, given, after).masked.nonzero()[:60, 0]
    assert len(masked) == 60
    program, reference = evaluator.reference.program, evaluator.reference
    sites = Values(kind="conv").select(program)
    for fault in masked.tolist():
        row = int(torch.searchsorted(reference.eligible, given[fault]))
        step = program.site_steps[sites[int(number[fault])].name]
        word = int(after[fault])

        def strike(
            at: int, value: Tensor, step: int = step, row: int = row, word: int = word, n: int = fault
        ) -> Tensor:
            if at != step:
                return value
            struck = value.clone()
            signed = word - (1 << 32) if word >> 31 else word
            struck.view(torch.int32)[row % reference.batch].view(-1)[element[n]] = signed
            return struck

        leaves, _ = reference.leaves(row // reference.batch)
        with torch.inference_mode():
            assert torch.equal(program.run(leaves, hook=strike)[0], program.run(leaves)[0])
