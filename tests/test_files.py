"""Files and folders: whatever stops a write, what was there stays until the new one stands; nothing foreign goes."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from hoplon.errors import StoreError
from hoplon.files import bring_back, locked, remove_folder, replace_folder, replacing, write_atomically
from tests.support.failing_calls import counted, full
from tests.support.folder_writes import OURS, content, write, write_killed


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with everything imported, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.folder_writes"])
    return context


def _hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_a_folder_whose_writer_is_killed_at_any_call_is_the_old_one_or_the_new_one(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    target, at, seen = tmp_path / "out", 0, []
    while True:
        at += 1
        write(target, "old")
        process = processes.Process(target=write_killed, args=(target, "new", at))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        seen.append(target.exists())
        bring_back(target)
        assert content(target) in ("old", "new")
        write(target, "next")
        assert content(target) == "next"
        assert not _hidden(tmp_path)
    assert False in seen  # it was killed while nothing stood in the place
    assert at > 10


def test_a_folder_whose_write_fails_at_any_call_is_whole(tmp_path: Path) -> None:
    target, at = tmp_path / "out", 0
    while True:
        at += 1
        write(target, "old")
        try:
            with counted(at, full) as count:
                write(target, "new")
        except StoreError as error:
            assert "got No space left on device; choose a writable folder" in str(error)  # noqa: PT017
        if count[0] < at:
            break
        assert content(target) in ("old", "new")
        write(target, "next")
        assert content(target) == "next"
        assert not _hidden(tmp_path)
    assert at > 10


@pytest.mark.parametrize("text", ["old", None])
def test_a_file_whose_write_fails_at_any_call_is_whole(text: str | None, tmp_path: Path) -> None:
    file, at = tmp_path / "results.json", 0
    while True:
        at += 1
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        failed = False
        with counted(at, full) as count:
            try:
                write_atomically(file, "new")
            except StoreError:
                failed = True
        if count[0] < at:
            break
        found = file.read_text() if file.exists() else None
        assert found == text if failed else found == "new"
        write_atomically(file, "new")
        assert not _hidden(tmp_path)
    assert at > 4


def _note(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def _note_below(folder: Path) -> None:
    (folder / "sub" / "notes.txt").write_text("mine")


def _folder_of_a_known_name(folder: Path) -> None:
    (folder / "c.txt").mkdir()


def _link_to_a_file(folder: Path) -> None:
    (folder.parent / "notes.txt").write_text("mine")
    (folder / "c.txt").symlink_to(folder.parent / "notes.txt")


def _link_to_a_folder(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "d.txt").write_text("mine")
    (folder / "sub" / "d.txt").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(folder.parent / "elsewhere")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "c.txt")


STRANGERS = [_note, _note_below, _folder_of_a_known_name, _link_to_a_file, _link_to_a_folder, _pipe]


@pytest.mark.parametrize("put", STRANGERS)
def test_a_folder_with_anything_of_the_users_is_not_replaced(put: Callable[[Path], None], tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    put(target)
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    with pytest.raises(StoreError, match=r"got /.*/(notes\.txt|c\.txt|sub), which hoplon did not write; choose"):
        write(target, "new")
    with pytest.raises(FileExistsError, match="which hoplon did not write"):
        remove_folder(target, OURS)
    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before


def test_a_folder_is_not_put_in_the_place_of_a_link_or_a_file(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(StoreError, match=f"got {tmp_path / name}, which hoplon did not write"):
            write(tmp_path / name, "new")
        new = tmp_path / "new"
        new.mkdir(exist_ok=True)
        with pytest.raises(StoreError, match="which hoplon did not write"):
            replace_folder(new, tmp_path / name, ours=OURS)
        assert new.exists()
    assert content(tmp_path / "elsewhere") == "mine"
    assert (tmp_path / "link").is_symlink()


def test_a_link_is_replaced_and_what_it_points_at_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    link = tmp_path / "results.json"
    link.symlink_to(tmp_path / "notes.txt")
    write_atomically(link, "new")
    assert (link.read_text(), link.is_symlink()) == ("new", False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_came_into_a_folder_while_it_was_replaced_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    with replacing(target, ours=re.compile(OURS.pattern)) as new:
        new.mkdir()
        _note(target)
        with pytest.raises(StoreError, match="notes.txt, which hoplon did not write"):
            write(target, "another")
        (target / "notes.txt").unlink()
    assert list(target.iterdir()) == []


def test_many_may_write_one_file_at_once(tmp_path: Path) -> None:
    """Each sweeps what others left, and takes no live writer for a dead one."""
    file, texts = tmp_path / "scores", [f"{number}\n" * 100 for number in range(1000)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda text: write_atomically(file, text), texts))
    assert file.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_only_what_dead_writers_left_is_swept(tmp_path: Path) -> None:
    file, number = tmp_path / "scores", "0a" * 16
    left = [tmp_path / f".scores.{number}", tmp_path / f".scores.{'1' * 32}"]
    left[0].mkdir()
    (left[0] / "scores").write_text("half")
    left[1].write_text("half, of an early version")
    kept = [tmp_path / name for name in (".scores.txt", f".scores.{number}0", f".other.{number}", "scores.old")]
    for one in kept:
        one.write_text("mine")
    theirs = tmp_path / f".scores.{'2' * 32}"
    theirs.mkdir()
    (theirs / "letter.txt").write_text("mine")
    live = tmp_path / f".scores.{'3' * 32}"
    live.mkdir()
    with locked(live):
        write_atomically(file, "new")
    assert not any(one.exists() for one in left)
    assert all(one.exists() for one in (*kept, theirs / "letter.txt", live))
    write_atomically(file, "newer")
    assert not live.exists()
