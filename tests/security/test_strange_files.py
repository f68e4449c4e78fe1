"""Files in the place of others: pipes, archives that unpack to more than there is memory, names that are patterns."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hoplon import assess, capture
from hoplon.cli.app import main
from hoplon.comparison.assessment import AssessmentPlan
from hoplon.errors import DataError, StoreError
from hoplon.report.document import read_document, write_document
from hoplon.zoo.files import read_arrays
from tests.support.networks import small_data, small_net
from tests.support.small_files import write_small_files


@pytest.fixture
def small_files(tmp_path: Path) -> tuple[str, str]:
    return write_small_files(tmp_path)


def _array_of(shape: tuple[int, ...]) -> bytes:
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def test_a_pipe_in_the_place_of_data_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(DataError, match="which is no plain file"):
        read_arrays(tmp_path / "data.npz", ("x",))


@pytest.mark.parametrize("content", [_array_of((10**13,)), _array_of((-1,)), b"no array", _array_of((1,))[:40]])
def test_an_array_that_cannot_be_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=r"^expected [^\n]+data.npz[^\n]+$"):
        read_arrays(tmp_path / "data.npz", ("x",))


def test_an_array_twice_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x.npy", b"")
    with pytest.raises(DataError, match="each array once"):
        read_arrays(tmp_path / "data.npz", ("x",))


def test_a_users_file_is_not_replaced_by_scores_or_graphs(
    small_files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, command in (
        ("mine.npz", ["rank", *small_files, "--score", "magnitude"]),
        ("mine.onnx", ["harden", small_files[0]]),
        ("mine.pt2", ["harden", small_files[0]]),
    ):
        (tmp_path / name).write_text("mine")
        assert main([*command, "--out", str(tmp_path / name)]) == 4
        assert (tmp_path / name).read_text() == "mine"
        assert "got " in capsys.readouterr().err
    out = ["rank", *small_files, "--score", "magnitude", "--out", str(tmp_path / "scores.safetensors")]
    assert main(out) == main(out) == 0


def test_brackets_in_the_path_of_a_run_are_no_pattern(
    small_files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "g[1]{a}*"
    assert main(["inject", *small_files, "--count", "20", "--out", str(run)]) == 0
    assert main(["inject", *small_files, "--resume", "--out", str(run)]) == 0
    assert main(["verify", str(run)]) == 0


def test_workers_import_nothing_from_the_current_folder(small_files: tuple[str, str], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("threading", "signal", "enum"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    start = "import sys; from hoplon.cli.app import main; sys.exit(main(sys.argv[1:]))"
    command = [*small_files, "--count", "1100", "--workers", "2", "--threads", "1", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, ("src", ".")))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", start, "inject", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value"), [("failure", 7.5), ("failure", -3.0), ("failure_low", None), ("n_faults", 2**64), ("target", "x")]
)
def test_figures_that_cannot_be_are_not_reported(key: str, value: object, tmp_path: Path) -> None:
    held_out, calibration = small_data()
    plan = AssessmentPlan(value_faults=20, memory_faults=0, latency=False)
    found = assess(
        capture(small_net(), held_out.x[:4]), calibration=calibration, held_out=held_out, plan=plan
    ).to_dict()
    found["arms"][0][key] = value
    write_document(tmp_path / "results.json", found)
    with pytest.raises(StoreError, match=f"arms.0.*{key}"):
        read_document(tmp_path / "results.json")
