"""Files and folders of protected models that take the place of earlier ones, and of nothing else."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import hoplon as hp
from hoplon.errors import StoreError
from tests.support.failing_calls import counted, full
from tests.support.networks import NETWORKS, captured


@pytest.fixture(scope="module")
def module() -> hp.runtime.HardenedModule:
    """A module with bounds alone."""
    program = captured("mlp", 3)
    return hp.harden(program, [hp.Ranger(hp.profile_ranges(program, NETWORKS["mlp"].batch(3)))])


def _note(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")


def _folder(bundle: Path) -> None:
    (bundle / "photos").mkdir()


def _another_index(bundle: Path) -> None:
    (bundle / "bundle.json").write_text(json.dumps({"name": "web", "files": {}}))


def _damaged_index(bundle: Path) -> None:
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace("ranger", "danger"))


def _no_index(bundle: Path) -> None:
    (bundle / "bundle.json").unlink()


def _link(bundle: Path) -> None:
    (bundle / "model.pt2").rename(bundle.parent / "elsewhere.pt2")
    (bundle / "model.pt2").symlink_to(bundle.parent / "elsewhere.pt2")


def _linked(bundle: Path) -> None:
    bundle.rename(bundle.parent / "elsewhere")
    bundle.symlink_to(bundle.parent / "elsewhere")


@pytest.mark.parametrize("put", [_note, _folder, _another_index, _damaged_index, _no_index, _link, _linked])
def test_a_folder_that_is_not_a_bundle_and_nothing_else_stays(
    put: Callable[[Path], None], module: hp.runtime.HardenedModule, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    hp.save_bundle(module, bundle)
    put(bundle)
    before = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")}
    with pytest.raises(StoreError, match=f"expected a new folder or a bundle to replace, got {bundle} with .*; choose"):
        hp.save_bundle(module, bundle)
    assert {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")} == before


def test_a_bundle_whose_writing_fails_at_any_call_is_whole(module: hp.runtime.HardenedModule, tmp_path: Path) -> None:
    """Each call, of those on the file system, that moves or removes what is there."""
    bundle, calls, at = tmp_path / "bundle", ("replace", "unlink", "rmdir", "fsync"), 0
    hp.save_bundle(module, bundle)
    batch = NETWORKS["mlp"].batch(3)
    while True:
        at += 1
        with counted(at, full, calls) as count, suppress(StoreError):
            hp.save_bundle(module, bundle)
        if count[0] < at:
            break
        assert torch.equal(hp.load_bundle(bundle)(batch), module(batch))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert at > 10


def test_a_bundle_that_a_killed_process_was_about_to_replace_is_found(
    module: hp.runtime.HardenedModule, tmp_path: Path
) -> None:
    bundle, hidden = tmp_path / "bundle", tmp_path / f".bundle.{'ab' * 16}"
    hp.save_bundle(module, bundle)
    hidden.mkdir()
    bundle.rename(hidden / "bundle.before")
    batch = NETWORKS["mlp"].batch(3)
    assert torch.equal(hp.load_bundle(bundle)(batch), module(batch))
    assert not hidden.exists()


def test_an_onnx_file_that_cannot_be_written_leaves_the_earlier_one(
    module: hp.runtime.HardenedModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    weights = tmp_path / "model.onnx.data"

    def save(_: torch.onnx.ONNXProgram, path: Path) -> None:
        path.with_name(f"{path.name}.data").write_text("new weights")
        path.write_text("half")
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
    file.write_text("old")
    weights.write_text("old weights")
    fails = True
    with pytest.raises(StoreError, match=r"expected to write .*model.onnx, got No space left on device"):
        hp.export_onnx(module, file)
    assert (file.read_text(), weights.read_text()) == ("old", "old weights")
    fails = False
    hp.export_onnx(module, file)
    assert (file.read_text(), weights.read_text()) == ("half", "new weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
