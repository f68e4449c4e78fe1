"""Thousands of damaged and forged files: each reader takes them or refuses in one line, and does not hang."""

from __future__ import annotations

import copy
import hashlib
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hoplon as hp
from hoplon.cli.options.campaign_file import Settings, read_raw
from hoplon.comparison.assessment import AssessmentPlan
from hoplon.errors import HoplonError
from hoplon.formats.tensor_files import save_tensors
from hoplon.protections.ranges.profile import Profile
from hoplon.report.document import read_document, write_document
from hoplon.report.page import render
from hoplon.zoo.files import read_state_dict
from hoplon.zoo.resolve import resolve_data
from hoplon_studies.framework.findings import Findings
from hoplon_studies.framework.folder import StudyFolder
from tests.security import mutants
from tests.security.mutants import Mutate
from tests.support.networks import small_data, small_net

_SECONDS = 20
_MUTANTS = 3_000


@dataclass(frozen=True)
class Reader:
    """What is read and used, from the file or folder that it needs.

    ``files``: those in it that are changed; None: it is a file. ``changes``: in which ways.
    """

    name: str
    make: Callable[[Path], None]
    use: Callable[[Path], object]
    changes: tuple[Mutate, ...]
    files: tuple[str, ...] = ("",)


@cache
def _net() -> nn.Module:
    return small_net()


@cache
def _program() -> hp.Program:
    return hp.capture(_net(), torch.zeros(4, 1, 6, 6), name="small")


def _campaign(target: str) -> hp.Campaign:
    sites = hp.Values() if target == "values" else hp.Memory()
    return hp.Campaign(_program(), small_data()[0], sites=sites, fault_model=hp.BitFlip(), criterion=hp.TopK(1))


def _make_run(path: Path, target: str, **size: Any) -> None:
    _campaign(target).run(**size, seed=1, store=path)


def _make_designed(path: Path) -> None:
    _make_run(path, "values", half_width=0.05)


def _use_results(path: Path) -> object:
    found = hp.load_results(path)
    views = [found.by(axis) for axis in ("layer", "bit", "direction")]
    return str(found), found.digest(), views, found.critical_share() if found.target == "memory" else None


def _rerun(path: Path) -> object:
    return hp.rerun(path, _program(), small_data()[0])


def _compare(path: Path) -> object:
    table = hp.FaultTable.load(path)
    return hp.compare(_program(), small_data()[0], arms={"none": []}, faults=table, criterion=hp.TopK(1))


def _table(path: Path, target: str) -> None:
    _campaign(target).run(count=40, seed=1).faults.save(path)


def _ranges() -> hp.Ranges:
    return hp.profile_ranges(_program(), small_data()[1])


def _scores() -> hp.Scores:
    return hp.importance.taylor(_program(), small_data()[1], loss=functional.cross_entropy)


def _save_bundle(path: Path) -> None:
    arms = [hp.Ranger(_ranges()), hp.Aspis(_scores(), fraction=0.1), hp.Parity()]
    hp.save_bundle(hp.harden(_program(), arms), path)


def _save_data(path: Path) -> None:
    held_out, calibration = small_data()
    arrays = {"x": held_out.x, "y": held_out.y, "x_calibration": calibration.x, "y_calibration": calibration.y}
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


_SETTINGS = """model = "lenet-digits"
data = "digits"
count = 100
seed = 3
criterion = [ "top-k(k=2)" , { name = "top-k", k = 1 } ]
fault = { name = "bitflip", count = 2, bits = [ 1, 2 ], format = "float32" }
sampling = "layer"
protection = [ "ranger(quantile=99.9%)" , "aspis(fraction=1%)" ]
kind = [ "conv" , "linear" ]
"""


def _write_settings(path: Path) -> None:
    path.write_text(_SETTINGS)


def _begin_study(path: Path) -> None:
    folder = StudyFolder(path)
    folder.begin({"name": "small", "seed": 0}, {"begun": "today", "command": "hoplon study", "machine": {}})
    folder.keep("one", Findings(text=("a paragraph",)))


def _go_on_with_study(path: Path) -> object:
    folder = StudyFolder(path)
    return folder.begin({"name": "small", "seed": 0}, {}), folder.finished("one")


def _save_checksummed(path: Path) -> None:
    save_tensors(path, dict(_net().named_parameters()), {})


def _guard_from_file(path: Path) -> object:
    model = copy.deepcopy(_net())
    guard = hp.guard(model, [hp.guards.Checksum("reload", source=path)])
    with torch.no_grad():
        next(model.parameters()).data.view(-1)[0] += 1
    return guard.check()


def _assess(path: Path) -> None:
    held_out, calibration = small_data()
    plan = AssessmentPlan(value_faults=100, memory_faults=8, latency=False)
    found = hp.assess(_program(), calibration=calibration, held_out=held_out, plan=plan)
    write_document(path, found.to_dict())


_BYTES, _DOCUMENT = (mutants.bytes_changed,), (mutants.bytes_changed, mutants.document_changed)
_TABLE, _TENSORS = (mutants.bytes_changed, mutants.table_changed), (mutants.bytes_changed, mutants.header_changed)
_MEMORY = ("guards.safetensors", "descriptions.safetensors")
_SHARDS = ("faults/unit-00000000.parquet", "runs/unit-00000000.parquet")

READERS = (
    Reader("run", lambda path: _make_run(path, "values", count=40), _use_results, _DOCUMENT, ("manifest.json",)),
    Reader("shards", lambda path: _make_run(path, "values", count=40), _use_results, _TABLE, _SHARDS),
    Reader("memory shards", lambda path: _make_run(path, "memory", count=20), _use_results, _TABLE, _SHARDS),
    Reader("design", _make_designed, _use_results, _DOCUMENT, ("design.json",)),
    Reader("designed shards", _make_designed, _use_results, _TABLE, _SHARDS),
    Reader("rerun", lambda path: _make_run(path, "values", count=20), _rerun, _TABLE, _SHARDS[:1]),
    Reader("rerun memory", lambda path: _make_run(path, "memory", count=10), _rerun, _TABLE, _SHARDS[:1]),
    Reader("value faults", lambda path: _table(path, "values"), _compare, _TABLE),
    Reader("memory faults", lambda path: _table(path, "memory"), _compare, _TABLE),
    Reader("ranges", lambda path: _ranges().save(path), lambda path: hp.Ranger(hp.Ranges.load(path)), _DOCUMENT),
    Reader(
        "profile",
        lambda path: hp.profile_activations(_program(), small_data()[1], quantiles=True).save(path),
        lambda path: Profile.load(path).ranges(quantile=0.9),
        _DOCUMENT,
    ),
    Reader("scores", lambda path: _scores().save(path), lambda path: hp.Scores.load(path).top(0.1), _TENSORS),
    Reader("bundle index", _save_bundle, hp.load_bundle, _DOCUMENT, ("bundle.json",)),
    Reader("bundle graph", _save_bundle, hp.load_bundle, _BYTES, ("model.pt2",)),
    Reader(
        "bundle tensors", _save_bundle, hp.load_bundle, _TENSORS, ("guards.safetensors", "descriptions.safetensors")
    ),
    Reader("data", _save_data, lambda path: resolve_data(str(path)), _BYTES),
    Reader("state dict", lambda path: torch.save(small_net().state_dict(), path), read_state_dict, _BYTES),
    Reader(
        "campaign file",
        _write_settings,
        lambda path: Settings.read(read_raw(path)),
        (mutants.text_changed, mutants.bytes_changed),
    ),
    Reader("report", _assess, lambda path: render(read_document(path)), _DOCUMENT),
    Reader("study", _begin_study, _go_on_with_study, _DOCUMENT, ("study.json", "parts/one.json")),
    Reader("weights to load again", _save_checksummed, _guard_from_file, _TENSORS),
)


@contextmanager
def _time_limit(what: str) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what} took more than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@pytest.mark.filterwarnings("ignore::hoplon.errors.HoplonWarning")
def test_a_damaged_or_forged_file_is_taken_or_refused_in_one_line(reader: Reader, tmp_path: Path) -> None:
    whole, place = tmp_path / "whole" / _NAMES.get(reader.name, "file"), tmp_path / "file"
    whole.parent.mkdir()
    reader.make(whole)
    reader.use(whole)
    findings, refused = [], 0
    for number in range(-(-_MUTANTS // len(READERS))):
        chance = random.Random(f"{reader.name} {number}")
        change, file = chance.choice(reader.changes), chance.choice(reader.files)
        target = _copied(whole, place / whole.name)
        changed = target / file if file else target
        content = changed.read_bytes()
        changed.write_bytes(change(content, chance))
        if change is mutants.table_changed:
            _sign_again(target)
        what = f"{reader.name} {number}: {change.__name__} of {file or 'file'}"
        try:
            with _time_limit(what):
                reader.use(target)
        except HoplonError as error:
            refused += 1
            if ("\n" in str(error) and " values are wrong:\n" not in str(error)) or len(str(error)) > _LONGEST:
                findings.append(f"{what}: {len(str(error))} characters, {str(error)[:300]!r}")
        except BaseException as error:  # noqa: BLE001 -- polars' panics are no Exceptions
            findings.append(f"{what}: {type(error).__name__}: {str(error)[:300]!r}")
    assert not findings, f"{len(findings)} findings\n" + "\n".join(findings[:20])
    assert refused


def _sign_again(run: Path) -> None:
    """Digests of the shards as they are now, as a forger would write them."""
    for file in run.glob("digests/*.sha256") if run.is_dir() else ():
        names = [line.split(maxsplit=1)[1] for line in file.read_text().splitlines()]
        lines = [f"{hashlib.sha256((run / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        file.write_text("".join(lines))


def _copied(whole: Path, target: Path) -> Path:
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    if whole.is_file():
        shutil.copy(whole, target)
    else:
        shutil.copytree(whole, target)
    return target


_LONGEST = 600
_NAMES = {"data": "data.npz", "campaign file": "campaign.toml"}
