"""Ten thousand planned faults are ten thousand verified hits: the right word, changed as planned, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hoplon.injection.golden_run
from hoplon import BitFlip, Campaign, Inputs, Memory, Program, Values, capture
from hoplon.faults import series_to_words
from hoplon.formats import integer_view
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.injection.replay import Golden, InjectedWords, Injections, Replay
from hoplon.injection.working_memory import WorkingMemory
from hoplon.protections.base import Overlay
from hoplon.zoo.networks.lenet_digits import LeNet
from tests.support.nets import NETS

FAULTS = 10_000


class _Verifying(Replay):
    """Counts hits that changed the planned word of the planned sample, and no other word of that sample's value."""

    verified = 0

    def _strike(self, index: int, value: Tensor, hit: Injections, golden: Golden) -> tuple[Tensor, InjectedWords]:
        result, met = super()._strike(index, value, hit, golden)
        layout = self.program.layouts[index]
        faulty, plain = (
            integer_view(layout.samples_first(v)[hit.rows].flatten(1)) for v in (result, golden.delivered[index])
        )
        wrong = faulty != plain
        element = hit.elements.view(-1, 1)
        expected = met.before ^ met.after
        assert bool((expected == hit.flip).all()), "the word did not change as planned"
        assert bool((wrong.sum(1) == 1).all()), "another number of words than one changed"
        assert bool(wrong.gather(1, element).all()), "another word than the planned one changed"
        type(self).verified += len(hit.rows)
        return result, met


def _program(name: str) -> tuple[Program, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in NETS:
            x = NETS[name].batch(20)
            return capture(NETS[name].model(), x[:2]), x
        model, x = _large(name)
    return capture(model.eval(), x[:2], name=name), x


def _large(name: str) -> tuple[nn.Module, Tensor]:
    if name == "lenet":
        return LeNet(), torch.rand(40, 1, 8, 8)
    from hoplon.zoo.torchvision_ops import import_torchvision

    models = import_torchvision().models
    if name == "resnet18":
        return models.resnet18(), torch.randn(64, 3, 32, 32)
    return models.vit_b_16(image_size=32), torch.randn(16, 3, 32, 32)


_LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vit_b_16")]


@pytest.mark.parametrize("name", ["lenet", "residual", "tied", "in-place", *_LARGE])
def test_every_planned_value_fault_hits_its_word_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, x = _program(name)
    monkeypatch.setattr(hoplon.injection.golden_run, "RegionReplay", _Verifying)
    monkeypatch.setattr(_Verifying, "verified", 0)
    results = Campaign(program, Inputs(x), sites=Values(), fault_model=BitFlip()).run(count=FAULTS, seed=0)
    assert _Verifying.verified == FAULTS
    assert results.runs["reached"].all()
    changed = results.faults.frame
    assert (series_to_words(changed["before"]) ^ series_to_words(changed["after"])).ne(0).all()


@pytest.mark.parametrize("name", ["lenet", "residual", "tied", "in-place", *_LARGE])
def test_every_planned_memory_fault_hits_its_word_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Struck and restored as a campaign does, without the forward passes, which other tests compare."""
    program, x = _program(name)
    table = Campaign(program, Inputs(x[:1]), sites=Memory(), fault_model=BitFlip()).draw(count=FAULTS, seed=0)
    memory, hits = WorkingMemory(program), 0
    golden = {site.name: memory.golden[site.name].clone() for site in program.memory_sites}
    sites = {site.name: site for site in program.memory_sites}
    flips = series_to_words(table.frame["flip"]).tolist()
    small = {name for name, site in sites.items() if site.numel <= 4096}
    for fault, flip in zip(table.frame.iter_rows(named=True), flips, strict=True):
        site = sites[fault["site"]]
        before, after = memory.corrupt(site, fault["element"], form=_form(), keep=_form().all_ones, flip=flip)
        assert before ^ after == flip
        if site.name in small or hits % 100 == 0:  # a look at every word of a large tensor, for one fault in a hundred
            for alias in (site.name, *site.aliases):
                wrong = (integer_view(memory.tensors[alias]) != integer_view(golden[site.name])).flatten().nonzero()
                assert wrong.flatten().tolist() == [fault["element"]]
        hits += 1
        memory.restore([site.name]) if site.numel <= 4096 else memory.corrupt(
            site, fault["element"], form=_form(), keep=_form().all_ones, flip=flip
        )
    assert hits == FAULTS
    assert not memory.changed(sites)


def _form() -> Any:
    from hoplon.formats import native

    return native(torch.float32)


def test_the_verifier_sees_collateral_damage() -> None:
    class Careless(_Verifying):
        def _protect(self, index: int, value: Any) -> Any:
            return value.neg_() if index == self.program.site_steps[":relu"] else value

    program, x = _program("mlp")
    reference = GoldenRun.run(program, Inputs(x), Campaign(program, Inputs(x), sites=Values()).criterion)
    replay = Careless(program, Overlay(), reference.batch, program.value_sites)
    leaves, _ = reference.leaves(0)
    golden = replay.golden(leaves)
    one = torch.tensor([1])
    hits: Mapping[str, Injections] = {":relu": Injections(one, one, torch.tensor([0xFFFFFFFF]), one << 30)}
    with pytest.raises(AssertionError, match="another number of words than one changed"):
        replay.strike_values(golden, hits)
    assert Injector(reference, Overlay()).placement == "before"
