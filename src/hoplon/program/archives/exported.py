"""The graph of a ``.pt2`` file, once everything in it is known to be data."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import fx
from torch._export.serde import schema
from torch._export.serde.union import _Union
from torch.export.pt2_archive._package import load_pt2

from hoplon.errors import said
from hoplon.files import json_as
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.archives.members import archive_of, members_of
from hoplon.program.archives.tensors import plain_tensors
from hoplon.program.archives.texts import is_expression, is_operator, is_path, is_structure, is_symbol

_GRAPH, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = {
    "weights": "data/weights/model_weights_config.json",
    "constants": "data/constants/model_constants_config.json",
}
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json|"
    r"data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)|"
    r"data/sample_inputs/model\.pt|extra/hoplon\.json"
)
_LONGEST = 2**26  # bytes of a graph; ResNet-18 has 3e5
_LARGEST_VIEW = 2**24  # elements of a tensor that repeats those of its file


def graph_of(content: bytes) -> fx.GraphModule:
    """The graph of a ``.pt2`` file, with its parameters and buffers.

    torch reads a new archive of what was checked; of the file's sample inputs, guards and traces it reads nothing.

    Raises:
        ValueError: as :func:`checked_members`; or a graph that torch refuses.
    """
    archive = archive_of(checked_members(content), folder="model")
    try:
        with quiet_torch():
            graph = load_pt2(archive).exported_programs["model"].module(check_guards=False)
    except Exception as error:  # whatever a graph that does not fit together raises in torch
        raise ValueError(
            f"a graph that torch {torch.__version__} does not read: {type(error).__name__}, {said(error)}"
        ) from error
    assert isinstance(graph, fx.GraphModule)
    return graph


def checked_members(content: bytes) -> dict[str, bytes | memoryview]:
    """The members of a ``.pt2`` file as torch may read them.

    Raises:
        ValueError: a file that `torch.export.save` does not write, or one that holds code, pickles or operators of
            others than torch; says what is wrong, without its path.
    """
    members = members_of(content, MEMBERS)
    missing = [name for name in (_GRAPH, _SAMPLES, *_CONFIGS.values(), *_FIXED) if name not in members]
    if missing:
        raise ValueError(f"no member {missing[0]!r}")
    for name, fixed in _FIXED.items():
        if members[name] != fixed:
            raise ValueError(f"another {name.replace('_', ' ')} than {fixed.decode()}")
    plain_tensors(bytes(members[_SAMPLES]))
    documents: dict[str, Any] = {_GRAPH: _document(schema.ExportedProgram, members, _GRAPH)}
    for what, name in _CONFIGS.items():
        documents[name] = _document(schema.PayloadConfig, members, name)
        folder = f"data/{what}/"
        payloads = {path.removeprefix(folder): len(members[path]) for path in members if path.startswith(folder)}
        del payloads[name.removeprefix(folder)]
        _require_tensors(documents[name]["config"], payloads)
    return {**members, _SAMPLES: b"", **{name: json.dumps(document).encode() for name, document in documents.items()}}


def _document(kind: type, members: Mapping[str, memoryview], name: str) -> Any:
    if len(members[name]) > _LONGEST:
        raise ValueError(f"{name} of {len(members[name]):,} bytes, more than {_LONGEST:,}")
    try:
        return _as(kind, json_as(dict[str, Any], bytes(members[name])), kind.__name__)
    except RecursionError as error:
        raise ValueError(f"{name} with values inside values, too deep") from error


def _require_tensors(config: Mapping[str, Any], lengths: dict[str, int]) -> None:
    """Refuse pickles, and tensors that are larger than what is stored of them."""
    for name, meta in config.items():
        if meta["use_pickle"] or meta["tensor_meta"] is None or meta["path_name"] not in lengths:
            raise ValueError(f"{name!r} pickled or missing, where a tensor was expected")
        sizes = [size.get("as_int", -1) for size in meta["tensor_meta"]["sizes"]]
        elements = 1
        for size in sizes:
            elements *= size
        length = lengths[meta["path_name"]]
        if min(sizes, default=0) < 0 or elements > (max(length, _LARGEST_VIEW) if length else 0):
            raise ValueError(f"the tensor {name!r} of sizes {sizes} in {length:,} bytes")
    if unread := lengths.keys() - {meta["path_name"] for meta in config.values()}:
        raise ValueError(f"a member {min(unread)!r} that is no tensor of the model")


def _as(kind: Any, value: Any, field: str) -> Any:
    """A value of a document, as torch's own schema has it; fields that this version does not know are left out.

    Args:
        field: that holds it, which decides what a text may be.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # an optional field
        return None if value is None else _as(inner[0], value, field)
    if origin is list:
        return [_as(inner[0], item, field) for item in _is_a(list, value, field)]
    if origin is dict:
        keys = f"{field} key"
        return {_as(str, key, keys): _as(inner[1], item, field) for key, item in _is_a(dict, value, field).items()}
    if dataclasses.is_dataclass(kind):
        return _fields(typing.cast(type, kind), _is_a(dict, value, field), field)
    if kind is str:
        if not _TEXTS.get(field, str.isidentifier)(_is_a(str, value, field)):
            raise ValueError(
                f"{value[:80]!r} as {field.rpartition('.')[2]} of {field.partition('.')[0]}, which torch does not write"
            )
        return value
    if kind is float:
        return value if isinstance(value, str) and value in _INFINITE else float(_is_a((int, float), value, field))
    if issubclass(kind, enum.IntEnum):
        return kind(_is_a(int, value, field)).value
    return _is_a(kind, value, field)


def _is_a(kind: Any, value: Any, field: str) -> Any:
    whole = kind is not int or (isinstance(value, int) and -(2**63) <= value < 2**63)
    if not isinstance(value, kind) or not whole or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"a value of another type as {field}")
    return value


def _fields(kind: type, value: Mapping[str, Any], field: str) -> dict[str, Any]:
    hints = _hints(kind)
    if issubclass(kind, _Union):
        if len(value) != 1 or not value.keys() <= hints.keys():
            raise ValueError(f"several values, or one of an unknown form, as {field}")
    elif (
        missing := {one.name for one in dataclasses.fields(typing.cast(Any, kind)) if _is_required(one)} - value.keys()
    ):
        raise ValueError(f"no {min(missing)} of {kind.__name__}")
    places = {name: f"{kind.__name__}.{name}" for name in hints if name in value}
    return {
        name: _LEFT_OUT[place](value[name]) if place in _LEFT_OUT else _as(hints[name], value[name], place)
        for name, place in places.items()
    }


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if not name.startswith("_")}


def _refused(value: Any) -> Any:
    raise ValueError("an object or an operator as a value, where tensors and numbers were expected")


def _owners(metadata: Any) -> dict[str, str]:
    """Of the notes of a node, the modules that it lies in."""
    owners = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
    return {"nn_module_stack": owners} if isinstance(owners, str) and owners.isprintable() else {}


_INFINITE = ("Infinity", "-Infinity", "NaN")
_LEFT_OUT: Mapping[str, Callable[[Any], Any]] = {
    "Argument.as_custom_obj": _refused,
    "Argument.as_operator": _refused,
    "InputSpec.custom_obj": _refused,
    "Graph.custom_obj_values": lambda value: _refused(value) if value else {},
    "GraphModule.metadata": lambda value: {},
    "Node.metadata": _owners,
    "ExportedProgram.guards_code": lambda value: [],
}
_TEXTS: Mapping[str, Callable[[str], bool]] = {
    "Argument.as_string": str.isprintable,
    "Argument.as_strings": str.isprintable,
    "Argument.as_string_to_argument key": str.isprintable,
    "BufferMutationSpec.buffer_name": is_path,
    "ConstantValue.as_string": str.isprintable,
    "ExportedProgram.range_constraints key": is_symbol,
    "ExportedProgram.torch_version": str.isprintable,
    "GradientToParameterSpec.parameter_name": is_path,
    "GraphModule.treespec_namedtuple_fields key": is_path,
    "InputToBufferSpec.buffer_name": is_path,
    "InputToParameterSpec.parameter_name": is_path,
    "InputToTensorConstantSpec.tensor_constant_name": is_path,
    "ModuleCallEntry.fqn": lambda text: text == "" or is_path(text),
    "ModuleCallSignature.in_spec": partial(is_structure, arguments=True),
    "ModuleCallSignature.out_spec": is_structure,
    "NamedArgument.name": lambda text: text == "" or text.isidentifier(),
    "Node.target": is_operator,
    "ParameterMutationSpec.parameter_name": is_path,
    "PayloadConfig.config key": is_path,
    "SymExpr.expr_str": is_expression,
}
"""What the texts of a field may be; those of all others are names in code."""
