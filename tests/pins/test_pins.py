"""Pinned behaviour: files written before are read as before, and the same faults have the same outcomes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import polars as pl
import pytest
import torch

import hoplon as hp
from hoplon.cli.app import main as command_line
from tests.pins import fixtures as files, networks, study
from tests.pins.campaigns import CAMPAIGNS
from tests.pins.digests import Record, record
from tests.pins.renames import COLUMNS, KINDS, OUTCOMES

PINNED: dict[str, Any] = files.read_json(files.DIGESTS)


def explain(found: Record, wanted: Record) -> str:
    """What differs, column by column and figure by figure."""
    columns = {**wanted["columns"], **found["columns"]}
    different = [name for name in columns if found["columns"].get(name) != wanted["columns"].get(name)]
    keys = ("faults", "runs", "summary")
    figures = [f"{key}: {found[key]}, pinned {wanted[key]}" for key in keys if found[key] != wanted[key]]
    return "; ".join([f"columns that differ: {', '.join(different) or 'none'}", *figures])


def check(results: hp.Results, wanted: Record) -> None:
    """Compare a campaign with what is pinned of it."""
    found = record(results)
    assert found == wanted, explain(found, wanted)


@pytest.mark.parametrize("kind", list(networks.SHAPES), ids=lambda kind: kind.__name__)
def test_sums_are_exact(kind: type[torch.nn.Module]) -> None:
    """The networks give in their dtype what they give in double precision, and their logits are well apart."""
    net, x = networks.build(kind), networks.inputs(kind).x
    if kind is networks.Narrow:
        net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.no_grad():
        found = torch.cat([net(row[None]) for row in x]).double()
        exact = torch.cat([net.double()(row[None].double()) for row in x])
    assert torch.equal(found, exact)
    first, second = exact.topk(2, dim=1).values.T
    assert float((first - second).min()) > 0


def test_all_campaigns_are_pinned() -> None:
    """Twelve campaigns, no more and no fewer."""
    assert set(PINNED["campaigns"]) == set(CAMPAIGNS)
    assert len(CAMPAIGNS) == 12


@pytest.mark.parametrize("name", list(CAMPAIGNS))
def test_a_campaign_gives_the_same_records(name: str) -> None:
    """Faults and outcomes are those that were pinned."""
    wanted = PINNED["campaigns"][name]
    found = CAMPAIGNS[name]()
    assert set(found) == set(wanted)
    for label, results in found.items():
        check(results, wanted[label])


@pytest.mark.parametrize("name", list(files.COMPLETE))
def test_a_run_directory_is_read(name: str) -> None:
    """Records written before are read as they were."""
    check(hp.load_results(files.COMPLETE[name]), PINNED["directories"][name])


def test_a_run_directory_holds_what_is_found_here() -> None:
    """One of the run directories is of a pinned campaign; that with a half-width is of an earlier plan."""
    assert PINNED["directories"]["values"] == PINNED["campaigns"]["values"]["all"]


def test_a_stopped_campaign_is_resumed(tmp_path: Path) -> None:
    """Its records become those of the campaign that was never stopped."""
    check(hp.load_results(files.STOPPED), PINNED["stopped"])
    assert PINNED["stopped"]["faults"] < PINNED["resumed"]["faults"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    check(files.long_campaign(whole), PINNED["resumed"])
    shutil.copytree(files.STOPPED, resumed)
    files.take_over_versions(resumed, whole)
    check(files.long_campaign(resumed, resume=True), PINNED["resumed"])


def test_the_command_gives_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run afresh, and gone on with from the settings that were kept."""
    afresh, kept = tmp_path / "afresh", tmp_path / "kept"
    for folder in (afresh, kept):
        folder.mkdir()
        files.write_inputs_of_the_command(folder)
    monkeypatch.chdir(afresh)
    assert command_line(files.command()) == 0
    check(hp.load_results("memory"), PINNED["directories"]["memory"])
    shutil.copytree(files.MEMORY, kept / "memory")
    files.take_over_versions(kept / "memory", afresh / "memory")
    monkeypatch.chdir(kept)
    assert command_line(["inject", "model.py:convolutional", "data.npz", "--resume", "--out", "memory", "--json"]) == 0
    check(hp.load_results("memory"), PINNED["directories"]["memory"])
    capsys.readouterr()


def test_a_bundle_is_loaded(tmp_path: Path) -> None:
    """Outputs and memory of a bundle written before, and of one written here."""
    assert files.read_bundle(files.BUNDLE) == PINNED["bundle"]
    hp.save_bundle(files.hardened(), tmp_path / "bundle")
    assert files.read_bundle(tmp_path / "bundle") == PINNED["bundle"]


def test_ranges_are_loaded() -> None:
    """Bounds written before are those found here."""
    assert files.read_ranges(files.RANGES) == PINNED["ranges"]
    assert hp.Ranges.load(files.RANGES) == files.campaigns.ranges()


def test_scores_are_loaded(tmp_path: Path) -> None:
    """Scores written before, and written here."""
    assert files.read_scores(files.SCORES) == PINNED["scores"]
    files.campaigns.scores().save(tmp_path / "scores")
    assert files.read_scores(tmp_path / "scores") == PINNED["scores"]


def test_a_study_is_gone_on_with(tmp_path: Path) -> None:
    """Its finished part is not run again, and says what it says when it is run here."""
    check(hp.load_results(files.STUDY / study.RUN), PINNED["study"])
    kept, here = tmp_path / "kept", tmp_path / "here"
    shutil.copytree(files.STUDY, kept)
    afresh = study.run(here, study.found)
    files.take_over_versions(kept / study.FOLDER, here / study.FOLDER, file="study.json", key="identity")
    found = study.run(kept, study.refuses)
    assert dict(found.findings) == dict(afresh.findings)
    assert found.unfinished == ("open",)
    study.write_pages(kept, found)
    assert files.read_json(kept / "pins.json")["unfinished"] == ["open"]


def test_a_renaming_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only called differently keeps its digest."""
    results = CAMPAIGNS["values"]()["all"]
    names = {"keep": "kept", "detected": "noticed", "top-1": "first"}
    outcomes = {"benign": "harmless"}
    renamed_runs = results.runs.rename({old: new for old, new in names.items() if old in results.runs.columns})
    runs = renamed_runs.with_columns(pl.col("first").cast(pl.String).replace(outcomes))
    frame = results.faults.frame.with_columns(pl.col("site").cast(pl.String).str.replace(":conv", ":convolution"))
    rate = results.summary()[0]
    counts = {outcomes.get(outcome, outcome): count for outcome, count in rate.counts.items()}
    table = MagicMock(frame=frame.rename({"keep": "kept"}))
    table.__len__.return_value = len(results.faults)
    other = MagicMock(faults=table, runs=runs, criteria=("first",))
    other.summary.return_value = (dataclasses.replace(rate, criterion="first", counts=counts),)
    for kept, given in ((COLUMNS, names), (OUTCOMES, outcomes), (KINDS, {"conv": "convolution"})):
        for old, new in given.items():
            monkeypatch.setitem(kept, old, new)
    check(other, PINNED["campaigns"]["values"]["all"])
