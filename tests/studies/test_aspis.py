from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hoplon.errors import DataError, HoplonError
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.stats.intervals import wilson
from hoplon.zoo import ZooData, ZooModel, resolve_model
from hoplon.zoo.datasets._cifar10 import MEAN, STD
from hoplon_studies import Profile, Row, StudyResult, profile_named, run_study, write_pages
from hoplon_studies.aspis import overhead_charts, overheads, paper_batch, sizes, subjects
from hoplon_studies.aspis.attacks import TWO_BITS
from hoplon_studies.aspis.changes import AWAY, SAMPLED, SCORED, TUNED, as_pictures
from hoplon_studies.aspis.claims.of_the_paper import headlines
from hoplon_studies.aspis.coverage import ATTACK, CLASSES, NOTICED, ONE_BIT, RIGHT, SEC_DED, TWO_BITS as TWO_OF_A_WORD
from hoplon_studies.aspis.critical import COUNTED, NEAR_ALL
from hoplon_studies.aspis.drift import FRESH, KEPT, MORE, SHARES, STALE, STRUCK
from hoplon_studies.aspis.layers import BEST, LAYERED, LAYERS, ONE, THIRD
from hoplon_studies.aspis.maps import FIRST, HELD
from hoplon_studies.aspis.study import STUDY
from hoplon_studies.framework.claims import Evidence
from hoplon_studies.framework.study import Published
from tests.reference.study_figures import compared, verdicts
from tests.support.networks import small_data, small_net
from tests.support.pages import default_reasons, repeated

COUNTS = replace(
    profile_named("quick").aspis,
    faults=24,
    magnitude_faults=4,
    important=20,
    important_faults=8,
    compared_faults=12,
    covered_faults=6,
    guards=profile_named("standard").aspis.guards,
    models=(),
)


def profile(**changes: Any) -> Profile:
    return replace(profile_named("quick"), aspis=replace(COUNTS, **changes))


@cache
def captured() -> Program:
    """The user's small network, captured once for all tests."""
    return capture(small_net(), torch.zeros(4, 1, 6, 6), name="small")


def own() -> tuple[ZooModel, ZooData]:
    held_out, calibration = small_data()
    model = ZooModel("small", small_net(), torch.zeros(4, 1, 6, 6))
    return model, ZooData("points", calibration=calibration, held_out=held_out)


class SmallResNet(nn.Module):
    """Stands where torchvision's network would."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(3, 8, 3, stride=16), nn.ReLU()
        self.conv2, self.pool, self.fc = nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.pool(self.relu(self.conv2(self.relu(self.conv1(x))))).flatten(1))
        return found


@pytest.fixture(autouse=True)
def small_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(text: str, *, seed: int = 0) -> ZooModel:
        return ZooModel(text, SmallResNet().eval(), torch.zeros(2, 3, 224, 224))

    monkeypatch.setattr(subjects, "capture", lambda module, example, name: captured())
    monkeypatch.setattr(overheads, "resolve_model", resolve)
    monkeypatch.setattr(sizes, "resolve_model", resolve)
    monkeypatch.delenv("HOPLON_DATA", raising=False)


def rows_of(result: StudyResult) -> list[Row]:
    return [row for findings in result.findings.values() for row in findings.rows]


@pytest.mark.filterwarnings("ignore::hoplon.errors.HoplonWarning")
def test_the_users_own_model_runs_every_part_and_its_figures_can_be_derived_from_the_runs(tmp_path: Path) -> None:
    result = run_study(STUDY, out=tmp_path, profile=profile(), own=own())
    pages = write_pages(tmp_path, result)
    rows = rows_of(result)
    wanted = {
        "Table I",
        "Table II",
        "Table III",
        "Table IV",
        "Table V",
        "section II",
        *(f"Fig. {n}" for n in (4, 5, 6, 8, 10, 13, 15, 16, 17, 18, 19)),
    }
    assert wanted <= {row.where for row in rows}
    assert result.unfinished == ()
    assert compared(tmp_path) >= 100
    assert verdicts(tmp_path, "aspis") >= 20
    found = {(row.where, row.arm, row.what): row for row in rows if row.model == "small"}
    assert found["Fig. 15", "none", "3 bits, faults above 0 %"].here > 0  # type: ignore[operator]
    assert found["Fig. 15", "aspis-100%", "3 bits, faults above 0 %"].here == 0
    assert found["Fig. 15", "none", "3 bits, mean"].here > 0  # type: ignore[operator]
    struck = [row for row in found.values() if row.where in ("Fig. 15", "Fig. 16")]
    assert {row.n for row in struck} == {COUNTS.compared_faults}
    first = found["Fig. 8", "", FIRST]
    assert first.here == pytest.approx(100 / 36)  # one of the 36 weights of the only convolution is the top 1 %
    held = found["Fig. 8", "", HELD]
    assert 100 / 36 < held.here <= 100  # type: ignore[operator]
    (tmr,) = [row for row in rows if row.where == "Fig. 5" and row.arm == "tmr"]
    assert tmr.here == pytest.approx(2 * 4 * (8 * 3 * 9 + 8 * 8 * 9) / 1e6)
    five = {row.arm: row.here for row in rows if row.where == "Table V" and row.what == overheads.OF_PROCESS}
    assert five[overheads.CODING] > five["checksum"] > five["radar"] > 0  # type: ignore[operator]
    repairs = [row for row in rows if row.what.startswith(overheads.ONE_REPAIR)]
    shown = {row.arm for row in repairs if not row.detail}
    assert shown == {"tmr", "tmr-sparse", "published-10%", "published-1%"}
    assert {row.what.partition(", ")[2] for row in repairs if row.arm == "tmr"} == {
        "",
        "copy: corrected",
        "main tensor: corrected",
        "uncorrectable: uncorrectable",
        "main tensor, bit 30: corrected",
    }
    assert all(figure.read_bytes().startswith(b"<?xml") for figure in pages.figures)
    _drifts(rows)
    _covers(rows)
    markdown = pages.markdown.read_text()
    assert len(markdown.splitlines()) <= 350
    assert repeated(markdown) == {}
    assert default_reasons(json.loads(pages.document.read_text())) == []
    assert all(f"aspis/{figure.name}" in markdown for figure in pages.figures)


def _drifts(rows: list[Row]) -> None:
    """The network's own rows of the parts about layers and drift."""
    left = {(row.what, row.arm): row for row in rows if row.setting == STRUCK}
    assert {what for what, _ in left} == {SAMPLED, TUNED}
    for what in (SAMPLED, TUNED):
        bare, stale, fresh, more = (left[what, arm].here for arm in ("none", STALE, FRESH, MORE))
        assert bare >= max(stale, fresh)  # type: ignore[operator]
        assert more == pytest.approx(stale - fresh)  # type: ignore[operator]
    kept = {row.arm: row for row in rows if row.setting == SHARES and row.what == KEPT}
    assert kept[SCORED["mnist"]].why == kept[AWAY].why == "no data here"
    assert kept[TUNED].here in (0, 100)  # the top 1 % is one weight of 36
    layers = {(row.what, row.arm): row.here for row in rows if row.setting == LAYERED}
    assert layers[BEST, "none"] > layers[BEST, ONE] == layers[BEST, "by score"] == 0  # type: ignore[operator]
    assert layers[THIRD, "none"] > layers[THIRD, LAYERS] == layers[THIRD, "by score"] == 0  # type: ignore[operator]


def _covers(rows: list[Row]) -> None:
    """What guards do about faults in the only convolution, as they guarantee it."""
    found = {(row.arm, row.what): row.here for row in rows if row.setting == "guards on small on points"}
    for faults in CLASSES:
        assert found["none", f"{faults}: {RIGHT}"] == found["none", f"{faults}: {NOTICED}"] == 0
        for guard in ("tmr", "aspis-100%", overheads.CODING):
            assert found[guard, f"{faults}: {RIGHT}"] == found[guard, f"{faults}: {NOTICED}"] == 100, (guard, faults)
        assert found["radar", f"{faults}: {RIGHT}"] == 0
    assert (found[SEC_DED, f"{ONE_BIT}: {RIGHT}"], found[SEC_DED, f"{TWO_OF_A_WORD}: {RIGHT}"]) == (100, 0)
    assert found[SEC_DED, f"{TWO_OF_A_WORD}: {NOTICED}"] == 100
    assert found["aspis-1%", f"{ONE_BIT}: {RIGHT}"] < 100
    assert found["known-bits", f"{ATTACK}: {NOTICED}"] == 100
    assert (found["tmr-sparse", f"{ATTACK}: {RIGHT}"], found["tmr-sparse", f"{ATTACK}: {NOTICED}"]) == (0, 100)
    assert found["tmr", overheads.OF_WEIGHTS] == pytest.approx(200)


class _Stopped(Exception):  # noqa: N818 -- says what is the case
    pass


@pytest.mark.filterwarnings("ignore::hoplon.errors.HoplonWarning")
@pytest.mark.parametrize(
    ("part", "stage"),
    [
        ("critical", "own/3-bits/important"),
        pytest.param("same-faults", "own/random/2-bits", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_study_gives_the_page_of_one_that_was_not(tmp_path: Path, part: str, stage: str) -> None:
    def run(name: str, tell: Any = None) -> dict[str, bytes]:
        options: dict[str, Any] = {"only": ["important", part], "own": own(), "tell": tell}
        write_pages(tmp_path / name, run_study(STUDY, out=tmp_path / name, profile=profile(), **options))
        return {file.name: file.read_bytes() for file in (tmp_path / name).glob("aspis*") if file.is_file()}

    def stop(at: str, done: int, total: int | None) -> None:
        if at == stage and done:
            raise _Stopped

    with pytest.raises(_Stopped):
        run("interrupted", stop)
    assert run("interrupted") == run("whole")


def test_what_has_no_weights_here_says_so(tmp_path: Path) -> None:
    counts = profile(models=("resnet20-cifar10", "vgg11-cifar10"), architectures=())
    result = run_study(STUDY, out=tmp_path, profile=counts)
    rows = [row for row in rows_of(result) if row.model in ("ResNet-20", "VGG11")]
    assert {row.where for row in rows} >= {"Table IV", "Fig. 13", "Fig. 12", "Fig. 15", "Fig. 16", "Fig. 17"}
    assert all((row.here, row.why) == (None, "no weights here") for row in rows)
    assert all(row.why for row in rows_of(result) if row.here is None)


def test_networks_of_another_profile_wait_for_it(tmp_path: Path) -> None:
    waiting = profile_named("standard").aspis.waiting
    result = run_study(STUDY, out=tmp_path, profile=profile(waiting=waiting, architectures=()))
    told = "waits for hoplon study aspis --profile networks"
    rows = [row for row in rows_of(result) if row.why == told]
    assert {row.model for row in rows} == {"VGG19", "ResNet50", "Inception v3", "EfficientNet-Lite0"}
    assert {row.where for row in rows} >= {"Table IV", "Fig. 13", "Fig. 8", "Fig. 10", "Fig. 12", "Fig. 15", "Fig. 17"}
    assert all(row.here is None for row in rows)


def test_a_profile_that_trains_asks_for_a_training_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def trained(name: str, *, make: bool, progress: Any) -> ZooModel:
        asked.append((name, make))
        raise DataError("no data")

    monkeypatch.setattr(subjects, "trained", trained)
    for name in ("standard", "networks"):
        context = SimpleNamespace(profile=profile_named(name), own=None, training=lambda name: None)
        assert all(isinstance(found, subjects.Absent) for found in subjects.each_subject(context))
    assert ("vgg11-cifar10", False) in asked
    assert {name for name, make in asked if make} >= {"vgg19-cifar10", "resnet50-cifar10", "inception-v3-cifar10"}
    assert not {name for name, make in asked if not make} & set(profile_named("standard").aspis.waiting)


@pytest.mark.filterwarnings("ignore::hoplon.errors.HoplonWarning")
def test_a_part_found_anew_takes_its_finished_runs(tmp_path: Path) -> None:
    def run(again: tuple[str, ...] = (), tell: Any = None) -> StudyResult:
        options: dict[str, Any] = {"profile": profile(), "own": own(), "only": ["critical"]}
        return run_study(STUDY, out=tmp_path, again=again, tell=tell, **options)

    def never(stage: str, done: int, total: int | None) -> None:
        assert done == total, f"{stage} runs again"

    first = run()
    assert run(("critical",), never).findings == first.findings


@pytest.mark.parametrize("name", ["vgg19", "resnet50", "inception_v3"])
def test_convolutions_are_as_many_and_as_large_as_the_paper_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published("aspis")
    with torch.device("meta"):
        model = resolve_model(f"torchvision:{name}")
    monkeypatch.setattr(sizes, "resolve_model", lambda text: model)
    found = sizes.convolutions(name)
    assert len(found) == published[f"table2/{name}/layers"]
    assert sum(found.values()) == published[f"table2/{name}/weights"]
    assert min(found.values()) == published[f"layers/{name}/smallest"]
    millions = float(published[f"layers/{name}/largest"].removesuffix(" million"))
    assert millions == pytest.approx(max(found.values()) / 1e6, abs=0.1)


def test_the_published_run_times_are_added_times_of_microseconds_per_weight() -> None:
    published = Published("aspis")
    vgg, resnet = (overhead_charts.added_per_weight(published, name) for name in ("vgg19", "resnet50"))
    assert (vgg[0], resnet[0]) == pytest.approx((12.1, 11.96))  # hours, whatever the network
    assert vgg[1] == pytest.approx(12.1 * 3600 / 196 / 20_018_880 * 1e6)
    assert (round(vgg[1]), round(resnet[1])) == (11, 19)
    tmr = {"check_ms": 30.0, "layer_ms": 1.0}
    costs = {name: {"forward_ms": 300.0, "batch": 2, "costs": {"tmr": tmr}} for name in ("vgg19", "resnet50")}
    (text,) = [text for text in overhead_charts.told(costs, published) if "per weight" in text.lower()]
    assert "11 and 19 microseconds" in text
    assert "1.3 to 1.5 nanoseconds" in text
    assert "0.8 to 2.3 repeated layer by layer" in text


@pytest.mark.parametrize(
    ("beyond", "told"),
    [(4, "then not comparable: the verdict rests on the threshold"), (9, "the same verdict")],
)
def test_a_verdict_says_what_another_threshold_gives(beyond: int, told: str) -> None:
    row = Row("Fig. 13", "VGG11", "CIFAR-10", TWO_BITS, "%", why="-", arm="random", stands_for="VGG19")
    found = [
        replace(row, setting=setting).found(wilson(count, 300), n=300, seed=0)
        for setting, count in ((COUNTED, 10), (NEAR_ALL, beyond))
    ]
    (claim,) = [one for one in headlines(Evidence(found, Published("aspis"))) if one.name == "random-vgg19"]
    assert claim.verdict == "confirmed"
    assert told in claim.because


def test_other_pictures_are_brought_to_those_that_the_network_takes() -> None:
    like = SimpleNamespace(known=Inputs(torch.zeros(2, 3, 32, 32)))
    digits = torch.zeros(1, 1, 28, 28)
    digits[0, 0, 0, 0] = 1.0
    found = as_pictures(Inputs(digits, torch.tensor([7])), like)  # type: ignore[arg-type]
    white, black = ((torch.tensor([grey] * 3) - torch.tensor(MEAN)) / torch.tensor(STD) for grey in (1.0, 0.0))
    assert found.tensors[0].shape == (1, 3, 32, 32)
    assert torch.allclose(found.tensors[0][0, :, 2, 2], white)
    assert torch.allclose(found.tensors[0][0, :, 1, 2], black)
    assert found.y is not None
    assert found.y.tolist() == [7]
    with pytest.raises(DataError, match="prepared for networks of CIFAR-10 alone"):
        as_pictures(Inputs(digits), SimpleNamespace(known=Inputs(torch.zeros(2, 3, 224, 224))))  # type: ignore[arg-type]


def test_memory_of_structural_coding_is_set_beside_that_of_aspis_in_one_base() -> None:
    row = Row("Table V", "ResNet50", "-", overheads.OF_PROCESS, "%", arm=overheads.CODING, here=0.089)
    found = [
        row,
        replace(row, arm="published-1%", here=0.158),
        replace(row, arm="published-10%", here=1.58),
        replace(row, what=overheads.OF_WEIGHTS, here=14.0),
        replace(row, model="ResNet-20", what=overheads.OF_WEIGHTS, here=65.0),
    ]
    claims = {claim.name: claim for claim in headlines(Evidence(found, Published("aspis")))}
    claim = claims["structural-coding"]
    assert claim.verdict == "refuted"  # by both shares of the same process
    assert claim.here == "0.089 % → 1.58 %; 0.089 % → 0.158 %" or claim.here == "0.089 % → 0.158 %; 0.089 % → 1.58 %"
    assert "14 %" in claim.because
    assert "65" not in claim.because


def test_what_costs_nothing_has_no_bar() -> None:
    costs = {"ranger": {"time": (-0.01, -0.02, 0.01), "extra_bytes": 0}, "tmr": {"time": (0.1,) * 3, "extra_bytes": 8}}
    time, memory = overhead_charts.charts({"vgg19": {"costs": costs}}, ("ranger", "tmr"))
    assert time.alt == "ranger: none; tmr: 10 %"
    assert memory.alt == "ranger: none; tmr: 8e-06 MB"


def test_checks_are_timed_beside_passes_of_the_papers_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paper_batch.BATCHES, "resnet50", 4)
    for passes in (2, 6):
        counts = profile(full_passes=passes, models=(), whole_repeats=6)
        rows = rows_of(run_study(STUDY, out=tmp_path / str(passes), profile=counts, only=["whole-data"]))
        checks = [row for row in rows if row.arm and row.setting == "at the paper's batch"]
        assert [row.arm for row in checks] == ["tmr", "tmr-sparse", "published-10%", "published-1%"]
        assert all(row.here > 0 and row.n == passes for row in checks)  # type: ignore[operator]
        assert all((row.low is not None) == (passes == 6) for row in checks)  # fewer have no 95 % interval


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    model, data = own()
    unlabelled = replace(data.held_out, y=None)
    with pytest.raises(HoplonError, match="expected labelled data, got points without labels"):
        run_study(
            STUDY,
            out=tmp_path,
            profile=profile(),
            own=(model, ZooData("points", data.calibration, unlabelled)),
            only=["critical"],
        )


def test_profiles_grow() -> None:
    quick, standard, paper = (profile_named(name).aspis for name in ("quick", "standard", "paper"))
    for name in ("faults", "important_faults", "compared_faults", "inputs", "calibration", "batch", "whole_inputs"):
        assert getattr(quick, name) < getattr(standard, name) <= getattr(paper, name)
    assert (paper.faults, paper.important_faults, paper.repeats) == (1000, 500, 50)  # sections IV-A and V-C
