"""Ten thousand planned faults are ten thousand hits: the right word, changed as planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hoplon import BitFlip, Campaign, Inputs, Memory, Program, Values, capture
from hoplon.faults import series_to_words
from hoplon.formats import integer_view
from hoplon.injection.arm import Arm
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.golden_values import SharedReplay
from hoplon.injection.replay import RegionReplay
from hoplon.injection.value_faults import ValueFaultRuns
from hoplon.injection.working_memory import WorkingMemory, strike_word
from hoplon.protections.base import Overlay
from hoplon.zoo.networks.lenet_digits import LeNet
from tests.support.networks import NETWORKS

FAULTS = 10_000


def _program(name: str) -> tuple[Program, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in NETWORKS:
            x = NETWORKS[name].batch(20)
            return capture(NETWORKS[name].model(), x[:2]), x
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


def _golden_words(program: Program, x: Tensor, batch: int) -> dict[str, Tensor]:
    """The words of all values of a fault-free forward by site, shape ``(samples, elements)``, int64."""
    names = {step: name for name, step in program.site_steps.items()}
    words: dict[str, list[Tensor]] = {}

    def keep(step: int, value: Any) -> Any:
        if step in names:
            sample = program.layouts[step].samples_first(value).contiguous()
            words.setdefault(names[step], []).append(sample.flatten(1).view(torch.int32).long() & 0xFFFFFFFF)
        return value

    with torch.inference_mode():
        for part in x.split(batch):
            program.run([part], hook=keep)
    return {name: torch.cat(parts) for name, parts in words.items()}


@pytest.mark.parametrize("name", ["lenet", "residual", "tied", "in-place", *_LARGE])
def test_every_planned_value_fault_hits_its_word(name: str) -> None:
    """The words that the engine of campaigns met are the golden ones at the planned places, changed as planned."""
    program, x = _program(name)
    campaign = Campaign(program, Inputs(x), sites=Values(), fault_model=BitFlip(), batch=len(x) // 2)
    table = campaign.draw(count=FAULTS, seed=0)
    reference = GoldenRun.run(program, Inputs(x), campaign.criterion, batch=len(x) // 2)
    runs = ValueFaultRuns(SharedReplay(Arm(reference, Overlay())), table)
    assert isinstance(runs.replay, RegionReplay)
    frame, observed = runs.run(lambda count: None)
    golden = _golden_words(program, x, len(x) // 2)
    before, after = (series_to_words(observed.frame[word]) for word in ("before", "after"))
    planned = zip(*(table.frame[column].to_list() for column in ("site", "input", "element")), strict=True)
    met = torch.stack([golden[site][sample, element] for site, sample, element in planned])
    assert len(met) == FAULTS
    assert torch.equal(before & 0xFFFFFFFF, met)
    assert torch.equal((before ^ after) & 0xFFFFFFFF, series_to_words(table.frame["flip"]) & 0xFFFFFFFF)
    assert runs.replay.statistics.windows > 0 or name not in ("lenet", "residual")
    assert frame["reached"].all()


@pytest.mark.parametrize("name", ["lenet", "residual", "tied", "in-place", *_LARGE])
def test_every_planned_memory_fault_hits_its_word_alone(name: str) -> None:
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
        before, after = strike_word(
            memory.tensors[site.name], fault["element"], form=_form(), keep=_form().all_ones, flip=flip
        )
        assert before ^ after == flip
        if site.name in small or hits % 100 == 0:  # a look at every word of a large tensor, for one fault in a hundred
            for alias in (site.name, *site.aliases):
                wrong = (integer_view(memory.tensors[alias]) != integer_view(golden[site.name])).flatten().nonzero()
                assert wrong.flatten().tolist() == [fault["element"]]
        hits += 1
        memory.restore([site.name]) if site.numel <= 4096 else strike_word(
            memory.tensors[site.name], fault["element"], form=_form(), keep=_form().all_ones, flip=flip
        )
    assert hits == FAULTS
    assert not memory.changed(sites)


def _form() -> Any:
    from hoplon.formats import native

    return native(torch.float32)
