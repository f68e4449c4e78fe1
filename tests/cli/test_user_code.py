"""What a user's own code does: failures are shown as its author's, bugs of hoplon as ours, --debug shows all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoplon.cli import app
from hoplon.cli.app import main
from hoplon.errors import HoplonError, UserCodeError, one_line
from hoplon.zoo.resolve import resolve_data, resolve_model

HEAD = "import sys, torch\nfrom torch import nn\nx = torch.zeros(4, 3)\n"
FACTORIES = (
    ("raise KeyError('weights')", "got KeyError: 'weights' (line 5 of {file})"),
    ("torch.zeros(3) @ torch.zeros(4)", "(line 5 of {file})"),
    ("raise RuntimeError('two\\nlines \\x1b[31m')", r"RuntimeError: two lines \x1b[31m (line 5"),
    ("sys.exit('bye')", "got SystemExit: bye (line 5 of {file})"),
    ("input('name? ')", "got EOFError: "),
    ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package' (line 5 of {file})"),
    ("return net()", "got RecursionError: "),
    ("assert False", "got AssertionError (line 5 of {file})"),
)
FORWARDS = (
    ("return 1 / 0", "ZeroDivisionError: division by zero (line 7 of {file})"),
    ("sys.exit(3)", "SystemExit: 3 (line 7 of {file})"),
    ("class Own(Exception): pass\n        raise Own('no')", "Own: no (line 8 of {file})"),
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int) -> str:
    assert main(list(arguments)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert "hoplon: expected " in last
    return last


@pytest.mark.parametrize(("body", "said"), FACTORIES)
@pytest.mark.parametrize("what", ["model", "data"])
def test_a_factory_that_fails(
    what: str, body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"{HEAD}def net():\n    {body}\n")
    places = [f"{file}:net"] if what == "model" else ["lenet-digits", f"{file}:net"]
    command = "inspect" if what == "model" else "profile"
    line = refused(capsys, command, *places, "--out", str(tmp_path / "out"), status=4)
    assert said.format(file=file) in line
    assert line.endswith("; mend it there, or run hoplon --debug for all of it")


@pytest.mark.parametrize(("source", "said"), [("def net(:\n", "SyntaxError"), ("import nope\n", "ModuleNotFoundError")])
def test_a_file_that_is_no_module(source: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(source)
    line = refused(capsys, "inspect", f"{tmp_path / 'own.py'}:net", status=4)
    assert said in line
    assert f"(line 1 of {tmp_path / 'own.py'})" in line


@pytest.mark.parametrize(("body", "said"), FORWARDS)
def test_a_forward_that_fails(body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    made = f"class Net(nn.Module):\n    def forward(self, x):\n        pass\n        {body}\n"
    file.write_text(f"{HEAD}{made}def net():\n    return Net().eval(), x\n")
    line = refused(capsys, "inspect", f"{file}:net", status=2)
    assert f"from the model {said.format(file=file)}" in line


def test_what_a_factory_prints_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        f"{HEAD}print('imported')\ndef net():\n    print('made')\n    return nn.Linear(3, 2).eval(), x\n"
    )
    assert main(["inspect", f"{tmp_path / 'own.py'}:net", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["model"].endswith("own.py:net")
    assert captured.err.splitlines()[:2] == ["imported", "made"]


def test_an_error_of_hoplon_in_a_factory_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import hoplon\ndef net():\n    hoplon.BitFlip(0)\n")
    for resolve in (resolve_model, resolve_data):
        with pytest.raises(HoplonError, match="expected count of BitFlip") as refusal:
            resolve(f"{tmp_path / 'own.py'}:net")
        assert not isinstance(refusal.value, UserCodeError)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_whole_traceback(place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text("def net():\n    raise KeyError('weights')\n")
    arguments = ["inspect", f"{tmp_path / 'own.py'}:net"]
    arguments.insert(place, "--debug")
    assert main(arguments) == 4
    said = capsys.readouterr().err
    assert "    raise KeyError('weights')\nKeyError: 'weights'\n" in said
    assert said.splitlines()[-1].startswith("hoplon: expected ")


SYSTEM = "hoplon: expected files and memory as the command needs them, got "


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (TypeError("NoneType"), 70, "hoplon: a bug of hoplon, TypeError: NoneType (line "),
        (type("PanicException", (BaseException,), {})("index\nout"), 70, "hoplon: a bug of hoplon, PanicException: "),
        (
            OSError(28, "No space left on device", "runs/x"),
            4,
            SYSTEM + "[Errno 28] No space left on device: 'runs/x'",
        ),
        (MemoryError(), 4, SYSTEM + "no more memory"),
        (HoplonError("expected a,\ngot b\x1b"), 2, "hoplon: expected a, got b\\x1b"),
        (KeyboardInterrupt(), 130, "Interrupted. Nothing new was kept"),
    ],
    ids=["bug", "panic", "disk", "memory", "usage", "interrupt"],
)
def test_every_other_end_is_one_line_with_its_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def application() -> None:
        raise error

    monkeypatch.setattr(app, "application", application)
    assert main(["ls", "models"]) == status
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.count("\n") == (1 if said else 0)


def test_one_line_escapes_what_a_terminal_obeys() -> None:
    text = "a\nb\x1b[31m\x9b\u202e\u2066\r\x07\x7f\ufeff, ü名 \U0001f600\u200d"
    assert one_line(text) == "a\\nb\\x1b[31m\\x9b\\u202e\\u2066\\r\\x07\\x7f\\ufeff, ü名 \U0001f600\u200d"
