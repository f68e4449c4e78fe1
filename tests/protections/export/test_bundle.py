"""A hardened module in a folder: the same when it comes back, repaired or refused when it does not."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon import TMR, Aspis, HoplonError
from hoplon.errors import DataError, StoreError
from hoplon.files import sealed
from hoplon.formats import equal_bits
from hoplon.protections.export.serialization import described, restored
from hoplon.protections.values.clamp import rounded_outwards
from hoplon.protections.values.policy import Clamp, Policy, ToMedian
from tests.support.networks import NETWORKS, captured


def protected(name: str, when: hp.harden.When | None = None) -> hp.runtime.HardenedModule:
    program = captured(name, 5)
    ranges = hp.profile_ranges(program, NETWORKS[name].batch(5))
    scores = hp.importance.magnitude(program)
    return hp.harden(program, [hp.Ranger(ranges), TMR(), Aspis(scores, 0.2), hp.KnownBits(), hp.Parity()], when=when)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[hp.runtime.HardenedModule, Path]:
    module = protected("in-place-sum", hp.runtime.Rotating(3))
    folder = tmp_path_factory.mktemp("bundle") / "out"
    hp.save_bundle(module, folder)
    return module, folder


@pytest.fixture
def bundle(saved: tuple[hp.runtime.HardenedModule, Path], tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    target = tmp_path / "bundle"
    target.mkdir()
    for file in saved[1].iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def place_of(path: Path, tensor: Tensor) -> int:
    at = path.read_bytes().find(tensor.detach().numpy().tobytes())
    assert at > 0
    return at


def faulty(x: Tensor) -> Tensor:
    return x * 1e4


def test_it_comes_back_with_bounds_guards_schedule_and_names(saved: tuple[hp.runtime.HardenedModule, Path]) -> None:
    module, folder = saved
    twin = hp.load_bundle(folder)
    x = NETWORKS["in-place-sum"].batch(7)
    assert equal_bits(twin(x), module(x))
    assert equal_bits(twin(faulty(x)), module(faulty(x)))  # beyond all bounds
    with torch.no_grad():
        assert not equal_bits(twin(faulty(x)), NETWORKS["in-place-sum"].model()(faulty(x)))
    assert list(twin.state_dict()) == list(module.state_dict())
    assert all(equal_bits(tensor, module.state_dict()[name]) for name, tensor in twin.state_dict().items())
    assert twin.overlay.label == "ranger+tmr+aspis-20%+known-bits+parity"
    assert twin.protections[0] == module.protections[0]
    assert twin.monitor.when == hp.runtime.Rotating(3)
    assert twin.monitor.extra_bytes == module.monitor.extra_bytes
    for one, other in zip(twin.monitor.guards, module.monitor.guards, strict=True):
        assert one.copies.keys() == other.copies.keys()
        assert all(equal_bits(tensor, other.copies[name]) for name, tensor in one.copies.items())
    assert not twin.monitor.events
    with torch.no_grad():
        twin.get_parameter("fc.weight").data.view(-1)[3] = float("nan")
    assert twin.check().uncorrectable == 0
    assert equal_bits(twin(x), module(x))
    assert equal_bits(copy.deepcopy(twin)(x), module(x))


@pytest.mark.parametrize("name", ["shared", "views"])
def test_tied_tensors_constants_and_views_come_back_and_can_be_saved_again(name: str, tmp_path: Path) -> None:
    module, x = protected(name), NETWORKS[name].batch(5)
    hp.save_bundle(module, tmp_path / "one")
    twin = hp.load_bundle(tmp_path / "one")
    hp.save_bundle(twin, tmp_path / "one")  # over the first one
    again = hp.load_bundle(tmp_path / "one")
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    assert equal_bits(again(x), module(x))
    assert equal_bits(again(faulty(x)), module(faulty(x)))
    assert again.memory().keys() == module.memory().keys()
    assert again.monitor.extra_bytes == module.monitor.extra_bytes
    if name == "shared":
        assert again.get_parameter("a.weight") is again.get_parameter("b.weight")
        assert "gain" not in again.state_dict()


@pytest.mark.parametrize("policy", [Clamp(), ToMedian()], ids=lambda policy: policy.label)
def test_bounds_per_channel_come_back_and_are_no_memory_of_the_model(policy: Policy, tmp_path: Path) -> None:
    program, x = captured("shared", 5), NETWORKS["shared"].batch(5)
    bounds = hp.Ranger(hp.profile_ranges(program, x, medians=True), policy=policy)
    module, folder = hp.harden(program, [bounds, TMR(), hp.Parity()]), tmp_path / "bundle"
    hp.save_bundle(module, folder)
    hp.save_bundle(hp.load_bundle(folder), folder)  # again, from what came back
    twin = hp.load_bundle(folder)
    assert twin.protections == module.protections
    assert equal_bits(twin(x), module(x))
    assert equal_bits(twin(faulty(x)), module(faulty(x)))
    assert not equal_bits(twin(faulty(x)), hp.harden(program, [])(faulty(x)))
    assert twin.memory().keys() == module.memory().keys()
    assert twin.monitor.extra_bytes == module.monitor.extra_bytes
    damage(folder / "model.pt2", place_of(folder / "model.pt2", module.get_parameter("a.weight")))
    assert equal_bits(hp.load_bundle(folder)(x), module(x))  # repaired
    hp.save_bundle(module, folder)
    effect = next(effect for effect in bounds.values(program).values() if hasattr(effect, "bound"))
    highs = torch.tensor([rounded_outwards(channel, x.dtype)[1] for channel in effect.bound.channels])
    damage(folder / "model.pt2", place_of(folder / "model.pt2", highs))
    with pytest.raises(DataError, match="expected bounds in .* as they were saved, got others"):
        hp.load_bundle(folder)


def test_weights_that_changed_on_disk_are_repaired_and_said_so(
    saved: tuple[hp.runtime.HardenedModule, Path], bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, _ = saved
    model = bundle / "model.pt2"
    damage(model, place_of(model, module.get_parameter("conv1.weight")) + 7)
    damage(model, place_of(model, module.get_buffer("bn.running_var")) + 2)
    with caplog.at_level(logging.WARNING, logger="hoplon"):
        twin = hp.load_bundle(bundle)
    assert all(equal_bits(tensor, module.state_dict()[name]) for name, tensor in twin.state_dict().items())
    assert twin.monitor.events[0].guard == "tmr"
    assert twin.monitor.events[0].report.corrected == 2
    assert "tmr found 2 wrong words in" in caplog.text


def test_weights_that_no_guard_can_repair_are_refused(tmp_path: Path) -> None:
    program = captured("in-place-sum", 5)
    for protections in ([], [hp.KnownBits()]):
        module = hp.harden(program, protections)
        folder = tmp_path / str(len(protections))
        hp.save_bundle(module, folder)
        damage(folder / "model.pt2", place_of(folder / "model.pt2", module.get_parameter("fc.weight")))  # a low bit
        with pytest.raises(DataError, match=r"expected weights in .* got others in fc.weight that .* cannot repair"):
            hp.load_bundle(folder)


def test_weights_that_were_replaced_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    module = hp.harden(hp.capture(torch.nn.Linear(40, 40).eval(), x), [TMR()])
    hp.save_bundle(module, tmp_path / "out")
    model, weight = tmp_path / "out" / "model.pt2", module.get_parameter("weight")
    at = place_of(model, weight)
    content = bytearray(model.read_bytes())
    content[at : at + weight.nbytes] = weight.detach().mul(2).numpy().tobytes()
    model.write_bytes(content)
    with pytest.raises(DataError, match=r"as they were saved, got others: .* got other values in .* words of weight"):
        hp.load_bundle(tmp_path / "out")


def _missing(folder: Path) -> None:
    (folder / "guards.safetensors").unlink()


def _guard_file(folder: Path) -> None:
    damage(folder / "guards.safetensors", -5)


def _scores(folder: Path) -> None:
    damage(folder / "descriptions.safetensors", -5)


def _graph(folder: Path) -> None:
    damage(folder / "model.pt2", (folder / "model.pt2").read_bytes().find(b'"graph_module"') + 2)


def _cut(folder: Path) -> None:
    content = (folder / "model.pt2").read_bytes()
    (folder / "model.pt2").write_bytes(content[: len(content) // 2])


def _no_index(folder: Path) -> None:
    (folder / "bundle.json").unlink()


def _broken_index(folder: Path) -> None:
    (folder / "bundle.json").write_text("{", encoding="utf-8")


def _tampered(folder: Path, change: Callable[[dict[str, object]], None], *, resealed: bool = False) -> None:
    index = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    change(index)
    if resealed:
        del index["seal"]
    (folder / "bundle.json").write_text(sealed(index) if resealed else json.dumps(index), encoding="utf-8")


def _schedule(folder: Path) -> None:
    _tampered(folder, lambda index: index.update(when={"kind": "OnDemand"}))


def _version(folder: Path) -> None:
    _tampered(folder, lambda index: index.update(format=2), resealed=True)


def _kind(folder: Path) -> None:
    _tampered(folder, lambda index: index.update(when={"kind": "Popen"}), resealed=True)


def _shape(folder: Path) -> None:
    _tampered(folder, lambda index: index["memory"]["fc.bias"].update(shape=[5]), resealed=True)  # type: ignore[index]


def _digest(folder: Path) -> None:
    _tampered(folder, lambda index: index["memory"]["fc.bias"].update(digest="0"), resealed=True)  # type: ignore[index]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_missing, "expected guards.safetensors in .*, got no such file"),
        (_guard_file, "expected .*guards.safetensors as it was saved, got changed content"),
        (_scores, "expected .*descriptions.safetensors as it was saved, got changed content"),
        (_graph, "expected .*model.pt2 as it was saved, got changed content"),
        (_cut, "expected .*model.pt2 as it was saved, got changed content"),
        (_no_index, "expected a bundle in .*hoplon.save_bundle writes one"),
        (_broken_index, "expected .*bundle.json as format 1 has it, got Expecting"),
        (_schedule, "expected .*bundle.json as .* got content that is not as it was written"),
        (_version, "expected .*bundle.json as format 1 has it, got format: Input should be 1"),
        (_kind, "expected a description that this version of hoplon can read, got .*Popen"),
        (_shape, r"expected fc.bias with shape \[5\], as saved, got \[4\]"),
        (_digest, "model.pt2 to hold the weights it was saved with, got others in fc.bias"),
    ],
)
def test_damage_is_refused(bundle: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(bundle)
    with pytest.raises(DataError, match=message):
        hp.load_bundle(bundle)


def test_a_fresh_process_reads_guards_whose_modules_it_has_not_imported(tmp_path: Path) -> None:
    program = hp.capture(NETWORKS["in-place-sum"].model(), NETWORKS["in-place-sum"].batch(5))
    module = hp.harden(
        program,
        [hp.guards.Checksum(), hp.guards.TMRSparse(hp.importance.magnitude(program))],
        when=hp.runtime.Rotating(3),
    )
    hp.save_bundle(module, tmp_path / "out")
    code = (
        "import sys, hoplon as hp; module = hp.load_bundle(sys.argv[1]); "
        "print(*(type(part).__name__ for part in module.protections), module.monitor.when)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "Checksum TMRSparse Rotating(turns=3)"


@dataclass(frozen=True)
class Foreign(hp.protections.Protection):
    label = "foreign"


def test_what_a_bundle_cannot_hold_is_refused(tmp_path: Path) -> None:
    program = captured("in-place-sum", 5)
    ranger = hp.Ranger(hp.profile_ranges(program, NETWORKS["in-place-sum"].batch(5)))
    with pytest.raises(HoplonError, match="expected descriptions of hoplon's own kinds, got Foreign"):
        hp.save_bundle(hp.harden(program, [Foreign()]), tmp_path / "a")
    with pytest.raises(HoplonError, match="expected a module without telemetry"):
        hp.save_bundle(hp.harden(program, [ranger], telemetry=True), tmp_path / "a")
    with pytest.raises(HoplonError, match="expected a module without gradients"):
        hp.save_bundle(hp.harden(program, [ranger], gradients=True), tmp_path / "a")
    with pytest.raises(
        HoplonError, match=r"in the dtypes it was captured in, got .* of torch.float64 where it was of "
    ):
        hp.save_bundle(hp.harden(program, [TMR()]).to(torch.float64), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match="expected a new folder or a bundle to replace, got"):
        hp.save_bundle(hp.harden(program, [ranger]), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@torch.library.custom_op("mine::twice", mutates_args=())
def _twice(x: Tensor) -> Tensor:
    return x * 2


@_twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class WithForeignOperator(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _twice(x)


def test_a_graph_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    module = hp.harden(hp.capture(WithForeignOperator().eval(), torch.rand(4, 3)), [])
    with pytest.raises(HoplonError, match="expected a graph of torch's own operators, .* got 'torch.ops.mine.twice"):
        hp.save_bundle(module, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        TMR(vote="tensor"),
        hp.KnownBits(block=64),
        hp.Parity(),
        hp.guards.SecDedMemory(),
        hp.runtime.EveryForward(3),
        hp.Ranger(
            hp.Ranges({"a": hp.ranges.Bound(0.1, 2.0)}, fingerprint="f"),
            policy=hp.values.RandomInRange(seed=4),
            where="all",
        ),
        hp.Ranger(hp.Ranges({"a": hp.ranges.Bound(0.1, 2.0)}), policy=hp.values.Detect(margin=0.5), last_linear=True),
        hp.values.Duplicate(("fc:linear",)),
    ],
)
def test_a_description_comes_back_from_json(value: object) -> None:
    tensors: dict[str, Tensor] = {}
    assert restored(json.loads(json.dumps(described(value, tensors))), tensors, type(value)) == value
    assert not tensors


def test_every_missing_and_changed_file_is_named(bundle: Path) -> None:
    damage(bundle / "model.pt2", 100)
    damage(bundle / "guards.safetensors", -5)
    (bundle / "descriptions.safetensors").unlink()
    with pytest.raises(DataError) as refused:
        hp.load_bundle(bundle)
    assert "expected descriptions.safetensors in" in str(refused.value)
    assert "model.pt2 as it was saved, got changed content" in str(refused.value)
    assert "guards.safetensors as it was saved, got changed content" in str(refused.value)


def _deep(levels: int) -> object:
    content: object = 1
    for _ in range(levels):
        content = {"tuple": [content]}
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"when": 5}, "got '5' .a int in the place of a When"),
        ({"when": {"kind": "TMR"}}, "got 'TMR' .a TMR in the place of a When"),
        ({"protections": [[]]}, r"a list in the place of a Protection"),
        ({"protections": [{"kind": "EveryForward"}]}, "a EveryForward in the place of a Protection"),
        ({"protections": [{"kind": "TMR", "vote": 5}]}, "got 'TMR' .TMR.vote: Input should be 'element' or 'tensor'"),
        ({"protections": [{"kind": "TMR", "vot": "tensor"}]}, "got 'TMR' .*no field 'vot'"),
        ({"protections": [{"kind": "Ranger", "ranges": 5}]}, "got 'Ranger' .Ranger.ranges: "),
        ({"protections": [{"kind": "Aspis", "scores": {"tensor": "absent"}}]}, "got 'Aspis' .'absent'"),
        ({"protections": [{"kind": ["TMR"]}]}, "unhashable"),
        ({"protections": [{"tuple": 5}]}, "not iterable"),
        ({"protections": [_deep(400)]}, "values inside values, too deep"),
        ({"protections": {}}, "bundle.json as format 1 has it, got protections: Input should be a valid list"),
        ({"memory": []}, "got memory: Input should be a valid dictionary"),
        ({"memory": {"a": {"dtype": "x", "shape": ["1"], "stride": [], "digest": ""}}}, "memory.a.shape.0: Input"),
        ({"files": {"../../etc/hostname": "0"}}, "model.pt2 as it was saved, got changed content"),
        ({"tied": [["fc.weight"]]}, "tied.0: List should have at least 2 items"),
        ({"tied": [["fc.weight", "__class__.x"]]}, "expected tied tensors of the graph, got '__class__.x'"),
        ({"label": "\x1b[2Ja\nb"}, "got label: String should match pattern"),
        ({"versions": {"torch": "2\n"}}, "got versions.torch: String should match pattern"),
        ({"more": 1}, "got more: Extra inputs are not permitted"),
    ],
)
def test_an_index_of_another_form_is_refused_in_one_line(
    bundle: Path, changes: dict[str, object], message: str
) -> None:
    _tampered(bundle, lambda index: index.update(changes), resealed=True)
    with pytest.raises(DataError, match=message) as refused:
        hp.load_bundle(bundle)
    assert str(refused.value).isprintable()


def test_a_class_of_another_package_never_stands_for_one_of_ours(saved: tuple[object, Path]) -> None:
    code = """
import sys, hoplon as hp
@hp.registry.register("protection", "another-tmr")
class TMR(hp.protections.Protection):
    label = "another"
try:
    hp.load_bundle(sys.argv[1])
except hp.HoplonError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code, saved[1]], capture_output=True, text=True, check=True)
    assert "expected one class named TMR, got those of __main__ and hoplon.protections.guards.tmr; rename" in run.stdout
