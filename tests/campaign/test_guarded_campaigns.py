"""Campaigns that see guards: their own memory as fault sites, faults that come too late, bits at risk, SEC-DED."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hoplon as hp
from hoplon.faults.sampling import Population, draw_faults, unit_generator
from hoplon.formats import integer_view
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.protections.base import overlay

FLIP_30 = hp.BitFlip(bits=(30,))


@pytest.fixture(scope="module")
def program() -> hp.Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    return hp.capture(model, torch.randn(3, 6))


@pytest.fixture(scope="module")
def data() -> hp.Inputs:
    return hp.Inputs(torch.randn(16, 6, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def aspis(program: hp.Program, data: hp.Inputs) -> hp.Aspis:
    labelled = hp.Inputs(data.x, torch.arange(16) % 4)
    return hp.Aspis(hp.importance.taylor(program, labelled, loss=F.cross_entropy), 0.5)


class TestGuardMemory:
    def test_sites_are_those_of_the_guards(self, program: hp.Program, aspis: hp.Aspis) -> None:
        armed = ArmedMemory(program, overlay(program, [hp.TMR(), aspis, hp.TMR()]))
        names = [site.name for site in armed.guard_sites]
        assert {"tmr/0.weight#1", "aspis-50%/0.weight#index", "tmr.1/2.bias#2"} <= set(names)
        chosen = hp.GuardMemory("aspis*/*#index").select(armed)
        assert chosen
        assert all(site.name.endswith("#index") for site in chosen)

    def test_without_guards_it_is_refused(self, program: hp.Program, data: hp.Inputs) -> None:
        campaign = hp.Campaign(program, data, sites=hp.GuardMemory())
        with pytest.raises(hp.errors.SiteError, match="expected protections that guard memory, got none; add TMR"):
            campaign.run(count=1)

    def test_a_guard_repairs_its_own_copies(self, program: hp.Program, data: hp.Inputs) -> None:
        campaign = hp.Campaign(program, data, sites=hp.GuardMemory(), protections=(hp.TMR(),))
        results = campaign.run(count=200, seed=3)
        assert results.summary()[0].failure.estimate == 0
        assert results.runs["corrected"].all()
        assert results.manifest["kinds"]["tmr/0.weight#1"] == "guard"

    def test_a_flip_is_undone_before_the_next(self, program: hp.Program, aspis: hp.Aspis) -> None:
        armed = ArmedMemory(program, overlay(program, [aspis]))
        before = {name: tensor.clone() for name, tensor in armed.copies.items()}
        for site in armed.guard_sites:
            for bit in range(8 * site.dtype.itemsize):
                word = {"site": site.name, "element": 0, "keep": 2 ** (8 * site.dtype.itemsize) - 1, "flip": 1 << bit}
                name, old, new = armed.corrupt({**word, "format": str(site.dtype).removeprefix("torch.")})
                assert name is None
                assert old ^ new in (1 << bit, (1 << bit) - 2**64)
                assert not armed.check().uncorrectable
                armed.restore(armed.working.tensors)
                assert all(torch.equal(integer_view(armed.copies[n]), integer_view(before[n])) for n in before)

    def test_a_wrong_repair_reaches_the_outputs(self, program: hp.Program, data: hp.Inputs) -> None:
        """A guard that trusts its only copy turns a fault there into one of the model."""
        plain = hp.Campaign(program, data, sites=hp.Memory(), fault_model=FLIP_30).run(count=300, seed=5)
        misled = hp.Campaign(program, data, sites=hp.GuardMemory(), fault_model=FLIP_30, protections=(Backup(),)).run(
            count=300, seed=5
        )
        assert plain.summary()[0].failure.estimate > 0.05
        assert (
            misled.summary()[0].failure.low <= plain.summary()[0].failure.estimate <= misled.summary()[0].failure.high
        )


def test_faults_after_the_check_are_reported_not_hidden(program: hp.Program, data: hp.Inputs) -> None:
    plan = {"sites": hp.Memory(), "fault_model": FLIP_30}
    unprotected = hp.Campaign(program, data, **plan).run(count=128, seed=2)  # type: ignore[arg-type]
    late = hp.Campaign(program, data, **plan, protections=(hp.TMR(),), arrival="after").run(count=128, seed=2)  # type: ignore[arg-type]
    early = hp.Campaign(program, data, **plan, protections=(hp.TMR(),)).run(count=128, seed=2)  # type: ignore[arg-type]
    assert late.runs["top-1"].to_list() == unprotected.runs["top-1"].to_list()
    assert late.runs["detected"].all()
    assert late.runs["corrected"].all()
    assert early.summary()[0].failure.estimate == 0 < late.summary()[0].failure.estimate


def test_an_unknown_arrival_is_refused(program: hp.Program, data: hp.Inputs) -> None:
    with pytest.raises(hp.HoplonError, match="expected arrival of Campaign to be 'before' or 'after', got 'during'"):
        hp.Campaign(program, data, sites=hp.Memory(), arrival="during")  # type: ignore[arg-type]


def test_more_wrong_than_a_guard_repairs_is_uncorrectable(program: hp.Program, data: hp.Inputs) -> None:
    flood = hp.faults.BitRate(0.2)
    results = hp.Campaign(program, data, sites=hp.Memory(), fault_model=flood, protections=(hp.TMR(),)).run(count=4)
    assert results.summary()[0].counts["uncorrectable"] == results.summary()[0].n_runs


def test_what_one_guard_cannot_repair_another_does(program: hp.Program, data: hp.Inputs) -> None:
    together = hp.Campaign(program, data, sites=hp.Memory("*.weight"), protections=(hp.guards.Checksum(), hp.TMR()))
    alone = hp.Campaign(program, data, sites=hp.Memory("*.weight"), protections=(hp.guards.Checksum(),))
    assert alone.run(count=64).summary()[0].counts["uncorrectable"] > 0
    counts = together.run(count=64).summary()[0].counts
    assert counts["identical"] == sum(counts.values())


class TestBitUniform:
    def test_wide_words_are_hit_more_often(self) -> None:
        sites = [
            hp.program.MemorySite("a", shape=(30,), dtype=torch.int8),
            hp.program.MemorySite("b", shape=(10,), dtype=torch.float64),
            hp.program.MemorySite("none", shape=(0,), dtype=torch.float64),
        ]
        assert hp.sampling.BitUniform().shares(sites).tolist() == pytest.approx([30 / 110, 80 / 110, 0])
        table = draw_faults(
            Population(sites, hp.BitFlip()), 2200, sampling=hp.sampling.BitUniform(), generator=unit_generator(0, 0)
        )
        wide = int((table.frame["site"] == "b").sum())
        assert abs(wide - 1600) < 4.5 * (2200 * 8 / 11 * 3 / 11) ** 0.5  # false alarm: 7 in a million


class TestExposure:
    def test_bits_and_failures_add_up(self, program: hp.Program, data: hp.Inputs, aspis: hp.Aspis) -> None:
        faults = hp.Campaign(program, data, sites=hp.Memory("*.weight")).draw(count=256, seed=1)
        arms = {"none": [], "tmr": [hp.TMR()], "backup": [Backup()], "hardware": [hp.guards.SecDedMemory()]}
        found = hp.compare(program, data, arms=arms, faults=faults, guard_faults=128, latency=False)
        exposures = {name: found[name, "memory"].exposure for name in arms}
        model = 32 * (6 * 12 + 12 * 4)
        for name, guard_bits in {
            "none": 0,
            "tmr": 2 * (model + 32 * 16),
            "hardware": 0,
            "backup": model + 32 * 16,
        }.items():
            exposure = exposures[name]
            assert exposure is not None
            assert exposure.failing_bits is not None
            assert (exposure.model_bits, exposure.guard_bits) == (model, guard_bits)
        none, backup, tmr, hardware = (exposures[name] for name in ("none", "backup", "tmr", "hardware"))
        assert none is not None
        assert none.failing_bits is not None
        assert none.guard_failure is None
        assert none.failing_bits[0] == pytest.approx(model * found["none", "memory"].rate.failure.estimate)
        assert backup is not None
        assert backup.guard_failure is not None
        assert backup.failing_bits is not None
        assert backup.failing_bits[0] == pytest.approx(backup.guard_bits * backup.guard_failure.estimate)
        assert tmr is not None
        assert tmr.failing_bits is not None
        assert tmr.failing_bits[0] == 0 < tmr.failing_bits[2]
        assert hardware is not None
        assert hardware.hardware_bits == (model + 32 * 16) // 8
        assert found["none", "memory"].to_dict()["bits_at_risk"] == model
        assert "bits at risk" in str(found)

    def test_a_guard_that_was_not_struck_is_not_judged(self, program: hp.Program, data: hp.Inputs) -> None:
        faults = hp.Campaign(program, data, sites=hp.Memory()).draw(count=16)
        found = hp.compare(program, data, arms={"tmr": [hp.TMR()]}, faults=faults, latency=False)
        exposure = found["tmr", "memory"].exposure
        assert exposure is not None
        assert exposure.failing_bits is None
        assert exposure.guard_faults == 0
        assert "not measured" in str(found)


class TestSecDed:
    def test_single_flips_vanish_and_doubles_stop(self) -> None:
        words = torch.tensor([1.5, -2.0, 3.0])
        guard = hp.guards.SecDedMemory().arm({"w": words})
        for first, second in list(combinations(range(64), 2))[::9]:
            for flips, corrected in (((first,), True), ((first, second), False)):
                memory = words.clone()
                _flip(words, flips)
                report = guard.check()
                assert (report.detected, report.corrected, report.uncorrectable) == (
                    1,
                    int(corrected),
                    int(not corrected),
                )
                assert torch.equal(words, memory) == corrected
                words.data.copy_(memory)

    def test_three_flips_are_taken_for_one_or_reported(self) -> None:
        words = torch.zeros(2)
        guard = hp.guards.SecDedMemory().arm({"w": words})
        wrong = 0
        for flips in list(combinations(range(64), 3))[::97]:
            words.data.zero_()
            _flip(words, flips)
            report = guard.check()
            assert report.detected == 1
            wrong += bool(report.corrected and words.count_nonzero())
        assert wrong > 0

    def test_it_cannot_be_built_into_a_module(self, program: hp.Program) -> None:
        with pytest.raises(hp.HoplonError, match="expected protections in software, got sec-ded-memory"):
            hp.harden(program, [hp.guards.SecDedMemory()])


def _flip(words: Tensor, bits: tuple[int, ...]) -> None:
    """Invert bits of the first 64 of a tensor of 32-bit words."""
    for bit in bits:
        integer_view(words.data)[bit // 32] ^= 1 << bit % 32 if bit % 32 < 31 else -(2**31)


@dataclass(frozen=True)
class Backup(hp.protections.Protection):
    """One copy, always believed: right about faults in the model, wrong about those in the copy."""

    @property
    def label(self) -> str:
        return "backup"

    def arm(self, memory: Mapping[str, Tensor]) -> BackupGuard:
        return BackupGuard(memory)


class BackupGuard(hp.protections.Guard):
    def __init__(self, memory: Mapping[str, Tensor]) -> None:
        self._live = memory
        self._copies = {name: tensor.detach().clone() for name, tensor in memory.items()}

    @property
    def copies(self) -> Mapping[str, Tensor]:
        return self._copies

    @property
    def protected_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._live.values())

    def check(self, *, turn: int = 0, turns: int = 1) -> hp.protections.GuardReport:
        report = hp.protections.GuardReport()
        for name, live in self._live.items():
            wrong = int((integer_view(live) != integer_view(self._copies[name])).sum())
            integer_view(live).copy_(integer_view(self._copies[name]))
            report += hp.protections.GuardReport(live.numel(), wrong, wrong, where=(name,) if wrong else ())
        return report

    def refresh(self) -> None:
        for name, live in self._live.items():
            integer_view(self._copies[name]).copy_(integer_view(live))
