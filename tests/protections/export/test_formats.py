from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import HoplonError, HoplonWarning, StoreError
from hoplon.formats import equal_bits
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.capturing import capture
from hoplon.protections.base import Overlay
from hoplon.protections.export.formats import export_aoti, export_onnx, export_pt2, exported_program
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges import Bound, Ranges, profile_ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import Form, harden
from hoplon.protections.runtime.monitor import UncorrectableMemory
from hoplon.protections.values.policy import RandomInRange, ToZero
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import GRAPHS, NETWORKS, captured

Run = Callable[[Tensor], Tensor]


def hardened(name: str, form: Form = "fused") -> tuple[HardenedModule, Tensor]:
    net = NETWORKS[name]
    program = captured(name)
    x = net.batch(5, seed=3)
    return harden(program, [Ranger(profile_ranges(program, x * 0.5))], form=form), x


def from_pt2(module: HardenedModule, folder: Path) -> Run:
    export_pt2(module, folder / "model.pt2")
    with quiet_torch():
        return torch.export.load(folder / "model.pt2").module()


def from_onnx(module: HardenedModule, folder: Path) -> Run:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra hoplon[onnx]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, onnx and onnxscript about each other
        export_onnx(module, folder / "model.onnx")
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {given.name: x.numpy()})[0]))


@pytest.mark.parametrize("form", ["separate", "fused"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_pt2_file_runs_bit_for_bit_like_the_module(name: str, form: Form, tmp_path: Path) -> None:
    module, x = hardened(name, form)
    loaded = from_pt2(module, tmp_path)
    for rows in (x, x[:2], x[:1]):
        assert equal_bits(loaded(rows), module(rows))
    assert not equal_bits(module(x), harden_nothing(name)(x))  # the bounds did something
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def harden_nothing(name: str) -> HardenedModule:
    return harden(captured(name), [])


def test_a_pt2_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Where torch writes the file itself, it ends the process."""
    module, _ = hardened("mlp")
    resource = pytest.importorskip("resource", reason="limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"expected to write .*model.pt2, got File too large"):
            export_pt2(module, tmp_path / "model.pt2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_pt2_file_says_what_is_bounded(tmp_path: Path) -> None:
    module, _ = hardened("concat")
    export_pt2(module, tmp_path / "new" / "model.pt2")
    extra = {"hoplon.json": ""}
    with quiet_torch():
        torch.export.load(tmp_path / "new" / "model.pt2", extra_files=extra)
    content = json.loads(extra["hoplon.json"])
    assert content["protections"] == "ranger"
    assert content["values"].keys() == module.overlay.values.keys()
    assert content["values"]["relu:relu"] == str(module.overlay.values["relu:relu"])


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_an_onnx_file_runs_like_the_module(name: str, tmp_path: Path) -> None:
    module, x = hardened(name)
    run = from_onnx(module, tmp_path)
    before = module(x)
    for rows in (x, x[:1]):
        assert torch.allclose(run(rows), module(rows), rtol=1e-5, atol=1e-6)
    assert equal_bits(module(x), before)  # exporting put the integer clamp back
    assert any("clamp" in str(node.target) for node in exported_program(module).graph.nodes)
    onnx = pytest.importorskip("onnx", reason="needs the extra hoplon[onnx]")
    names = {entry.name for entry in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert {key for key in module.state_dict() if key.endswith(".weight") and "bn" not in key} <= names


class Bounded(nn.Module):
    """Operators that read the input itself: whatever lies there is what a fault left."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu(x), F.hardswish(x), F.max_pool1d(F.relu(x * 1.0), 1), torch.sigmoid(x), F.leaky_relu(x, 0.5)]
        return torch.stack(parts, 1)


def bounded(form: Form) -> tuple[HardenedModule, Tensor]:
    """The module and its bounds, one row per part."""
    program = capture(Bounded().eval(), torch.zeros(2, 3, 8))
    given = {
        ":relu": Bound(0.0, 2.5),
        ":hardswish": Bound(-0.25, 3.0),
        ":relu.1": Bound(0.0, 2.0**-10),
        ":sigmoid": Bound(0.125, 0.75),
        ":leaky_relu": Bound(-4.0, -1.0),
    }
    module = harden(program, [Ranger(Ranges(given))], form=form)
    assert module.overlay.values.keys() >= given.keys() | {":max_pool"}
    order = (":relu", ":hardswish", ":relu.1", ":sigmoid", ":leaky_relu")
    return module, torch.tensor(
        [[getattr(module.overlay.values[name], end) for end in ("low", "high")] for name in order]
    )


def hostile() -> Tensor:
    """NaN of both signs and with payloads, infinities, zeros of both signs, subnormals, the largest numbers."""
    words = [0x7FC00000, -0x00400000, 0x7F800001, -0x00000001, 0x7F800000, -0x00800000, 0, -0x80000000, 1, 0x007FFFFF]
    words += [-0x7FFFFFFF, -0x7F800001, 0x7F7FFFFF, -0x00800001, 0x3F800000, -0x40800000]
    fixed = torch.tensor(words, dtype=torch.int64).to(torch.int32).view(torch.float32)
    drawn = torch.randint(-(2**31), 2**31, (4 * 24 - 16,), generator=torch.Generator().manual_seed(0))
    return torch.cat([fixed, drawn.to(torch.int32).view(torch.float32)]).view(4, 3, 8)


def inside(values: Tensor, bounds: Tensor) -> bool:
    low, high = bounds[:, 0].view(1, -1, 1, 1), bounds[:, 1].view(1, -1, 1, 1)
    return bool(((values >= low) & (values <= high)).all())  # NaN is not


@pytest.mark.parametrize("form", ["separate", "fused"])
@pytest.mark.parametrize("way", [from_pt2, from_onnx])
def test_every_form_keeps_its_bounds_whatever_a_fault_leaves(
    way: Callable[[HardenedModule, Path], Run], form: Form, tmp_path: Path
) -> None:
    module, bounds = bounded(form)
    run = way(module, tmp_path)
    x = hostile()
    assert not inside(torch.stack([x] * 5, 1), bounds)
    assert inside(module(x), bounds)
    assert inside(run(x), bounds)
    numbers = x.isfinite().all(-1)
    assert numbers.any()
    assert torch.allclose(run(x).transpose(1, 2)[numbers], module(x).transpose(1, 2)[numbers], rtol=1e-6, atol=1e-30)
    only_finite = torch.where(x.isfinite(), x, 0.5)
    assert torch.allclose(run(only_finite), module(only_finite), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_fault_in_a_weight_stays_inside_the_bounds_of_the_file(fault: float, tmp_path: Path) -> None:
    module, x = hardened("residual")
    with torch.no_grad():
        module.get_parameter("stem.weight").data.view(-1)[3] = fault
    wanted = module(x)
    assert wanted.isfinite().all()
    assert equal_bits(from_pt2(module, tmp_path)(x), wanted)
    assert from_onnx(module, tmp_path)(x).isfinite().all()


def test_policies_and_channels_reach_onnx_or_are_refused(tmp_path: Path) -> None:
    net = NETWORKS["concat"]
    program = captured("concat")
    x = net.batch(5, seed=3)
    channels = profile_ranges(program, x * 0.5, per_channel=True)
    whole = profile_ranges(program, x * 0.5)
    for ranger in (Ranger(channels), Ranger(whole, policy=ToZero())):
        module = harden(program, [ranger])
        assert not equal_bits(module(x), harden_nothing("concat")(x))
        assert torch.allclose(from_onnx(module, tmp_path)(x), module(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        HoplonError, match="expected operators that ONNX has, got .*view.*; export_pt2 takes all of them"
    ):
        from_onnx(harden(program, [Ranger(whole, policy=RandomInRange())]), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_package_compiled_ahead_of_time_keeps_its_bounds(tmp_path: Path) -> None:
    module, bounds = bounded("fused")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch about its own compiler
        export_aoti(module, tmp_path / "model.pt2")
        run = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    x = hostile()
    assert inside(run(x), bounds)
    only_finite = torch.where(x.isfinite(), x, 0.5)
    assert torch.allclose(run(only_finite), module(only_finite), rtol=1e-6, atol=1e-30)


def test_guards_are_refused_or_dropped(tmp_path: Path) -> None:
    net = NETWORKS["tied"]
    program = captured("tied")
    module = harden(program, [TMR()])
    path = tmp_path / "model.pt2"
    for export in (export_pt2, export_aoti):
        with pytest.raises(HoplonError, match="without guards of memory, got tmr: .*; guards='drop' leaves them out"):
            export(module, path)
    assert not path.exists()
    with torch.no_grad():
        module.get_parameter("head.bias").data[0] = math.inf  # the guards repair it before it is written
    export_pt2(module, path, guards="drop")
    with quiet_torch():
        loaded = torch.export.load(path).module()
    assert equal_bits(loaded(net.batch(3)), program(net.batch(3)))
    with torch.no_grad():
        module.get_parameter("head.bias").data[0] = 5.0
    module.monitor.guards[0].copies["head.bias#1"][0] = 6.0
    with pytest.raises(UncorrectableMemory, match="1 uncorrectable words in head.bias"):
        export_pt2(module, path, guards="drop")
    with pytest.raises(HoplonError, match="expected guards of export_pt2 to be 'refuse' or 'drop', got 'keep'"):
        export_pt2(module, path, guards="keep")  # type: ignore[arg-type]


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor, factor: float = 2.0) -> dict[str, Tensor]:
        return {"y": F.relu(x * scale) * factor}


def test_keywords_and_structured_outputs_stay(tmp_path: Path) -> None:
    x, scale = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.full((3, 4), 2.0)
    program = capture(Keyword().eval(), (x,), kwargs={"scale": scale})
    module = harden(program, [Ranger(Ranges({":relu": Bound(0.0, 0.5)}))])
    loaded = from_pt2(module, tmp_path)
    assert equal_bits(loaded(x, scale=scale)["y"], module(x, scale=scale)["y"])
    assert float(loaded(x, scale=scale)["y"].max()) == 1.0


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = harden_nothing("mlp")
    assert module.overlay.values == Overlay().values
    with pytest.raises(HoplonError, match="expected a path that ends in .pt2, which AOTInductor asks for, got '.*.so'"):
        export_aoti(module, tmp_path / "model.so")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(HoplonError, match=r"expected a C\+\+ compiler for AOTInductor, got none"):
        export_aoti(module, tmp_path / "model.pt2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HoplonError, match=r"expected onnx and onnxscript for an ONNX file, got none; pip install"):
        export_onnx(module, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["separate", "fused"])
def test_channels_last_models_are_bounded_in_onnx(form: Form, tmp_path: Path) -> None:
    """A pooled map has strides of its own there: no bound may write into it."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    model = nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 12, 12).to(memory_format=torch.channels_last)
    program = capture(model, x)
    module = harden(program, [Ranger(profile_ranges(program, x * 0.5))], form=form)
    found = from_onnx(module, tmp_path)(x)
    torch.testing.assert_close(found, module(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, model(x))  # the bounds act


def test_what_onnxruntime_will_refuse_is_said_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra hoplon[onnx]")
    model = nn.Linear(4, 3).eval().bfloat16()
    module = harden(capture(model, torch.randn(2, 4).bfloat16()), [])
    with warnings.catch_warnings():
        warnings.simplefilter("error", HoplonWarning)
        with pytest.raises(HoplonWarning, match="in bfloat16: it will refuse the file; capture the model in float16"):
            export_onnx(module, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
