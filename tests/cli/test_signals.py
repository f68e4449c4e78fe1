"""Signals and readers that are gone: a command stops with one line or none, its exit status, and nothing left."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hoplon.cli.app import main
from hoplon.cli.signals import stoppable

_MODEL = """
import os, signal, torch

class Stopped(torch.nn.Module):
    def forward(self, x):
        try:
            os.kill(os.getpid(), {signal})
            return x.flatten(1)
        except KeyboardInterrupt:
            if {hidden}:
                raise RecursionError  # as numpy does, where its import is interrupted
            raise

def net():
    return Stopped().eval(), torch.zeros(4, 1, 6, 6)
"""
_HEARD = ("SIGINT", "SIGTERM", "SIGHUP")


@pytest.fixture(autouse=True)
def usual() -> Iterator[list[object]]:
    """What the process does at each of the signals: not what it was started with, which may be to ignore them."""
    ways = {"SIGINT": signal.default_int_handler}
    started = {name: signal.signal(getattr(signal, name), ways.get(name, signal.SIG_DFL)) for name in _HEARD}
    yield [signal.getsignal(getattr(signal, name)) for name in _HEARD]
    for name, way in started.items():
        signal.signal(getattr(signal, name), way)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_stops_a_command_in_one_line(
    name: str,
    status: int,
    usual: list[object],
    capsys: pytest.CaptureFixture[str],
    small_files: tuple[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "stopped.py").write_text(_MODEL.format(signal=f"signal.{name}", hidden=False))
    (tmp_path / "hidden.py").write_text(_MODEL.format(signal=f"signal.{name}", hidden=True))
    model, data = f"{tmp_path / 'stopped.py'}:net", small_files[1]
    assert main(["compare", model, data, "--value-faults", "40", "--out", str(tmp_path / "out")]) == status
    assert capsys.readouterr().err.splitlines()[-1].startswith("Interrupted. Saved: nothing new; earlier results in")
    for stopped, line in (("stopped", "Nothing new was kept; give the same"), ("hidden", "Give the same")):
        assert main(["overhead", model.replace("stopped", stopped)]) == status
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"Interrupted. {line} command again")
    assert usual == [signal.getsignal(getattr(signal, name)) for name in _HEARD]


def test_a_second_signal_lets_a_command_stop() -> None:
    with stoppable() as came:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
    assert came == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]


def test_who_ignores_a_signal_or_handles_it_keeps_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(number: int, frame: object) -> None:
        """Nothing."""

    handlers: tuple[signal.Handlers | Callable[[int, object], None], ...] = (signal.SIG_IGN, mine)
    for handler in handlers:
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with stoppable() as came:
                os.kill(os.getpid(), signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, before)
        assert came == []


@pytest.mark.parametrize("arguments", [["ls", "faults"], ["ls", "protections", "--json"], ["--help"]])
@pytest.mark.parametrize(("reader", "status"), [("gone", 141), ("full", 4)])
def test_output_that_cannot_be_written_gives_no_traceback(
    arguments: list[str], reader: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe whose reader is gone, as that of ``head``, and a full disk."""
    ours = os.open("/dev/full", os.O_WRONLY)
    if reader == "gone":
        os.close(ours)
        theirs, ours = os.pipe()
        os.close(theirs)
    with io.TextIOWrapper(os.fdopen(ours, "wb")) as out, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert main(arguments) == status
    said = capsys.readouterr().err
    assert said == "" if reader == "gone" else "got [Errno 28] No space left on device" in said
    assert said.count("\n") == (reader == "full")
