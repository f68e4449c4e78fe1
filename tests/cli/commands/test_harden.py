"""``profile``, ``harden`` and ``overhead`` from the outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import load

from hoplon.cli.app import main
from hoplon.cli.options.components import guards, protections
from hoplon.comparison.learned import Learned
from hoplon.files import read_json
from hoplon.formats import equal_bits
from hoplon.importance import magnitude
from hoplon.program.capturing import capture
from hoplon.program.sites import Values
from hoplon.protections.base import Protection
from hoplon.protections.export.bundle import load_bundle
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.ranges import Profile, Ranges, profile_activations, profile_ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.runtime.schedule import EveryForward, Rotating
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.policy import Clamp, RandomInRange
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import small_data, small_net

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def profiled(small_files: tuple[str, str], tmp_path: Path, capsys: Capsys) -> Path:
    """A folder with the ranges of all operators."""
    assert main(["profile", *small_files, "--all", "--out", str(tmp_path / "profile")]) == 0
    capsys.readouterr()
    return tmp_path / "profile"


def printed(capsys: Capsys, *command: str) -> dict[str, Any]:
    assert main([*command, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["format"] == 1
    return found


def program() -> Any:
    return capture(small_net(), torch.zeros(4, 1, 6, 6))


def test_profile_writes_the_bounds_of_the_calibration_data(
    capsys: Capsys, small_files: tuple[str, str], tmp_path: Path
) -> None:
    held_out, calibration = small_data()
    found = printed(capsys, "profile", *small_files, "--out", str(tmp_path / "out"))
    wanted = profile_ranges(program(), calibration)
    ranges = Ranges.load(tmp_path / "out" / "ranges.json")
    assert ranges.bounds == wanted.bounds
    assert found["bounds"] == {name: {"low": b.low, "high": b.high} for name, b in wanted.bounds.items()}
    assert (found["choice"], found["n_samples"]) == ("extremes", len(calibration))
    assert [row["samples"] for row in found["convergence"]] == [1, 2, 4, 8, 16]
    assert found["convergence"][-1]["least"] == 1.0
    assert found["held_out"]["n_images"] == len(held_out)
    assert found["cost"]["ms_per_sample"] == pytest.approx(1e3 * found["cost"]["seconds"] / len(calibration))
    assert {row["site"] for row in found["sites"]} == {site.name for site in program().value_sites}
    assert read_json(tmp_path / "out" / "results.json") == found
    assert Profile.load(tmp_path / "out" / "profile.json").n_samples == len(calibration)


def test_quantiles_channels_samples_and_merging(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    _, calibration = small_data()
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    found = printed(capsys, "profile", *small_files, "--quantile", "0.9", "--per-channel", "--out", one)
    whole = profile_activations(program(), calibration, per_channel=True)
    wanted = whole.ranges(quantile=0.9, per_channel=True)
    assert Ranges.load(Path(one) / "ranges.json").channels == wanted.channels
    assert found["channels"] == {name: len(bounds.channels) for name, bounds in wanted.channels.items()} != {}
    assert found["held_out"]["values"] > 0
    images = printed(capsys, "profile", *small_files, "--image-quantile", "0.9", "--samples", "9", "--out", two)
    assert (images["choice"], images["n_samples"]) == ("quantile 0.9 of image-maxima", 9)
    merged = printed(
        capsys, "profile", *small_files, "--image-quantile", "0.9", "--merge", f"{two}/profile.json", "--out", three
    )
    assert merged["n_samples"] == 9 + len(calibration)


def test_profile_prints_tables(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    assert main(["profile", *small_files, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    for words in ("extremes over", "Convergence", "images have a fault-free value outside of its bound", "per sample"):
        assert words in " ".join(captured.out.split())
    assert "ranges.json" in captured.err


@pytest.mark.parametrize("form", ["separate", "fused"])
def test_harden_exports_what_python_hardens(
    capsys: Capsys, small_files: tuple[str, str], profiled: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "strong.pt2"
    options = ["--ranges", str(profiled / "ranges.json"), "--form", form, "--out", str(out)]
    found = printed(capsys, "harden", small_files[0], *options)
    ranger = Ranger(Ranges.load(profiled / "ranges.json"))
    module = harden(program(), [ranger], form=form)  # type: ignore[arg-type]
    x = small_data()[0].x * 1e6
    assert equal_bits(load(out).module()(x), module(x))
    assert found["bounded"] == len(ranger.values(program()))
    assert (found["protection"], found["form"], found["example_unchanged"]) == ("ranger", form, True)
    assert {row["site"] for row in found["sites"] if row["low"] is None} == {
        entry.site for entry in ranger.coverage(program()) if entry.bound is None
    }


@pytest.mark.parametrize(
    ("where", "label"),
    [
        ("activations", "ranger-activations"),
        ("all --saturating input", "ranger-all-input"),
        ("algorithm1 --last-linear --inherent both-ends", "ranger-both-ends+last"),
    ],
)
def test_harden_takes_the_variants(
    capsys: Capsys, small_files: tuple[str, str], profiled: Path, tmp_path: Path, where: str, label: str
) -> None:
    options = ["--ranges", str(profiled / "ranges.json"), "--out", str(tmp_path / "s.pt2")]
    found = printed(capsys, "harden", small_files[0], *options, "--policy", "zero", "--where", *where.split())
    assert found["protection"] == f"{label}-zero"


def test_profile_observes_what_enters_saturating_activations(capsys: Capsys, tmp_path: Path) -> None:
    source = """
import hoplon, torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 2), nn.Tanh()).eval(), torch.zeros(4, 4)
def data():
    return hoplon.Inputs(9 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0)))
"""
    (tmp_path / "six.py").write_text(source)
    names = [f"{tmp_path / 'six.py'}:{name}" for name in ("net", "data")]
    found = printed(capsys, "profile", *names, "--saturating", "input", "--medians", "--out", str(tmp_path / "p"))
    rows = {row["site"]: row for row in found["sites"] if row["low"] is not None}
    assert rows["0:linear"]["why"] == "profiled, enters 1:hardtanh"
    assert rows["0:linear"]["high"] > 6 == rows["1:hardtanh"]["high"]
    assert set(rows) == {"0:linear", "1:hardtanh", "3:tanh"}  # the last linear layer gives the output
    options = ["--ranges", str(tmp_path / "p" / "ranges.json"), "--out", str(tmp_path / "s.pt2")]
    hardened = printed(capsys, "harden", names[0], *options, "--saturating", "input", "--policy", "median")
    assert {row["site"] for row in hardened["sites"] if row["low"] is not None} == set(rows)


def test_harden_writes_onnx(capsys: Capsys, small_files: tuple[str, str], profiled: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "strong.onnx"
    printed(capsys, "harden", small_files[0], "--ranges", str(profiled / "ranges.json"), "--out", str(out))
    session, x = runtime.InferenceSession(str(out)), small_data()[0].x
    wanted = harden(program(), [Ranger(Ranges.load(profiled / "ranges.json"))])(x)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)


def test_harden_refuses_before_the_work_and_by_name(
    capsys: Capsys, small_files: tuple[str, str], profiled: Path, tmp_path: Path
) -> None:
    known = ["--ranges", str(profiled / "ranges.json")]
    cases = {
        "expected --out to end in .aoti.pt2, .pt2, .onnx, got strong.pth": [*known, "--out", "strong.pth"],
        "expected a file of ranges, got": ["--ranges", "nowhere.json", "--out", str(tmp_path / "s.pt2")],
        "expected an activation with a range of its own": ["--out", str(tmp_path / "s.pt2")],
        "a graph cannot run itself": [*known, "--policy", "detect", "--out", str(tmp_path / "s.pt2")],
        "expected a writable output folder": [*known, "--out", str(profiled / "ranges.json" / "s.pt2")],
    }
    for message, options in cases.items():
        assert main(["harden", small_files[0], *options]) == (
            4 if "file of ranges" in message or "folder" in message else 2
        )
        assert message in capsys.readouterr().err


def test_harden_with_guards_writes_a_bundle(
    capsys: Capsys, small_files: tuple[str, str], profiled: Path, tmp_path: Path
) -> None:
    magnitude(program()).save(tmp_path / "scores.safetensors")
    options = ["--guard", "parity", "--guard", "aspis:10%", "--guard", "known-bits", "--when", "rotating:4"]
    files = ["--ranges", str(profiled / "ranges.json"), "--scores", str(tmp_path / "scores.safetensors")]
    found = printed(capsys, "harden", small_files[0], *options, *files, "--out", str(tmp_path / "bundle"))
    module, x = load_bundle(tmp_path / "bundle"), small_data()[0].x * 1e6
    assert found["protection"] == module.overlay.label == "ranger+parity+aspis-10%+known-bits"
    assert module.monitor.when == Rotating(4)
    assert found["when"] == Rotating(4).text
    assert equal_bits(module(x), harden(program(), [Ranger(Ranges.load(profiled / "ranges.json"))])(x))
    assert sum(row["extra_bytes"] for row in found["guards"]) == module.monitor.extra_bytes
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir())
    alone = ["--no-bounds", "--guard", "tmr:tensor", "--when", "every:2", "--out", str(tmp_path / "alone")]
    assert main(["harden", small_files[0], *alone]) == 0
    told = capsys.readouterr().out
    assert "tmr-tensor, 2,400 bytes:" in told
    assert load_bundle(tmp_path / "alone").monitor.when == EveryForward(2)


def test_guards_that_cannot_be_are_refused_before_the_work(
    capsys: Capsys, small_files: tuple[str, str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")]
    cases = {
        "--guard pairity: no guard matches 'pairity'; near names: parity": ["--guard", "pairity", *out],
        "--guard aspis:1%: expected a file of scores, got none; --scores FILE": ["--guard", "aspis:1%", *out],
        "--guard parity:x: group: expected an integer of at least 1, got 'x'": ["--guard", "parity:x", *out],
        "--guard tmr:half: vote: expected 'element' or 'tensor', got 'half'": ["--guard", "tmr:half", *out],
        "--guard block-aspis:1: expected a file of scores, got none": ["--guard", "block-aspis:1", *out],
        "--guard checksum:hope: action: expected": ["--guard", "checksum:hope", *out],
        "--when rotating:0: turns: expected an integer of at least 1": ["--when", "rotating:0", *out],
        "--when demand:2: expected demand alone": ["--when", "demand:2", *out],
        "--when seldom: no schedule matches 'seldom'": ["--when", "seldom", *out],
        "expected bounds or guards, got --no-bounds and no --guard": ["--no-bounds", *out],
        "expected a folder for bounds and guards, got --out a.pt2": ["--guard", "parity", "--out", "a.pt2"],
        "expected --scores beside a guard that uses them": ["--guard", "parity", "--scores", "s", *out],
    }
    for message, options in cases.items():
        assert main(["harden", small_files[0], *options]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch about its own compiler
def test_harden_compiles_ahead_of_time(
    capsys: Capsys, small_files: tuple[str, str], profiled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "strong.aoti.pt2"
    printed(capsys, "harden", small_files[0], "--ranges", str(profiled / "ranges.json"), "--out", str(out))
    x = small_data()[0].x
    found = torch._inductor.aoti_load_package(str(out))(x)
    assert torch.allclose(found, small_net()(x), atol=1e-5)


def test_overhead_times_every_form(capsys: Capsys, small_files: tuple[str, str], tmp_path: Path) -> None:
    options = ["--blocks", "6", "--calls", "1", "--batch", "3", "--threads", "1", "--out", str(tmp_path)]
    found = printed(capsys, "overhead", small_files[0], *options)
    arms = {row["name"]: row for row in found["arms"]}
    assert list(arms) == ["none", "original", "separate", "fused"]
    assert arms["none"]["ratio"] == arms["original"]["ratio_original"] == 1.0
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in arms.values())
    assert arms["none"]["flops_tensorflow"] == 0 < arms["fused"]["flops_fused"] < arms["separate"]["flops_fused"]
    assert arms["fused"]["added_passes"] < arms["separate"]["added_passes"]
    assert (found["batch"], found["blocks"], found["threads"]) == (3, 6, 1)
    assert read_json(tmp_path / "overhead.json") == found
    assert main(["overhead", small_files[0], "--blocks", "6", "--calls", "1"]) == 0
    assert "to original" in capsys.readouterr().out
    assert main(["overhead", small_files[0], "--batch", "0"]) == 2
    assert "--batch: expected an integer of at least 1, got 0" in capsys.readouterr().err


def built(given: list[Any]) -> tuple[Protection, ...]:
    learned = Learned(program(), small_data()[1])
    return tuple(part(learned) for part in protections(given))


def test_protections_of_a_campaign_file_take_the_same_names(profiled: Path) -> None:
    path = str(profiled / "ranges.json")
    known = Ranges.load(path)
    given = [
        {"name": "ranger", "ranges": path, "where": "all", "policy": "random:3"},
        {"name": "ranger", "ranges": path},
        "duplicate",
        {"name": "duplicate", "sites": ["fc:linear"]},
    ]
    assert built(given) == (
        Ranger(known, where="all", policy=RandomInRange(3)),
        Ranger(known, policy=Clamp()),
        Duplicate(),
        Duplicate(("fc:linear",)),
    )
    assert len(Values().select(program())) == len(known)


def test_campaign_files_take_guards_without_files() -> None:
    found = built([{"name": "parity", "group": 64}, "known-bits", {"name": "known-bits", "block": 32}])
    assert found == (Parity(group=64), KnownBits(), KnownBits(block=32))


def test_guards_are_read_in_their_order(tmp_path: Path) -> None:
    scores = magnitude(program())
    scores.save(tmp_path / "s")
    texts = ["checksum:zero", "block-aspis:0.1", "tmr", "aspis:5%", "parity:16", "known-bits:8"]
    labels = [guard.label for guard in guards(texts, scores=tmp_path / "s")]
    assert labels == ["checksum-zero", "block-aspis-10%", "tmr", "aspis-5%", "parity", "known-bits/8"]
