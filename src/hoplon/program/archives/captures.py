"""Captured programs kept on disk: what was traced, as JSON, read as data, and never used before it is proven again."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from typing_extensions import TypedDict

from hoplon.errors import HoplonError
from hoplon.files import cache_folder, json_as, read_bytes, sealed, write_atomically
from hoplon.formats.digest import digest_of
from hoplon.program.archives.texts import is_operator
from hoplon.program.memory import StoredWords
from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program, Ref, Step, reached_kinds, tensors_of_export
from hoplon.program.signature import Signature, TensorForm
from hoplon.program.sites import Identity, memory_sites

FEWEST_MODULES = 32  # a smaller model is traced in little more time than it takes to ask
MOST_KEPT = 64  # of some 0.2 MB
_SWITCH, _OFF = "HOPLON_CAPTURES", "off"
_NAME = re.compile(r"[0-9a-f]{64}\.json")
_STRICT = ConfigDict(strict=True, extra="forbid")
_LARGEST = 2**25  # bytes
_LARGEST_RATIO = 2**20
_KNOWN = sys.stdlib_module_names | {"torch", "numpy", "hoplon"}  # of a version that is part of the key
_OF_PYTHON = ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
_PLAIN = (type(None), bool, int, str)
_OF_TORCH = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_TOLD_BY_REPR = (*_PLAIN, float, complex, bytes, Enum, torch.device, *_OF_TORCH.values())


@with_config(_STRICT)
class _Site(TypedDict):
    kind: str
    call: int
    output: int


@with_config(_STRICT)
class _Step(TypedDict):
    """A step; an operator has ``op``, and if a fault can strike its output a ``site``."""

    label: str
    op: str | None
    args: list[Any]
    kwargs: dict[str, Any]
    carries: bool
    owner: str
    site: _Site | None


@with_config(_STRICT)
class _Document(TypedDict):
    """A kept program, without weights and inputs, which are the user's, and without layouts, which are measured."""

    key: str
    steps: list[_Step]
    inputs: list[int]
    memory: list[list[int | str]]
    constants: list[list[Any]]
    names: dict[str, str]
    outputs: list[Any]
    ratios: list[list[int]]


class _NotKept(Exception):  # noqa: N818 -- says what becomes of it
    """What has no description that another process could compare with."""


def file_of(model: nn.Module, signature: Signature) -> Path | None:
    """The file for the program of a model; None where none is kept.

    Its name is a digest of the weights, the modules with their plain attributes and the source of their code, the form
    of the inputs, and the versions of torch and hoplon. A model with hooks, or with attributes or code that cannot be
    looked into, has none.
    """
    if os.environ.get(_SWITCH) == _OFF or sum(1 for _ in model.modules()) < FEWEST_MODULES:
        return None
    try:
        digest = hashlib.sha256()
        described = _Description(model)
        settings = (torch.__version__, sys.version, torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
        for part in (*map(str, settings), *_own_sources(), *described.lines, *described.sources()):
            digest.update(f"{part}\n".encode(errors="surrogatepass"))
        digest.update(digest_of(StoredWords.of(model).tensors).encode())
        inputs = [
            (str(leaf), leaf.dtype, leaf.axis)
            if isinstance(leaf, TensorForm)
            else digest_of({"shared": leaf})
            if isinstance(leaf, Tensor)
            else leaf
            for leaf in signature.leaves
        ]
        digest.update(repr((signature.spec, inputs)).encode())
        return cache_folder() / "captures" / f"{digest.hexdigest()}.json"
    except Exception:  # noqa: BLE001 -- whatever a user's objects do when they are looked at
        return None


@cache
def _own_sources() -> tuple[str, ...]:
    """Digests of all that decides what a program is."""
    files = sorted(Path(__file__).resolve().parents[1].rglob("*.py"))
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def keep(program: Program, file: Path) -> None:
    """Write a program, if it can be, and remove the oldest above :data:`MOST_KEPT`."""
    exported = program.exported
    if exported is None or program.unstruck or program.names.keys() != tensors_of_export(exported).keys():
        return
    try:
        document: _Document = {
            "key": file.stem,
            "steps": [_written(step) for step in program.steps],
            "inputs": list(program.input_steps),
            "memory": [[step, name] for step, name in program.memory_steps.items()],
            "constants": [[step, _value(value)] for step, value in program.constants.items()],
            "names": dict(program.names),
            "outputs": [_value(leaf) for leaf in program.output_steps],
            "ratios": [[step, *ratio] for step, ratios in program.batch_ratios.items() for ratio in ratios],
        }
        write_atomically(file, sealed(document))
        kept = [one for one in file.parent.iterdir() if _NAME.fullmatch(one.name)]
        for old in sorted(kept, key=lambda one: one.lstat().st_mtime)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except (_NotKept, OSError, HoplonError, ValueError):  # a full or read-only disk
        return


def kept(
    file: Path, model: nn.Module, signature: Signature, out_spec: pytree.TreeSpec, export: Callable[[], ExportedProgram]
) -> Program | None:
    """The program in a file, as yet unproven; None where there is none, or something else than :func:`keep` writes.

    Args:
        export: gives the untouched form, when it is asked for.
    """
    stored = StoredWords.of(model)
    try:
        if file.is_symlink() or stored.unstruck:
            return None
        document: _Document = json_as(_Document, read_bytes(file, limit=_LARGEST), must_be_sealed=True)
        if document["key"] != file.stem:
            return None
        modules = {path for path, _ in model.named_modules(remove_duplicate=False)}
        steps = tuple(_read(number, step, modules) for number, step in enumerate(document["steps"]))
        return _assembled(document, steps, stored, signature, out_spec, export)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, HoplonError):
        return None


def _assembled(
    document: _Document,
    steps: tuple[Step, ...],
    stored: StoredWords,
    signature: Signature,
    out_spec: pytree.TreeSpec,
    export: Callable[[], ExportedProgram],
) -> Program:
    memory: dict[Any, Any] = {step: name for step, name in document["memory"]}  # noqa: C416 -- lists of two
    constants = {step: value for step, value in document["constants"]}  # noqa: C416
    ratios: dict[int, tuple[tuple[int, int], ...]] = {}
    for step, axis, ratio in document["ratios"]:
        if not 0 < ratio <= _LARGEST_RATIO:
            raise ValueError("samples that are no part of a value")
        ratios[step] = (*ratios.get(step, ()), (axis, ratio))
    names = document["names"]
    outputs = tuple(_made(leaf, len(steps)) for leaf in document["outputs"])
    given = [*document["inputs"], *memory, *constants.keys() - {*document["inputs"]}]
    if sorted(given) != [step.index for step in steps if step.op is None]:
        raise ValueError("a step that is neither an operator nor given")
    if len(document["inputs"]) != len(signature.leaves) or len(outputs) != out_spec.num_leaves:
        raise ValueError("other inputs or outputs than the model's")
    if not {*memory.values(), *names.values()} <= stored.tensors.keys():
        raise ValueError("memory that the model has not")
    kinds = reached_kinds(steps, memory, document["inputs"])
    sites, unread = memory_sites(stored.tensors, kinds, stored.tensors.keys() - stored.parameters)
    return Program(
        name=signature.model,
        export=export,
        steps=steps,
        input_steps=tuple(document["inputs"]),
        memory_steps=memory,
        names=names,
        tensors={name: stored.tensors[name] for name in dict.fromkeys((*names.values(), *stored.tensors))},
        constants={step: _made(value, 0) for step, value in constants.items()},
        output_steps=outputs,
        signature=signature,
        out_spec=out_spec,
        memory_sites=sites,
        unread=unread,
        batch_ratios=ratios,
    )


def _written(step: Step) -> _Step:
    one = step.identity
    return {
        "label": step.label,
        "op": None if step.op is None else _name_of(step.op),
        "args": [_value(arg) for arg in step.args],
        "kwargs": {key: _value(arg) for key, arg in step.kwargs.items()},
        "carries": step.carries,
        "owner": step.owner,
        "site": None if one is None else {"kind": one.kind, "call": one.call, "output": one.output},
    }


def _read(number: int, step: _Step, modules: set[str]) -> Step:
    """A step whose arguments are those before it, whose operator writes to nothing, and whose owner the model has."""
    op = None if step["op"] is None else _operator(step["op"])
    args = tuple(_made(arg, number) for arg in step["args"])
    kwargs = {key: _made(arg, number) for key, arg in step["kwargs"].items()}
    identity = None if step["site"] is None else Identity(step["owner"], **step["site"])
    if identity is not None:
        same = op is operator.getitem or (op is not None and identity.kind == canonical_kind(op))
        if not same or identity.owner not in modules:
            raise ValueError("a site that the model has not")
    reads = tuple(dict.fromkeys(ref.step for ref in _refs((args, kwargs))))
    return Step(number, step["label"], op, args, kwargs, reads, step["carries"], step["owner"], identity)


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _refs(part)


def _name_of(op: Callable[..., Any]) -> str:
    name = str(getattr(op, "__name__", ""))
    text = f"torch.ops.{op.namespace}.{name}" if isinstance(op, torch._ops.OpOverload) else f"_operator.{name}"
    if _operator(text) is not op:
        raise _NotKept(text)
    return text


def _operator(text: str) -> Callable[..., Any]:
    """What computes on tensors and sizes and writes to none of them.

    Raises:
        ValueError: anything else.
    """
    if text.startswith("_operator.") and text.removeprefix("_operator.") in _OF_PYTHON:
        found: Any = getattr(operator, text.removeprefix("_operator."))
        return found  # type: ignore[no-any-return]
    if text.startswith("torch.ops.") and is_operator(text):
        found = torch.ops
        for part in text.split(".")[2:]:
            found = getattr(found, part)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    raise ValueError(f"{text[:80]!r} as an operator")


def _value(value: Any) -> Any:
    """An argument as JSON: plain values as they are, others as an object of one key that says what it is."""
    if isinstance(value, Ref):
        return {"step": value.step}
    if type(value) in _PLAIN:
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if type(value) is list:
        return [_value(part) for part in value]
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for key, kind in _OF_TORCH.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    raise _NotKept(type(value).__name__)


def _made(value: Any, before: int) -> Any:
    """An argument from JSON; ``before``: the first step that it cannot read."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list):
        return [_made(part, before) for part in value]
    if not isinstance(value, dict):
        raise ValueError("a number as a value")
    ((key, held),) = value.items()
    if key == "step" and type(held) is int and 0 <= held < before:
        return Ref(held)
    if key == "float" and isinstance(held, str):
        return float.fromhex(held)
    if key == "device" and isinstance(held, str):
        return torch.device(held)
    found = getattr(torch, held, None) if key in _OF_TORCH and isinstance(held, str) else None
    if found is None or not isinstance(found, _OF_TORCH[key]):
        raise ValueError(f"{key[:80]!r} as a value")
    return found


class _Description:
    """Modules with their plain attributes, as lines of text, and the files that their code stands in."""

    def __init__(self, model: nn.Module) -> None:
        self.lines: list[str] = []
        self._seen: dict[int, Any] = {}
        self._modules: set[str] = set()
        self._add(model)

    def _add(self, value: Any) -> None:
        if isinstance(value, _TOLD_BY_REPR):
            self.lines.append(repr(value))
        elif isinstance(value, Tensor):  # its words count among the weights
            strides = value.stride() if value.layout is torch.strided else None
            form = (type(value).__name__, value.dtype, value.shape, strides, value.device, value.requires_grad)
            self.lines.append(str(form))
        elif id(value) in self._seen:
            self.lines.append(f"again {list(self._seen).index(id(value))}")
        else:
            self._seen[id(value)] = value  # held, so that no other gets its number
            self._add_parts(value)

    def _add_parts(self, value: Any) -> None:
        parts: Any
        if isinstance(value, Mapping):
            parts = [part for item in value.items() for part in item]
        elif isinstance(value, (list, tuple)):
            parts = list(value)
        elif isinstance(value, (set, frozenset)):
            parts = sorted(value, key=repr)
        elif isinstance(value, type):
            self._modules.update(one.__module__ for one in value.__mro__)
            parts = [value.__module__, value.__qualname__]
        elif isinstance(value, FunctionType):
            parts = self._function(value)
        elif isinstance(value, MethodType):
            parts = [value.__func__, value.__self__]
        elif isinstance(value, partial):
            parts = [value.func, value.args, value.keywords]
        elif isinstance(value, nn.Module):
            hooked = any(held for name, held in vars(value).items() if name.endswith("_hooks"))
            if hooked or isinstance(value, fx.GraphModule):  # whose code stands in no file
                raise _NotKept(type(value).__name__)
            parts = [type(value), vars(value)]
        elif hasattr(value, "__dict__") and not isinstance(value, ModuleType):
            parts = [type(value), vars(value)]
        else:
            raise _NotKept(type(value).__name__)
        self.lines.append(f"{type(value).__qualname__} {len(parts)}")
        for part in parts:
            self._add(part)

    def _function(self, value: FunctionType) -> list[Any]:
        self._modules.add(value.__module__)
        code = value.__code__
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, code.co_code, code.co_firstlineno, value.__defaults__, value.__kwdefaults__, cells]

    def sources(self) -> Iterator[str]:
        """Digests of the files of all code that the modules reach, but for what the versions tell.

        Of an installed package the sizes and times of its files, and of what it uses of others nothing.

        Raises:
            _NotKept: code in no file, such as that of a notebook.
        """
        waiting, seen = sorted(self._modules), set(self._modules)
        while waiting:
            name = waiting.pop()
            if name.partition(".")[0] in _KNOWN and name != "__main__":
                continue
            module = sys.modules.get(name)
            place = getattr(module, "__file__", None)
            if module is None or place is None:
                raise _NotKept(name)
            file = Path(place)
            reached = {held.__name__ for held in vars(module).values() if isinstance(held, ModuleType)}
            reached |= {
                str(held.__module__) for held in vars(module).values() if isinstance(held, (FunctionType, type))
            }
            if file.suffix != ".py" or {"site-packages", "dist-packages"} & {*file.parts}:
                yield f"{name} {file.stat().st_size} {file.stat().st_mtime_ns}"
                reached = {other for other in reached if other.partition(".")[0] == name.partition(".")[0]}
            else:
                source = file.read_bytes()
                yield f"{name} {hashlib.sha256(source).hexdigest()}"
                reached |= _imported(source, module)
            waiting += sorted(reached - seen)
            seen |= reached


def _imported(source: bytes, module: ModuleType) -> set[str]:
    """The modules that a file imports somewhere, as far as they are loaded; those of ``file.py`` models all are needed.

    Those are not found by name once the file is imported: see :func:`hoplon.zoo.user_modules.beside`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
            names = [base, *(inside for alias in node.names if (inside := f"{base}.{alias.name}") in sys.modules)]
        else:
            continue
        if module.__name__.startswith("hoplon_user_") and (missing := set(names) - sys.modules.keys()):
            raise _NotKept(*missing)
        found.update(name for name in names if name in sys.modules)
    return found
