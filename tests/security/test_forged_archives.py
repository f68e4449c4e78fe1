"""Archives that run code where torch reads them alone: hoplon refuses each in one line, and nothing runs."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import hoplon as hp
from hoplon.errors import DataError
from hoplon.files import write_json
from hoplon.program.archives.exported import checked_members, graph_of
from hoplon.program.archives.tensors import plain_tensors
from hoplon.program.archives.texts import is_expression, is_operator, is_path
from hoplon.zoo.files import read_state_dict

Members = dict[str, bytes]
GRAPH, SAMPLES = "archive/models/model.json", "archive/data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = (f"archive/data/{what}/model_{what}_config.json" for what in ("weights", "constants"))


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    program = hp.capture(model, torch.rand(4, 3, generator=torch.Generator().manual_seed(0)))
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    hp.save_bundle(hp.harden(program, [hp.TMR()]), folder)
    return folder


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that only code from an archive makes; a module that makes it when it is imported lies on the path."""
    path = tmp_path / "marker"
    (tmp_path / "makes_the_marker.py").write_text(f"from pathlib import Path; Path({str(path)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("makes_the_marker", None)


def members_in(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: Members, *more: tuple[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, member in [*members.items(), *more]:
            archive.writestr(zipfile.ZipInfo(name), member)
    return written.getvalue()


def pickled(value: Any) -> bytes:
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def edited(members: Members, name: str, edit: Callable[[Any], None]) -> bytes:
    document = json.loads(members[name])
    edit(document)
    return zipped({**members, name: json.dumps(document).encode()})


def touching(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def pickled_samples(members: Members, marker: Path) -> bytes:
    return zipped({**members, SAMPLES: pickled(((Touch(marker),), {}))})


def a_member_twice(members: Members, marker: Path) -> bytes:
    rest = {name: member for name, member in members.items() if name != SAMPLES}
    warnings.simplefilter("ignore")
    return zipped({SAMPLES: pickled(((Touch(marker),), {})), **rest}, (SAMPLES, members[SAMPLES]))


def a_member_inside_another(members: Members, marker: Path) -> bytes:
    """The table of contents points into the weights, where a whole other member lies."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(zipfile.ZipInfo(SAMPLES), pickled(((Touch(marker),), {})))
    weight = "archive/data/weights/weight_0"
    content = zipped(
        {
            weight: inner.getvalue() + bytes(-len(inner.getvalue()) % 4),
            **{name: one for name, one in members.items() if name != weight},
        }
    )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        table = archive.start_dir
    at = content.index(b"PK\x01\x02" + content[table + 4 : table + 10], table)
    while SAMPLES.encode() != content[at + 46 : at + 46 + len(SAMPLES)]:
        at = content.index(b"PK\x01\x02", at + 4)
    forged = bytearray(content)
    payload = pickled(((Touch(marker),), {}))
    struct.pack_into("<III", forged, at + 16, zlib.crc32(payload), len(payload), len(payload))
    struct.pack_into("<I", forged, at + 42, 30 + len(weight))
    return bytes(forged)


def a_pickled_weight(members: Members, marker: Path) -> bytes:
    def edit(document: Any) -> None:
        document["config"]["0.weight"]["use_pickle"] = True

    weight = json.loads(members[WEIGHTS])["config"]["0.weight"]["path_name"]
    return edited({**members, f"archive/data/weights/{weight}": pickled(Touch(marker))}, WEIGHTS, edit)


def _a_constant(members: Members, path: str, content: bytes) -> bytes:
    def edit(document: Any) -> None:
        entry = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}
        document["config"]["constant"] = entry

    return edited({f"archive/data/constants/{path}": content, **members}, CONSTANTS, edit)


def a_pickled_constant(members: Members, marker: Path) -> bytes:
    return _a_constant(members, "tensor_0", pickled(Touch(marker)))


def an_object_of_python(members: Members, marker: Path) -> bytes:
    return _a_constant(members, "opaque_obj_0", pickle.dumps(Touch(marker)))


def weights_in_the_old_form(members: Members, marker: Path) -> bytes:
    return zipped({"archive/data/weights/model.pt": pickled({"0.weight": Touch(marker)}), **members})


def the_old_layout(members: Members, marker: Path) -> bytes:
    return zipped(
        {
            "version": b"8.20",
            "serialized_exported_program.json": members[GRAPH],
            "serialized_state_dict.pt": pickled({"0.weight": Touch(marker)}),
            "serialized_constants.pt": pickled({}),
            "serialized_example_inputs.pt": pickled(((torch.zeros(2, 3),), {})),
        }
    )


def _graph(edit: Callable[[Any, Path], None]) -> Callable[[Members, Path], bytes]:
    def forged(members: Members, marker: Path) -> bytes:
        return edited(members, GRAPH, lambda document: edit(document["graph_module"], marker))

    return forged


def _call(module: Any) -> Any:
    return module["module_call_graph"][0]["signature"]


def _expression(module: Any, marker: Path) -> None:
    module["graph"]["tensor_values"]["x" if "x" in module["graph"]["tensor_values"] else "input"]["sizes"][0] = {
        "as_expr": {"expr_str": touching(marker), "hint": {"as_int": 2}}
    }


def _name_of_an_argument(module: Any, marker: Path) -> None:
    """It stands twice in the code of torch: once as a default, once inside of a text."""
    _call(module)["forward_arg_names"] = [f"x={touching(marker)}):\n    '''#"]


def _imported_factory(module: Any, marker: Path) -> None:
    context = {"default_factory_module": "makes_the_marker", "default_factory_name": "Path", "dict_context": []}
    _call(module)["out_spec"] = json.dumps(
        [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
    )


def _imported_enumeration(module: Any, marker: Path) -> None:
    keys = json.dumps([{"__enum__": True, "fqn": "makes_the_marker:Path", "name": "x"}])
    leaf = {"type": None, "context": None, "children_spec": []}
    _call(module)["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": keys, "children_spec": [leaf]}])


def a_name_of_a_parameter(members: Members, marker: Path) -> bytes:
    """Quotes end the text in which torch's code holds the name."""
    name = f'x", 0) or getattr(__import__("os"), "system")("touch {marker}") or getattr(self, "x'
    graph, weights = json.loads(members[GRAPH]), json.loads(members[WEIGHTS])
    weights["config"][name] = weights["config"].pop("0.bias")
    for spec in graph["graph_module"]["signature"]["input_specs"]:
        if spec.get("parameter", {}).get("parameter_name") == "0.bias":
            spec["parameter"]["parameter_name"] = name
    return zipped({**members, GRAPH: json.dumps(graph).encode(), WEIGHTS: json.dumps(weights).encode()})


def _operator_on_files(module: Any, marker: Path) -> None:
    text = {"name": "filename", "arg": {"as_string": str(marker)}, "kind": 1}
    more = [
        {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
        {"name": "size", "arg": {"as_int": 8}, "kind": 1},
    ]
    _node(module, "torch.ops.aten.from_file.default", [text, *more])


def _node(module: Any, target: str, inputs: list[Any]) -> None:
    values = module["graph"]["tensor_values"]
    values["made"] = next(iter(values.values()))
    node = {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "made"}}], "metadata": {}}
    module["graph"]["nodes"].insert(0, {**node, "name": "made"})


def _foreign_operator(module: Any, marker: Path) -> None:
    text = {"name": "path", "arg": {"as_string": str(marker)}, "kind": 1}
    _node(module, "torch.ops.foreign_to_hoplon.touch.default", [text])


@pytest.fixture(scope="module", autouse=True)
def _foreign() -> Iterator[None]:
    """An operator of another package in this process."""
    library = torch.library.Library("foreign_to_hoplon", "DEF")
    library.define("touch(str path) -> Tensor")

    def touch(path: str) -> torch.Tensor:
        Path(path).touch()
        return torch.zeros(1)

    library.impl("touch", touch, "CompositeExplicitAutograd")
    yield
    library._destroy()


ATTACKS: dict[str, Callable[[Members, Path], bytes]] = {
    "a pickle as sample inputs": pickled_samples,
    "a member twice": a_member_twice,
    "a member inside another": a_member_inside_another,
    "a pickled weight": a_pickled_weight,
    "a pickled constant": a_pickled_constant,
    "an object of Python": an_object_of_python,
    "weights in the old form": weights_in_the_old_form,
    "the old layout": the_old_layout,
    "an expression": _graph(_expression),
    "a name of an argument": _graph(_name_of_an_argument),
    "a name of a parameter": a_name_of_a_parameter,
    "a factory to import": _graph(_imported_factory),
    "an enumeration to import": _graph(_imported_enumeration),
    "an operator on files": _graph(_operator_on_files),
    "a foreign operator": _graph(_foreign_operator),
}


def forge(bundle: Path, target: Path, content: bytes) -> Path:
    """A copy of a bundle with another graph, its digests made anew."""
    target.mkdir()
    for file in bundle.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "model.pt2").write_bytes(content)
    index = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    index["files"]["model.pt2"] = hashlib.sha256(content).hexdigest()
    index["members"] = {name: hashlib.sha256(one).hexdigest() for name, one in members_in(content).items()}
    del index["seal"]
    write_json(target / "bundle.json", index)
    return target


def _as_torch_spells(base: str, target: str) -> str:
    """Names of modules in code as torch 2.13 writes them, which hoplon replaces."""
    for name in target.split("."):
        base = f"{base}.{name}" if name.isidentifier() else f'getattr({base}, "{name}")'
    return base


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_that_runs_code_in_torch_is_refused_in_one_line(
    bundle: Path, tmp_path: Path, marker: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ATTACKS[attack](members_in((bundle / "model.pt2").read_bytes()), marker)
    (tmp_path / "forged.pt2").write_bytes(content)
    with suppress(Exception), monkeypatch.context() as plain:  # what runs has run, whether the rest fits or not
        plain.setattr("torch.fx.graph._format_target", _as_torch_spells)
        torch.export.load(tmp_path / "forged.pt2").module()(torch.zeros(2, 3))
    assert marker.exists(), "the attack does not work"
    marker.unlink()
    sys.modules.pop("makes_the_marker", None)
    with pytest.raises(DataError) as refused:
        hp.load_bundle(forge(bundle, tmp_path / "forged", content))
    assert not marker.exists()
    assert str(refused.value).isprintable()
    assert "weights_only" not in str(refused.value), "says how to run it"


def _renamed_where_it_begins(content: bytes, members: Members) -> bytes:
    at = content.index(b"archive_version")
    return content[:at] + b"archive_versioM" + content[at + 15 :]


def _of_another_size(name: str, value: Any) -> Callable[[bytes, Members], bytes]:
    def edit(document: Any) -> None:
        document["config"]["0.bias"]["tensor_meta"][name] = value

    return lambda content, members: edited({**members, "archive/data/weights/weight_1": b""}, WEIGHTS, edit)


def _packed(content: bytes, members: Members) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return written.getvalue()


def _nested(content: bytes, members: Members) -> bytes:
    return zipped({**members, GRAPH: b'{"a":' * 100_000 + b"1" + b"}" * 100_000})


def _with(name: str, member: bytes = b"x") -> Callable[[bytes, Members], bytes]:
    return lambda content, members: zipped({**members, name: member})


FORMS: dict[str, tuple[Callable[[bytes, Members], bytes], str]] = {
    "bytes after the end": (lambda content, members: content + b"x", "goes on after its end"),
    "bytes before the start": (lambda content, members: b"#!/bin/sh\n" + content, "damaged|over or apart|no member"),
    "a second archive before": (lambda content, members: content + content, "over or apart from another"),
    "cut off": (lambda content, members: content[:-30], "no zip archive, or one that is cut off"),
    "compressed": (_packed, "compressed"),
    "another name where it begins": (_renamed_where_it_begins, "under another name where it begins"),
    "a folder above": (_with("archive/../evil"), r"unknown member 'archive/\.\./evil'"),
    "an absolute name": (_with("/evil"), "unknown member '/evil'"),
    "another folder": (_with("other/byteorder"), "unknown member 'other/byteorder'"),
    "another case": (_with("archive/Archive_format", b"pt2"), "unknown member 'archive/Archive_format'"),
    "compiled code": (_with("archive/data/aotinductor/model/wrapper.so"), "unknown member .*wrapper.so"),
    "an extra weight": (_with("archive/data/weights/weight_99"), "'weight_99' that is no tensor of the model"),
    "another format": (_with("archive/archive_format", b"pt3"), "another archive format than pt2"),
    "sizes without bytes": (_of_another_size("sizes", [{"as_int": 10**12}]), r"sizes \[1000000000000\] in 0 bytes"),
    "a negative size": (_of_another_size("sizes", [{"as_int": -1}]), r"sizes \[-1\] in 0 bytes"),
    "an expression as a size": (
        _of_another_size("sizes", [{"as_expr": {"expr_str": "exit()"}}]),
        "expr_str of SymExpr",
    ),
    "a text as a number": (_of_another_size("requires_grad", "yes"), "another type as TensorMeta.requires_grad"),
    "values in values": (_nested, "values inside values, too deep"),
    "a graph of a list": (_with(GRAPH, b"[]"), "Input should be a valid dictionary"),
    "no graph": (_with(GRAPH, b"{"), "Expecting property name"),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_in_another_form_than_torch_writes_is_refused(bundle: Path, tmp_path: Path, form: str) -> None:
    forged, message = FORMS[form]
    content = (bundle / "model.pt2").read_bytes()
    with pytest.raises(ValueError, match=message) as refused:
        checked_members(forged(content, members_in(content)))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "content", [zipped({}), b"", b"\x80\x04K\x01.", b"PK\x05\x06" + bytes(18), pickle.dumps({}), bytes(600)]
)
def test_what_is_no_archive_of_torch_is_refused(tmp_path: Path, content: bytes) -> None:
    for read in (checked_members, plain_tensors):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            read(content)


@pytest.mark.parametrize("form", ["zip", "old", "tar"])
def test_a_state_dict_that_runs_code_in_torch_is_refused_in_one_line(tmp_path: Path, marker: Path, form: str) -> None:
    path = tmp_path / "weights.pt"
    if form == "tar":
        with tarfile.open(path, "w") as archive:
            content = pickle.dumps(Touch(marker))
            entry = tarfile.TarInfo("storages")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    else:
        torch.save({"a": Touch(marker)}, path, _use_new_zipfile_serialization=form == "zip")
    with suppress(Exception):
        torch.load(path, weights_only=False)
    assert marker.exists(), "the attack does not work"
    marker.unlink()
    with pytest.raises(DataError, match=r"^expected a whole state dict, got [^\n]*$") as refused:
        read_state_dict(path)
    assert str(refused.value).isprintable()
    assert "weights_only" not in str(refused.value), "says how to run it"
    assert not marker.exists()


def test_a_file_for_users_of_torch_holds_plain_samples_and_no_path_of_this_machine(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.pt2"
    hp.export_pt2(hp.harden(hp.capture(model, x), [hp.TMR()]), path, guards="drop")
    content = path.read_bytes()
    for part in {str(Path(torch.__file__).parent), str(Path(hp.__file__).parent), str(Path.home()), "File "}:
        assert part.encode() not in content
    (args, kwargs) = plain_tensors(members_in(content)[SAMPLES])
    assert [tuple(one.shape) for one in args] == [(2, 3)]
    assert kwargs == {}
    program = torch.export.load(path)
    assert torch.equal(program.module()(x), model(x))
    assert torch.equal(graph_of(content)(x), model(x))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Symbol('s77', positive=True, integer=True)", True),
        ("Mul(Integer(-2), Symbol('s0'))", True),
        ("Add(Max(Integer(1), FloorDiv(Symbol('u0'), Integer(2))), Mod(Symbol('s1'), Integer(3)))", True),
        ("Pow(Add(Symbol('s0'), Integer(1)), Integer(2))", True),
        ("Equality(Float('1.5', precision=53), ToFloat(Symbol('s0')))", True),
        ("", False),
        ("s0", False),
        ("Symbol('s0').__class__", False),
        ("Symbol('__import__')", False),
        ("Function('f')(Integer(1))", False),
        ("Pow(Integer(9), Pow(Integer(9), Integer(9)))", False),
        ("Pow(Integer(9), Integer(99999999))", False),
        ("Integer(1) if exit() else Integer(2)", False),
        ("lambda: 0", False),
        ("Integer('1')", False),
        ("Add(" * 2000 + ")" * 2000, False),
        ("(" * 4000, False),
        ("Integer(1)\n", True),
        ("exit\u2160()", False),
    ],
)
def test_expressions_are_those_that_torch_writes_of_sizes(text: str, good: bool) -> None:
    assert is_expression(text) is good


@pytest.mark.parametrize(
    ("target", "good"),
    [
        ("torch.ops.aten.conv2d.default", True),
        ("torch.ops.aten.gelu.default", True),
        ("torch.ops.aten.sym_size.int", True),
        ("torch.ops.higher_order.wrap_with_set_grad_enabled", True),
        ("_operator.add", True),
        ("torch.sym_not", True),
        ("torch.ops.aten.save.default", False),
        ("torch.ops.aten.from_file.default", False),
        ("torch.ops.aten.manual_seed.default", False),
        ("torch.ops.aten.conv2d", False),
        ("torch.ops.aten.conv2d.__call__", False),
        ("torch.ops.aten.no_such.default", False),
        ("torch.ops.higher_order.call_torchbind", False),
        ("torch.ops.load_library", False),
        ("torch.ops.prim.Print.default", False),
        ("torch.load", False),
        ("_operator.call", False),
        ("_operator.methodcaller", False),
        ("#backend:op", False),
        ("conv2d", False),
    ],
)
def test_operators_are_those_that_compute(target: str, good: bool) -> None:
    assert is_operator(target) is good


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("0.weight", True),
        ("heads.class score (left).bias", True),
        ("größe._Own__private", True),
        ("", False),
        ("a..b", False),
        ("__class__.forward", False),
        ("forward.__globals__", False),
        ('a") or b("', False),
        ("a' or 'b", False),
        ("a\\", False),
        ("a\nb", False),
    ],
)
def test_names_of_tensors_end_no_text_in_code(name: str, good: bool) -> None:
    assert is_path(name) is good
