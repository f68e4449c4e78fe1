"""Memory faults side by side, samples without a difference dropped, against whole forwards with the same memory."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from hoplon import BitFlip, Campaign, Inputs, Memory, capture
from hoplon.criteria import TopK
from hoplon.formats import equal_bits
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.injection.memory_faults import MemoryFaultRuns
from hoplon.injection.replay import Changed, Golden, PackedReplay
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite
from hoplon.protections.base import Overlay
from hoplon.protections.values.clamp import BoundValue
from tests.injection.replay.test_channels import Residual, naive, struck
from tests.injection.replay.test_regions import BATCH, BITS, LAYERS, PHASES, SIZES, Layer, Random


def begun(
    program: Program, replay: PackedReplay, golden: Golden, site: MemorySite, element: int, bit: int, real: int
) -> Changed | None:
    memory, names = struck(program, site, element, bit)
    entry = torch.tensor([element // (site.numel // site.shape[0])])
    return replay.changed(golden, memory, names, entries=dict.fromkeys(names, entry), real=real)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(LAYERS, SIZES, st.integers(0, 2**16), st.booleans())
def test_samples_of_many_faults_side_by_side_equal_whole_forwards(
    layers: tuple[Layer, ...], size: tuple[int, int], seed: int, bounded: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = Random(layers, size).eval(), torch.randn(BATCH, 4, *size)
        x[1] = 0  # weights of the first layer meet nothing in this sample
    program = capture(model, x)
    limits = {s.name: BoundValue(0.0, 1.5) for s in program.value_sites if bounded and s.kind == "relu"}
    bounds = {program.site_steps[name]: limit for name, limit in limits.items()}
    sites = [site for site in program.memory_sites if site.shape and site.dtype == torch.float32]
    replay = PackedReplay(program, Overlay("bounds", limits), BATCH, sites)
    golden = replay.golden([x])
    parts, wanted = [], []
    for number, site in enumerate(sites * 2):
        element, bit = (seed * 31 + number * 7919) % site.numel, BITS[(seed + number) % len(BITS)]
        part = begun(program, replay, golden, site, element, bit, BATCH - 1)
        if part is None:
            continue
        whole = naive(program, x, site, element, bit, bounds)
        ended = np.setdiff1d(np.arange(BATCH - 1), part.rows)
        assert equal_bits(whole[ended], golden.outputs[0][ended]), (site.name, element, bit)
        parts.append(part)
        wanted.append(whole[part.rows])
    if parts and sum(len(part.rows) for part in parts):
        assert equal_bits(replay.finish(golden, parts)[0], torch.cat(wanted))


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    """Weights of a wide network on 11 inputs, batches of four and one of three; two inputs are zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = Residual().eval(), torch.randn(11, 4, 9, 9)
        with torch.no_grad():
            model.first.bias.zero_()
        x[2] = x[9] = 0
    program = capture(model, x[:4])
    return Campaign(
        program,
        Inputs(x),
        sites=Memory(("first.weight", "second.weight")),
        fault_model=BitFlip(bits=(30, 24, 0)),
        criterion=TopK(1),
        batch=4,
    )


def test_outcomes_are_those_of_whole_forwards(campaign: Campaign) -> None:
    results = campaign.run(count=40, seed=2)
    program, data = campaign.program, campaign.data
    reference = GoldenRun.run(program, data, campaign.criterion, batch=4)
    runs = results.runs
    for word in results.faults.frame.iter_rows(named=True):
        site = program.memory_site(str(word["site"]))
        mine = runs.filter(pl.col("fault") == word["fault"])
        for number in range(reference.input_batches):
            leaves, real = reference.leaves(number)
            memory = program.memory()
            broken = memory[site.name].detach().clone()
            broken.view(torch.int32).view(-1)[word["element"]] ^= int(np.uint32(word["flip"]).astype(np.int32))
            with torch.inference_mode():
                found = program.run(leaves, {**memory, site.name: broken})[0][:real]
                golden = program.run(leaves, memory)[0][:real]
            here = mine[number * 4 : number * 4 + real]["top-1"].cast(pl.String).to_list()
            for row, outcome in enumerate(here):
                if not found[row].isfinite().all():
                    expected = "nonfinite"
                elif found[row].argmax() != golden[row].argmax():
                    expected = "sdc"
                else:
                    expected = "identical" if equal_bits(found[row], golden[row]) else "benign"
                assert outcome == expected, (word, number, row)
    assert {"identical", "benign", "sdc"} <= set(runs["top-1"].cast(pl.String))


def test_samples_without_a_difference_run_no_further(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    finish = PackedReplay.finish

    def counted(self: PackedReplay, golden: Golden, parts: list[Changed]) -> list[object]:
        met.extend(len(part.rows) for part in parts)
        return finish(self, golden, parts)

    monkeypatch.setattr(PackedReplay, "finish", counted)
    table = Campaign(campaign.program, campaign.data, sites=Memory("first.weight"), criterion=TopK(1), batch=4).draw(
        count=12
    )
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=4)
    runs, _ = Injector(reference, Overlay()).runs(table)
    identical = runs.group_by("input").agg(all=(pl.col("top-1").cast(pl.String) == "identical").all()).sort("input")
    assert identical["all"][2]
    assert identical["all"][9]
    assert 0 < sum(met) <= 12 * 9  # 12 faults on 11 inputs, of which 2 are zero; one row is a filler


@pytest.mark.parametrize("way", ["few", "raises"])
def test_few_at_a_time_and_one_by_one_give_the_same_outcomes(
    campaign: Campaign, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = campaign.draw(count=20, seed=4)
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=4)
    evaluator = Injector(reference, Overlay())
    expected, _ = evaluator.runs(table)
    if way == "few":
        monkeypatch.setattr(MemoryFaultRuns, "_enough", lambda self, waiting: bool(waiting))
    else:

        def raises(self: PackedReplay, golden: Golden, parts: list[Changed]) -> list[object]:
            raise RuntimeError("an operator")

        monkeypatch.setattr(PackedReplay, "finish", raises)
    found, _ = evaluator.runs(table)
    assert found.equals(expected)
