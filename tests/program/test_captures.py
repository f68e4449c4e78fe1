"""Captures kept on disk: the same program as one traced anew, and nothing else whatever lies in the file."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from hoplon import BitFlip, Campaign, Inputs, Memory, Values, capture
from hoplon.errors import HoplonError
from hoplon.files import sealed
from hoplon.program import Program
from hoplon.program.archives.captures import FEWEST_MODULES, MOST_KEPT, file_of, keep, kept
from hoplon.program.signature import Signature
from hoplon.program.verify import find_samples

Steps = list[dict[str, Any]]


class _Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out.add_(x) * self.scale


class _Deep(nn.Module):
    """As many modules as make a capture worth keeping, and few operators."""

    def __init__(self, seed: int = 0, scale: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.Sequential(_Block(scale), _Block(scale), *(nn.Identity() for _ in range(FEWEST_MODULES)))
        self.head = nn.Linear(3 * 16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.blocks(x)
        return {"logits": self.head(features.flatten(1)), "features": features}


def _batch(size: int = 4) -> Tensor:
    return torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("HOPLON_CAPTURES")
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path))
    return tmp_path / "captures"


def _is_kept(program: Program) -> bool:
    return callable(program.export) and "exported" not in vars(program) and not hasattr(program.export, "graph")


def _require_same(one: Program, other: Program) -> None:
    for field in fields(Program):
        if field.name not in ("export", "signature", "tensors"):
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    assert [*map(str, one.signature.leaves)] == [*map(str, other.signature.leaves)]
    assert list(one.tensors) == list(other.tensors)
    assert one.fingerprint() == other.fingerprint()


def test_a_kept_program_is_the_one_that_is_traced(folder: Path) -> None:
    first, second = capture(_Deep().eval(), _batch()), capture(_Deep().eval(), _batch(9))
    assert not _is_kept(first)
    assert _is_kept(second)
    _require_same(first, second)
    for sites in (Values(), Memory()):
        runs = [
            Campaign(program, Inputs(_batch()), sites=sites, fault_model=BitFlip(2)).run(count=40, seed=0).runs
            for program in (first, second)
        ]
        assert runs[0].equals(runs[1])
    assert pickle.loads(pickle.dumps(second)).fingerprint() == first.fingerprint()
    assert second.exported is not None
    assert first.exported is not None
    assert [node.name for node in second.exported.graph.nodes] == [node.name for node in first.exported.graph.nodes]


def _of_other_weights(model: nn.Module) -> None:
    with torch.no_grad():
        model.blocks[1].conv.weight[0, 0, 0, 0] += 1  # type: ignore[index,union-attr,operator]


def _of_another_attribute(model: nn.Module) -> None:
    model.blocks[1].scale = 0.25  # type: ignore[index,union-attr]


def _of_another_stride(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("change", [_of_other_weights, _of_another_attribute, _of_another_stride])
def test_another_model_has_another_file(folder: Path, change: Callable[[nn.Module], None]) -> None:
    signature = Signature.of("x", (_batch(),), {}, axes=(0,))
    model = _Deep().eval()
    before = file_of(model, signature)
    assert before == file_of(_Deep().eval(), Signature.of("y", (_batch(7),), {}, axes=(0,)))
    change(model)
    assert before != file_of(model, signature)
    assert before != file_of(_Deep().eval(), Signature.of("x", (_batch().double(),), {}, axes=(0,)))


_CODE = """
from torch import nn
from {helper} import act

class Deep(nn.Sequential):
    def forward(self, x):
        return act(super().forward(x))
"""


def test_other_code_has_another_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kept_model.py").write_text(_CODE.format(helper="kept_helper"))
    (tmp_path / "kept_helper.py").write_text("from torch.nn.functional import relu as act\n")
    model = importlib.import_module("kept_model").Deep(*(nn.Identity() for _ in range(FEWEST_MODULES)))
    signature = Signature.of("x", (_batch(),), {}, axes=(0,))
    before = file_of(model, signature)
    assert before is not None
    (tmp_path / "kept_helper.py").write_text("from torch.nn.functional import relu6 as act\n")
    changed = file_of(model, signature)
    assert changed not in (None, before)
    (tmp_path / "kept_model.py").write_text(_CODE.format(helper="kept_helper") + "# changed\n")
    assert file_of(model, signature) not in (None, before, changed)
    del sys.modules["kept_helper"]
    model.extra = lambda: _CODE
    assert file_of(model, signature) not in (None, before, changed)


def test_a_model_that_is_small_hooked_or_generated_has_no_file(folder: Path) -> None:
    signature = Signature.of("x", (_batch(),), {}, axes=(0,))
    model = _Deep().eval()
    assert file_of(model.blocks[0], signature) is None
    assert file_of(torch.fx.symbolic_trace(model), signature) is None
    model.blocks[0].register_forward_hook(lambda module, args, output: output * 2)
    assert file_of(model, signature) is None


def _steps(document: dict[str, Any], op: str) -> Steps:
    return [step for step in document["steps"] if step["op"] == f"torch.ops.aten.{op}"]


def _rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for step in _steps(document, old):
            step["op"] = new

    return change


def _other_weights(document: dict[str, Any]) -> None:
    names = {"blocks.0.conv.weight": "blocks.1.conv.weight", "blocks.1.conv.weight": "blocks.0.conv.weight"}
    document["memory"] = [[step, names.get(name, name)] for step, name in document["memory"]]


def _foreign_weights(document: dict[str, Any]) -> None:
    document["memory"][0][1] = "../../secret"


def _later_argument(document: dict[str, Any]) -> None:
    _steps(document, "relu.default")[0]["args"] = [{"step": len(document["steps"]) - 1}]


def _no_steps(document: dict[str, Any]) -> None:
    document["steps"] = []


def _swapped_outputs(document: dict[str, Any]) -> None:
    document["outputs"].reverse()


def _constant_output(document: dict[str, Any]) -> None:
    document["outputs"][0] = 1


def _no_samples(document: dict[str, Any]) -> None:
    document["ratios"] = [[step, 1, 3] for step, *_ in document["ratios"]]


def _endless_folds(document: dict[str, Any]) -> None:
    document["ratios"] = [[step, axis, 10**15] for step, axis, _ in document["ratios"]]


def _unknown_owner(document: dict[str, Any]) -> None:
    _steps(document, "relu.default")[0]["owner"] = "no.such"


def _wrong_kind(document: dict[str, Any]) -> None:
    _steps(document, "relu.default")[0]["site"]["kind"] = "conv"


def _wrong_object(document: dict[str, Any]) -> None:
    _steps(document, "relu.default")[0]["args"] = [{"dtype": "load"}]


def _more_keys(document: dict[str, Any]) -> None:
    document["code"] = "import os"


_FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "another operator": _rename("relu.default", "torch.ops.aten.tanh.default"),
    "an operator that writes": _rename("relu.default", "torch.ops.aten.zero_.default"),
    "an operator that reads files": _rename("relu.default", "torch.ops.aten.from_file.default"),
    "a function": _rename("relu.default", "os.system"),
    "a function of operator": _rename("relu.default", "_operator.methodcaller"),
    "weights of another layer": _other_weights,
    "weights that are not there": _foreign_weights,
    "a later value": _later_argument,
    "nothing": _no_steps,
    "other outputs": _swapped_outputs,
    "a constant": _constant_output,
    "no axis of samples": _no_samples,
    "an endless number of folds": _endless_folds,
    "a module that is not there": _unknown_owner,
    "another kind": _wrong_kind,
    "an object of torch": _wrong_object,
    "unknown keys": _more_keys,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes, bytes, Program]:
    """Name and content of a kept capture, that of another model, and the program traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HOPLON_CAPTURES")
        patch.setenv("HOPLON_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = []
        for scale in (0.5, 0.25):
            model = _Deep(scale=scale).eval()
            program = capture(model, _batch())
            file = file_of(model, program.signature)
            assert file is not None
            found.append((file.name, file.read_bytes(), program))
    return found[0][0], found[0][1], found[1][1], found[0][2]


def _require_anew(whole: tuple[str, bytes, bytes, Program]) -> None:
    model = _Deep().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = capture(model, _batch())
    assert not _is_kept(program)
    _require_same(program, whole[3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _is_refused(file: Path) -> bool:
    """Whether a file is no capture of the model, or one that does not give what the model gives."""
    model, x = _Deep().eval(), _batch(3)
    with torch.inference_mode():
        leaves, spec = tree_flatten(model(x))
    program = kept(file, model, Signature.of("x", (x,), {}, axes=(0,)), spec, lambda: pytest.fail("it was exported"))
    if program is None:
        return True
    try:
        find_samples(program, [x], wanted=leaves)
    except (HoplonError, RuntimeError, LookupError):
        return True
    return False


def test_a_forged_capture_is_refused(folder: Path, whole: tuple[str, bytes, bytes, Program]) -> None:
    folder.mkdir()
    file = folder / whole[0]
    file.write_bytes(whole[1])
    assert not _is_refused(file)
    for name, forge in _FORGED.items():
        document = json.loads(whole[1])
        document.pop("seal")
        forge(document)
        file.write_text(sealed(document))
        assert _is_refused(file), name
    _require_anew(whole)
    assert file.read_bytes() == whole[1]


def test_a_damaged_capture_is_refused(folder: Path, whole: tuple[str, bytes, bytes, Program]) -> None:
    name, content, other, _ = whole
    of_another = json.loads(other)
    of_another.pop("seal")
    of_another["key"] = name.removesuffix(".json")
    folder.mkdir()
    file = folder / name
    flipped = [
        content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in range(0, len(content), 997)
    ]
    for damaged in (content[:-200], *flipped, other, b"", b"[" * 100_000, sealed(of_another).encode()):
        file.write_bytes(damaged)
        assert _is_refused(file)
    _require_anew(whole)
    assert file.read_bytes() == content


def test_a_link_is_not_followed(folder: Path, whole: tuple[str, bytes, bytes, Program], tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(whole[1])
    (folder / whole[0]).symlink_to(tmp_path / "elsewhere")
    _require_anew(whole)
    assert not (folder / whole[0]).is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == whole[1]


def test_a_folder_that_cannot_be_written_fails_no_capture(
    whole: tuple[str, bytes, bytes, Program], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("a file")
    _require_anew(whole)
    monkeypatch.setenv("HOPLON_CACHE", str(folder))
    _require_anew(whole)
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path / "off"))
    monkeypatch.setenv("HOPLON_CAPTURES", "off")
    _require_anew(whole)
    assert not (tmp_path / "off").exists()


def test_writers_at_once_leave_one_whole_file_and_the_oldest_go(
    folder: Path, whole: tuple[str, bytes, bytes, Program]
) -> None:
    folder.mkdir()
    for number in range(MOST_KEPT + 3):
        file = folder / f"{number:064x}.json"
        file.write_text("")
        os.utime(file, (number, number))
    (folder / "mine.json").write_text("")
    os.utime(folder / "mine.json", (0, 0))
    writers = [Thread(target=keep, args=(whole[3], folder / whole[0])) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (folder / whole[0]).read_bytes() == whole[1]
    left = {file.name for file in folder.iterdir()}
    assert "mine.json" in left
    assert f"{3:064x}.json" not in left
    assert len(left) == MOST_KEPT + 1
